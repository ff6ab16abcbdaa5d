//! The rules of the pod network: masquerading of what leaves the cluster, and host ports.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use coxswain_cri::{SandboxPort, TransportProtocol};
use nlink::netlink::Connection;
use nlink::netlink::Nftables;
use nlink::netlink::nftables::types::{BaseChain, Chain, Family, FibFlags, NatHook, Priority, Rule};
use nlink::netlink::types::route::RouteType;
use serde::{Deserialize, Serialize};

use super::ipam::Subnet;

const TABLE: &str = "coxswain-pods";
const HOST_PORTS: &str = "host-ports";

/// A host port that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    udp: bool,
    host_ip: Option<Ipv4Addr>,
    host_port: u16,
    address: Ipv4Addr,
    port: u16,
}

/// The host ports of every sandbox, kept in a directory.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    dir: PathBuf,
    of: BTreeMap<String, Vec<Mapping>>,
}

impl Mappings {
    /// Reads the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut of = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A file that a crash cut short belongs to a sandbox that was never reported ready.
            if let Ok(mappings) = serde_json::from_slice(&fs::read(entry.path())?) {
                of.insert(entry.file_name().to_string_lossy().into_owned(), mappings);
            }
        }
        Ok(Self { dir: dir.to_owned(), of })
    }

    /// Adds the ports of a sandbox.
    pub fn add(&mut self, sandbox: &str, address: Ipv4Addr, ports: &[SandboxPort]) -> io::Result<()> {
        let mapping = |port: &SandboxPort| Mapping {
            udp: port.protocol == TransportProtocol::Udp,
            host_ip: port
                .host_ip
                .and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None })
                .filter(|ip| !ip.is_unspecified()),
            host_port: port.host_port,
            address,
            port: port.container_port,
        };
        let mappings: Vec<Mapping> =
            ports.iter().filter(|port| port.protocol != TransportProtocol::Sctp).map(mapping).collect();
        fs::write(self.dir.join(sandbox), serde_json::to_vec(&mappings)?)?;
        self.of.insert(sandbox.to_owned(), mappings);
        Ok(())
    }

    /// Removes the ports of a sandbox; whether it had any.
    pub fn remove(&mut self, sandbox: &str) -> io::Result<bool> {
        let had = self.of.remove(sandbox).is_some();
        if had {
            fs::remove_file(self.dir.join(sandbox))?;
        }
        Ok(had)
    }
}

fn rule(chain: &str) -> Rule {
    Rule::new(TABLE, chain).family(Family::Ip)
}

/// Writes the whole table anew, atomically.
pub async fn apply(
    firewall: &Connection<Nftables>,
    bridge: &str,
    subnet: &Subnet,
    (cluster, cluster_prefix): (Ipv4Addr, u8),
    mappings: &Mappings,
) -> nlink::Result<()> {
    let from_pods = |chain: &str| rule(chain).match_saddr_v4(subnet.network, subnet.prefix);
    let chain = |name: &str| Chain::new(TABLE, name).map(|chain| chain.family(Family::Ip));
    let transaction = firewall
        .transaction()
        // An update makes the table where there is none, so that the deletion cannot fail.
        .update_table(TABLE, Family::Ip, 0)
        .del_table(TABLE, Family::Ip)
        .add_table(TABLE, Family::Ip)
        .add_chain(chain(HOST_PORTS)?)
        .add_chain(chain("prerouting")?.base(BaseChain::nat(NatHook::Prerouting, Priority::DstNat)))
        .add_chain(chain("output")?.base(BaseChain::nat(NatHook::Output, Priority::DstNat)))
        .add_chain(chain("postrouting")?.base(BaseChain::nat(NatHook::Postrouting, Priority::SrcNat)))
        .add_rule(rule("prerouting").try_jump(HOST_PORTS)?)
        .add_rule(rule("output").try_jump(HOST_PORTS)?)
        .add_rule(from_pods("postrouting").match_daddr_v4(cluster, cluster_prefix).accept())
        .add_rule(from_pods("postrouting").match_oif_not(bridge).masquerade())
        // From this host by its loopback: only the bridge's address finds its way back.
        .add_rule(rule("postrouting").match_saddr_v4(Ipv4Addr::LOCALHOST, 8).match_oif(bridge).masquerade());
    let transaction =
        mapping_rules(mappings).into_iter().fold(transaction, |transaction, rule| transaction.add_rule(rule));
    transaction.commit(firewall).await
}

/// Writes the host ports anew, atomically.
pub async fn apply_mappings(firewall: &Connection<Nftables>, mappings: &Mappings) -> nlink::Result<()> {
    let transaction = firewall.transaction().flush_chain(TABLE, HOST_PORTS, Family::Ip);
    let transaction =
        mapping_rules(mappings).into_iter().fold(transaction, |transaction, rule| transaction.add_rule(rule));
    transaction.commit(firewall).await
}

fn mapping_rules(mappings: &Mappings) -> Vec<Rule> {
    let mappings = mappings.of.values().flatten();
    mappings
        .map(|mapping| {
            let rule = match mapping.host_ip {
                Some(ip) => rule(HOST_PORTS).match_daddr_v4(ip, 32),
                None => rule(HOST_PORTS).match_fib_type(FibFlags::DADDR, RouteType::Local),
            };
            let rule = if mapping.udp {
                rule.match_udp_dport(mapping.host_port)
            } else {
                rule.match_tcp_dport(mapping.host_port)
            };
            rule.dnat(mapping.address, Some(mapping.port))
        })
        .collect()
}

/// Removes the table.
pub async fn remove(firewall: &Connection<Nftables>) -> nlink::Result<()> {
    firewall.del_table_if_exists(TABLE, Family::Ip).await.map(drop)
}
