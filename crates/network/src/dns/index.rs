//! What the cluster's names mean: records made from services and endpoint slices (Kubernetes DNS specification 1.1.0), and how
//! a question is answered from them. Pure; knows nothing of messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use coxswain_client::ObjectKey;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The specification these records follow.
const VERSION: &str = "1.1.0";
const REVERSE: &str = "in-addr.arpa";
/// A chain of aliases longer than this is a mistake or a loop.
const ALIASES: usize = 8;

/// What a name is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An address.
    A,
    /// A service's port.
    Srv,
    /// The name of an address.
    Ptr,
    /// An alias.
    Cname,
    /// Text.
    Txt,
    /// Everything.
    Any,
    /// Something these names never have.
    Other,
}

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An address.
    A(Ipv4Addr),
    /// A port at another name.
    Srv(u16, String),
    /// The name of an address.
    Ptr(String),
    /// Another name that is meant.
    Cname(String),
    /// Text.
    Txt(String),
}

impl Data {
    fn is(&self, kind: Kind) -> bool {
        match self {
            Self::A(_) => matches!(kind, Kind::A | Kind::Any),
            Self::Srv(..) => matches!(kind, Kind::Srv | Kind::Any),
            Self::Ptr(_) => matches!(kind, Kind::Ptr | Kind::Any),
            Self::Cname(_) => matches!(kind, Kind::Cname | Kind::Any),
            Self::Txt(_) => matches!(kind, Kind::Txt | Kind::Any),
        }
    }
}

/// A name and what it has.
pub type Entry = (String, Data);

/// The answer to a question about one of our names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Whether the name exists; without records it then has nothing of the kind asked for.
    pub exists: bool,
    /// What was asked for.
    pub records: Vec<Entry>,
    /// The addresses of what the records name.
    pub additional: Vec<Entry>,
    /// Where the last alias leads, when that is not ours to know.
    pub elsewhere: Option<String>,
}

/// All records.
pub struct Index {
    domain: String,
    /// Networks whose reverse names are ours.
    networks: Vec<(Ipv4Addr, u8)>,
    owned: HashMap<ObjectKey, BTreeSet<Entry>>,
    /// By name with its labels reversed, so that what is below a name follows it.
    names: BTreeMap<String, BTreeMap<Data, usize>>,
}

fn reversed(name: &str) -> String {
    name.rsplit('.').collect::<Vec<_>>().join(".")
}

impl Index {
    /// No service yet; `domain` without a dot at the end.
    pub fn new(domain: &str, networks: Vec<(Ipv4Addr, u8)>) -> Self {
        let mut index = Self {
            domain: domain.to_ascii_lowercase(),
            networks,
            owned: HashMap::new(),
            names: BTreeMap::new(),
        };
        for top in ["svc", "pod", "dns-version"] {
            index.names.entry(reversed(&format!("{top}.{}", index.domain))).or_default();
        }
        let version = (format!("dns-version.{}", index.domain), Data::Txt(VERSION.to_owned()));
        index.add(&version);
        index
    }

    /// The cluster's domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Replaces the records of a service.
    pub fn replace(&mut self, owner: &ObjectKey, service: Option<&Service>, slices: &[Arc<EndpointSlice>]) {
        let new: BTreeSet<Entry> = service
            .map(|service| records(service, slices, &self.domain))
            .unwrap_or_default()
            .into_iter()
            .collect();
        let old = self.owned.remove(owner).unwrap_or_default();
        new.difference(&old).for_each(|entry| self.add(entry));
        old.difference(&new).for_each(|entry| self.remove(entry));
        if !new.is_empty() {
            self.owned.insert(owner.clone(), new);
        }
    }

    fn add(&mut self, (name, data): &Entry) {
        *self.names.entry(reversed(name)).or_default().entry(data.clone()).or_default() += 1;
    }

    fn remove(&mut self, (name, data): &Entry) {
        let name = reversed(name);
        let Some(all) = self.names.get_mut(&name) else { return };
        if let Some(count) = all.get_mut(data) {
            *count -= 1;
            if *count == 0 {
                all.remove(data);
            }
        }
        if all.is_empty() {
            self.names.remove(&name);
        }
    }

