//! Forgetting UDP flows to endpoints that no longer serve: UDP has no end of connection, so a client that goes on sending from
//! the same port would stay with a dead endpoint for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use nlink::netlink::netfilter::{ConntrackEntry, ConntrackFilter, ConntrackStatus, IpProtocol};
use nlink::netlink::types::AddressFamily;
use nlink::netlink::{Connection, Netfilter};

use super::model::{Changes, Endpoint, Frontend, Key, Protocol, Ruleset, Value};

/// Where UDP flows may go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flows {
    addresses: BTreeMap<(Ipv4Addr, u16), BTreeSet<Endpoint>>,
    node_ports: BTreeMap<u16, BTreeSet<Endpoint>>,
}

impl Flows {
    /// What `changes` mean for UDP flows; `None` when nothing.
    pub fn after(changes: &Changes, ruleset: &Ruleset) -> Option<Self> {
        if !changes.keys().any(|key| protocol(key) == Some(Protocol::Udp)) {
            return None;
        }
        let mut endpoints: BTreeMap<Frontend, BTreeSet<Endpoint>> = BTreeMap::new();
        for (key, value) in ruleset.entries() {
            if let (Key::Endpoint(service, _), Value::Endpoint(endpoint)) = (key, value) {
                endpoints.entry(*service).or_default().insert(*endpoint);
            }
        }
        let mut flows = Self::default();
        let gone = changes.iter().filter_map(|(key, change)| Some((key, change.before.as_ref()?)));
        let gone = gone.map(|(key, value)| (key, value, false));
        for (key, value, serves) in gone.chain(ruleset.entries().map(|(key, value)| (key, value, true))) {
            let allowed = match value {
                Value::Chain(_, service) if serves => endpoints.get(service).cloned().unwrap_or_default(),
                _ => BTreeSet::new(),
            };
            match key {
                Key::Address(at) | Key::RefusedAddress(at) if at.protocol == Protocol::Udp => {
                    flows.addresses.entry((at.ip, at.port)).or_default().extend(allowed);
                }
                Key::NodePort(Protocol::Udp, port) | Key::RefusedNodePort(Protocol::Udp, port) => {
                    flows.node_ports.entry(*port).or_default().extend(allowed);
                }
                _ => {}
            }
        }
        Some(flows)
    }

    /// Whether a flow to `to`, answered by `from`, leads somewhere it would not be sent today.
    pub(super) fn is_stale(&self, to: (Ipv4Addr, u16), from: Endpoint, translated: bool) -> bool {
        match (self.addresses.get(&to), self.node_ports.get(&to.1)) {
            (Some(allowed), _) => !allowed.contains(&from),
            // The port of some other host is none of ours.
            (None, Some(allowed)) => translated && !allowed.contains(&from),
            (None, None) => false,
        }
    }
}

fn protocol(key: &Key) -> Option<Protocol> {
    match key {
        Key::Address(at) | Key::RefusedAddress(at) | Key::Endpoint(at, _) => Some(at.protocol),
        Key::NodePort(protocol, _) | Key::RefusedNodePort(protocol, _) => Some(*protocol),
        Key::Chain(_) | Key::ClusterIp(_) | Key::Hairpin(_) | Key::Kept(..) => None,
    }
}

fn ends(entry: &ConntrackEntry) -> Option<((Ipv4Addr, u16), Endpoint)> {
    let (Some(IpAddr::V4(to)), Some(IpAddr::V4(from))) = (entry.orig.dst_ip, entry.reply.src_ip) else {
        return None;
    };
    Some(((to, entry.orig.dst_port?), Endpoint { ip: from, port: entry.reply.src_port? }))
}

/// Deletes the stale flows from the kernel.
pub async fn forget(flows: &Flows) -> nlink::Result<usize> {
    let connection = Connection::<Netfilter>::new()?;
    let udp = ConntrackFilter::new().family(AddressFamily::Inet).proto(IpProtocol::Udp);
    let mut forgotten = 0;
    for entry in connection.get_conntrack_matching(&udp).await? {
        let translated = entry.status.is_some_and(|status| status & ConntrackStatus::DST_NAT.bits() != 0);
        if ends(&entry).is_none_or(|(to, from)| !flows.is_stale(to, from, translated)) {
            continue;
        }
        match connection.del_conntrack_entry(&entry).await {
            Ok(()) => forgotten += 1,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}
