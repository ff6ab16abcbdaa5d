//! What the kernel should hold for services, as a set of keyed entries that can be compared, merged and printed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use coxswain_client::ObjectKey;

/// A transport protocol a service can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// From the API's name; absent means TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// An address clients connect to. The one with the cluster IP also identifies the service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// The destination address.
    pub ip: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} . {}", self.ip, self.protocol, self.port)
    }
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ip, self.port)
    }
}

/// Which of a service's endpoints a chain chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// All of the cluster.
    Cluster,
    /// Those of this node.
    Local,
}

impl Scope {
    /// The number of the first endpoint of this scope among a service's endpoints.
    pub fn offset(self) -> u32 {
        match self {
            Self::Cluster => 0,
            Self::Local => 1 << 16,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        })
    }
}

/// One step of a service port's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The source will be this node.
    Masquerade,
    /// The source will be this node, unless it is a pod.
    MasqueradeOutsiders,
    /// Connections of pods go on there.
    PodsGoto(String),
    /// Connections of this node go on there, with a source that finds its way back.
    HostGoto(String),
    /// Connections from these addresses go on there.
    SourceGoto((Ipv4Addr, u8), String),
    /// The rest goes on there.
    Goto(String),
    /// The rest is dropped.
    Drop,
    /// The connection goes to one of the endpoints.
    Balance {
        /// Whose endpoints.
        service: Frontend,
        /// Which of them.
        scope: Scope,
        /// How many there are.
        count: u32,
        /// How long a client keeps its endpoint.
        affinity: Option<Duration>,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masquerade => f.write_str("masquerade"),
            Self::MasqueradeOutsiders => f.write_str("masquerade outsiders"),
            Self::PodsGoto(chain) => write!(f, "pods goto {chain}"),
            Self::HostGoto(chain) => write!(f, "host masquerade goto {chain}"),
            Self::SourceGoto((ip, prefix), chain) => write!(f, "from {ip}/{prefix} goto {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Drop => f.write_str("drop"),
            Self::Balance { scope, count, affinity, .. } => {
                write!(f, "balance {scope} {count}")?;
                affinity.map_or(Ok(()), |kept| write!(f, " affinity {}s", kept.as_secs()))
            }
        }
    }
}

/// What is done with connections nobody can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client is told.
    Reject,
    /// The client is not told: elsewhere the service may work.
    Drop,
}

/// The name of one entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A chain; its value is [`Value::Steps`].
    Chain(String),
    /// A served address; its value is [`Value::Chain`].
    Address(Frontend),
    /// A served node port; its value is [`Value::Chain`].
    NodePort(Protocol, u16),
    /// An address without endpoints; its value is [`Value::Refusal`].
    RefusedAddress(Frontend),
    /// A node port without endpoints; its value is [`Value::Refusal`].
    RefusedNodePort(Protocol, u16),
    /// An address that belongs to a service, whatever the port; its value is [`Value::Member`].
    ClusterIp(Ipv4Addr),
    /// An endpoint that may connect to itself; its value is [`Value::Member`].
    Hairpin(Ipv4Addr),
    /// The numbered endpoint of a service; its value is [`Value::Endpoint`].
    Endpoint(Frontend, u32),
    /// An endpoint clients may keep; its value is [`Value::Member`].
    Kept(Scope, Frontend, Endpoint),
}

/// The content of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of a chain; the service port is the one it serves.
    Steps(Vec<Step>),
    /// The chain connections go to, and the service port it serves.
    Chain(String, Frontend),
    /// How connections are refused.
    Refusal(Refusal),
    /// An endpoint.
    Endpoint(Endpoint),
    /// The entry is there.
    Member,
}

impl Key {
    fn describe(&self, value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(name) => write!(f, "chain {name}:"),
            Self::Address(frontend) => write!(f, "address {frontend}:"),
            Self::NodePort(protocol, port) => write!(f, "node port {protocol} . {port}:"),
            Self::RefusedAddress(frontend) => write!(f, "address {frontend}:"),
            Self::RefusedNodePort(protocol, port) => write!(f, "node port {protocol} . {port}:"),
            Self::ClusterIp(ip) => write!(f, "cluster ip {ip}"),
            Self::Hairpin(ip) => write!(f, "hairpin {ip}"),
            Self::Endpoint(service, number) => write!(f, "endpoint {service} #{number:#x}:"),
            Self::Kept(scope, service, endpoint) => write!(f, "kept {scope} {service} {endpoint}"),
        }?;
        match value {
            Value::Steps(steps) => steps.iter().try_for_each(|step| write!(f, " {step};")),
            Value::Chain(chain, _) => write!(f, " goto {chain}"),
            Value::Refusal(Refusal::Reject) => f.write_str(" reject"),
            Value::Refusal(Refusal::Drop) => f.write_str(" drop"),
            Value::Endpoint(endpoint) => write!(f, " {endpoint}"),
            Value::Member => Ok(()),
        }
    }
}

/// The entries of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment(pub BTreeMap<Key, Value>);

impl fmt::Display for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(key, value)| {
            key.describe(value, f)?;
            f.write_str("\n")
        })
    }
}

/// What an entry was and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The value in the kernel.
    pub before: Option<Value>,
    /// The value to be there.
    pub after: Option<Value>,
}

/// The entries that differ.
pub type Changes = BTreeMap<Key, Change>;

/// The entries of all services. Where two services claim the same key, the one with the lower name has it.
#[derive(Debug, Default)]
pub struct Ruleset {
    fragments: HashMap<ObjectKey, Fragment>,
    entries: BTreeMap<Key, BTreeMap<ObjectKey, Value>>,
}

impl Ruleset {
    /// Replaces the entries of one service and notes what that changes.
    pub fn replace(&mut self, owner: &ObjectKey, fragment: Fragment, changes: &mut Changes) {
        let old = self.fragments.remove(owner).unwrap_or_default();
        for (key, value) in &old.0 {
            if fragment.0.get(key) != Some(value) {
                self.note(key, owner, fragment.0.get(key).cloned(), changes);
            }
        }
        for (key, value) in &fragment.0 {
            if !old.0.contains_key(key) {
                self.note(key, owner, Some(value.clone()), changes);
            }
        }
        if !fragment.0.is_empty() {
            self.fragments.insert(owner.clone(), fragment);
        }
    }

    fn note(&mut self, key: &Key, owner: &ObjectKey, value: Option<Value>, changes: &mut Changes) {
        let claims = self.entries.entry(key.clone()).or_default();
        let before = claims.values().next().cloned();
        match value {
            Some(value) => claims.insert(owner.clone(), value),
            None => claims.remove(owner),
        };
        let after = claims.values().next().cloned();
        if claims.is_empty() {
            self.entries.remove(key);
        }
        let change = changes.entry(key.clone()).or_insert(Change { before, after: None });
        change.after = after;
        if change.before == change.after {
            changes.remove(key);
        }
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.entries.iter().filter_map(|(key, claims)| Some((key, claims.values().next()?)))
    }

    /// The changes that lead here from nothing.
    pub fn additions(&self) -> Changes {
        let added = |value: &Value| Change { before: None, after: Some(value.clone()) };
        self.entries().map(|(key, value)| (key.clone(), added(value))).collect()
    }
}