    /// The zone of ours that a lowercase name is in.
    pub fn zone<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let below =
            |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if below(&self.domain) {
            return Some(&self.domain);
        }
        // A service outside the known networks still has its reverse name.
        let known = self.networks.iter().any(|network| in_network(name, *network));
        (known || self.names.contains_key(&reversed(name))).then_some(REVERSE)
    }

    /// Answers for a lowercase name in one of our zones.
    pub fn lookup(&self, name: &str, kind: Kind) -> Answer {
        let mut answer = Answer::default();
        let mut name = name.to_owned();
        for _ in 0..ALIASES {
            let (exists, data) = self.at(&name);
            answer.exists |= exists;
            let alias =
                data.iter().find_map(|data| if let Data::Cname(to) = data { Some(to.clone()) } else { None });
            let found = data.into_iter().filter(|data| data.is(kind) || matches!(data, Data::Cname(_)));
            answer.records.extend(found.map(|data| (name.clone(), data)));
            match alias {
                Some(to) if !matches!(kind, Kind::Cname | Kind::Any) => {
                    if self.zone(&to).is_none() {
                        answer.elsewhere = Some(to);
                        break;
                    }
                    name = to;
                }
                _ => break,
            }
        }
        let targets: BTreeSet<&String> = answer
            .records
            .iter()
            .filter_map(|(_, data)| if let Data::Srv(_, to) = data { Some(to) } else { None })
            .collect();
        answer.additional = targets
            .into_iter()
            .flat_map(|to| {
                self.at(to).1.into_iter().filter(|data| data.is(Kind::A)).map(|data| (to.clone(), data))
            })
            .collect();
        answer
    }

    fn at(&self, name: &str) -> (bool, Vec<Data>) {
        if name == self.domain {
            return (true, Vec::new());
        }
        if let Some(found) = self.pod(name) {
            return found;
        }
        let key = reversed(name);
        if let Some(data) = self.names.get(&key) {
            return (true, data.keys().cloned().collect());
        }
        let below = format!("{key}.");
        let next = self.names.range(below.clone()..).next();
        (next.is_some_and(|(name, _)| name.starts_with(&below)), Vec::new())
    }

    /// `10-42-0-5.namespace.pod.domain` is that address, whether or not there is such a pod.
    fn pod(&self, name: &str) -> Option<(bool, Vec<Data>)> {
        let rest = name.strip_suffix(&self.domain)?.strip_suffix(".pod.")?;
        let Some((address, namespace)) = rest.split_once('.') else { return Some((true, Vec::new())) };
        let address: Option<Ipv4Addr> = address.replace('-', ".").parse().ok();
        Some(match address {
            Some(address) if !namespace.contains('.') => (true, vec![Data::A(address)]),
            _ => (false, Vec::new()),
        })
    }
}

fn in_network(name: &str, (network, prefix): (Ipv4Addr, u8)) -> bool {
    let Some(rest) = name.strip_suffix(REVERSE).and_then(|rest| rest.strip_suffix('.')) else { return false };
    let octets: Option<Vec<u8>> = rest.rsplit('.').map(|octet| octet.parse().ok()).collect();
    let Some(octets) = octets.filter(|octets| octets.len() <= 4 && octets.len() * 8 >= usize::from(prefix))
    else {
        return false;
    };
    let mut bytes = [0; 4];
    bytes[..octets.len()].copy_from_slice(&octets);
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    u32::from_be_bytes(bytes) & mask == u32::from(network) & mask
}

fn reverse_name(ip: Ipv4Addr) -> String {
    let [a, b, c, d] = ip.octets();
    format!("{d}.{c}.{b}.{a}.{REVERSE}")
}

fn port_name(port: &str, protocol: Option<&str>, base: &str) -> String {
    format!("_{port}._{}.{base}", protocol.unwrap_or("TCP").to_ascii_lowercase())
}

fn port_number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or_default()
}

/// The records of one service.
fn records(service: &Service, slices: &[Arc<EndpointSlice>], domain: &str) -> Vec<Entry> {
    let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) else {
        return Vec::new();
    };
    let Some(spec) = &service.spec else { return Vec::new() };
    let base = format!("{name}.{namespace}.svc.{domain}");
    if spec.type_.as_deref() == Some("ExternalName") {
        let target =
            spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        return if target.is_empty() { Vec::new() } else { vec![(base, Data::Cname(target))] };
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return headless(slices, &base);
    }
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    match ips.filter_map(|ip| ip.parse().ok()).next() {
        Some(ip) => with_address(spec, ip, &base),
        None => Vec::new(),
    }
}

fn with_address(spec: &ServiceSpec, ip: Ipv4Addr, base: &str) -> Vec<Entry> {
    let mut records = vec![(base.to_owned(), Data::A(ip)), (reverse_name(ip), Data::Ptr(base.to_owned()))];
    for port in spec.ports.iter().flatten() {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let data = Data::Srv(port_number(port.port), base.to_owned());
            records.push((port_name(name, port.protocol.as_deref(), base), data));
        }
    }
    records
}

/// The endpoints themselves. Which of them are published although not ready, their controller says by calling them ready.
fn headless(slices: &[Arc<EndpointSlice>], base: &str) -> Vec<Entry> {
    let mut records = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        for endpoint in slice.endpoints.iter().flatten() {
            if !endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true) {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse::<Ipv4Addr>().ok()) {
                let label = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
                let own = format!("{label}.{base}");
                records.push((base.to_owned(), Data::A(ip)));
                records.push((own.clone(), Data::A(ip)));
                records.push((reverse_name(ip), Data::Ptr(own.clone())));
                for port in slice.ports.iter().flatten() {
                    let (Some(name), Some(number)) = (port.name.as_deref(), port.port) else { continue };
                    if !name.is_empty() {
                        let data = Data::Srv(port_number(number), own.clone());
                        records.push((port_name(name, port.protocol.as_deref(), base), data));
                    }
                }
            }
        }
    }
    records
}
