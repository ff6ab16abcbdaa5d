//! Addresses of the node's pods: one file an address, made exclusively, so that nothing is given twice, whatever is killed when.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// A node's share of the pod addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    /// Network address.
    pub network: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
}

impl Subnet {
    /// Reads `10.42.0.0/24`.
    pub fn parse(text: &str) -> Option<Self> {
        let (network, prefix) = text.split_once('/')?;
        let subnet = Self { network: network.parse().ok()?, prefix: prefix.parse().ok()? };
        (8..=30).contains(&subnet.prefix).then_some(subnet)
    }

    fn host(&self, at: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + at)
    }

    /// The bridge's own address: the gateway of the pods.
    pub fn gateway(&self) -> Ipv4Addr {
        self.host(1)
    }

    /// The addresses pods can have.
    fn hosts(&self) -> u32 {
        (1 << (32 - self.prefix)) - 1
    }
}

/// The addresses given out, in a directory.
pub struct Ipam {
    dir: PathBuf,
}

impl Ipam {
    /// Opens the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn entries(&self) -> io::Result<Vec<(Ipv4Addr, String)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let address = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(address) = address {
                entries.push((address, fs::read_to_string(entry.path())?));
            }
        }
        Ok(entries)
    }

    /// The address of an owner: the one it has, or the next free one after the one given last. None where all are taken.
    pub fn acquire(&self, subnet: &Subnet, owner: &str) -> io::Result<Option<Ipv4Addr>> {
        let entries = self.entries()?;
        if let Some((address, _)) = entries.iter().find(|(_, of)| of == owner) {
            return Ok(Some(*address));
        }
        let last_file = self.dir.join("last");
        let last = fs::read_to_string(&last_file).ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(1);
        let hosts = subnet.hosts();
        // A freed address rests as long as it can: late packets of the pod before do not reach the next.
        for at in (last + 1..hosts).chain(2..=last.min(hosts - 1)) {
            let address = subnet.host(at);
            match OpenOptions::new().write(true).create_new(true).open(self.dir.join(address.to_string())) {
                Ok(mut file) => {
                    file.write_all(owner.as_bytes())?;
                    fs::write(&last_file, at.to_string())?;
                    return Ok(Some(address));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Frees the addresses of an owner.
    pub fn release(&self, owner: &str) -> io::Result<()> {
        for (address, _) in self.entries()?.into_iter().filter(|(_, of)| of == owner) {
            match fs::remove_file(self.dir.join(address.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_kept_and_reused_last() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(dir.path()).unwrap();
        let subnet = Subnet::parse("10.42.0.0/29").unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 42, 0, 1));
        let last = |address: Option<Ipv4Addr>| address.map(|address| address.octets()[3]);
        let get = |owner: &str| last(ipam.acquire(&subnet, owner).unwrap());
        assert_eq!((get("a"), get("b"), get("a")), (Some(2), Some(3), Some(2)));
        ipam.release("a").unwrap();
        assert_eq!(get("c"), Some(4), "the freed address rests");
        assert_eq!((get("d"), get("e"), get("f"), get("g")), (Some(5), Some(6), Some(2), None));
        assert!(Subnet::parse("10.42.0.0").is_none() && Subnet::parse("x/24").is_none());
    }
}
