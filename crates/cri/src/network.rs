//! What a runtime needs of the pod network: the CNI contract as a trait.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

/// Transport of a [`SandboxPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A host port that leads into the sandbox (CNI's `portMappings` capability).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxPort {
    /// Transport the mapping is for.
    pub protocol: TransportProtocol,
    /// Port inside the sandbox.
    pub container_port: u16,
    /// Port on the host; never 0.
    pub host_port: u16,
    /// Host address the port listens on; `None` is every address.
    pub host_ip: Option<IpAddr>,
}

/// The sandbox a network call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRef {
    /// Id of the sandbox, unique on the node (CNI's container id).
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Path of the network namespace. On [`SandboxNetwork::detach`] it may no longer exist.
    pub netns: PathBuf,
    /// Host ports to map; ports without a host port are left out.
    pub port_mappings: Vec<SandboxPort>,
    /// Annotations of the sandbox (bandwidth limits and the like).
    pub annotations: BTreeMap<String, String>,
}

/// Why a network call failed. The text reaches the pod's events.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The network is not set up yet (no node subnet, for instance); trying again later helps.
    #[error("network is not ready: {0}")]
    NotReady(String),
    /// No address is left in the node's subnet.
    #[error("no pod address is left: {0}")]
    Exhausted(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The pod network, as a runtime sees it.
///
/// All calls may be repeated: `attach` of an attached sandbox returns the addresses it has, `detach` of
/// an unknown sandbox (or one whose namespace is gone) succeeds.
#[async_trait]
pub trait SandboxNetwork: Send + Sync {
    /// Connects the sandbox's namespace (an interface `eth0`, addresses, routes, `lo` up) and returns the
    /// pod's addresses, the primary one first.
    async fn attach(&self, sandbox: &SandboxRef) -> Result<Vec<IpAddr>, NetworkError>;

    /// Takes the sandbox off the network and frees its addresses.
    async fn detach(&self, sandbox: &SandboxRef) -> Result<(), NetworkError>;

    /// Whether `attach` can be expected to work; the CRI condition `NetworkReady`.
    async fn ready(&self) -> Result<(), NetworkError>;
}
