//! The pod network of one node: a bridge, a veth pair a pod, ways to the other nodes' pods, and masquerading for what leaves the
//! cluster.

mod ipam;
mod peers;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coxswain_client::{Informer, ObjectKey};
use coxswain_cri::{NetworkError, SandboxNetwork, SandboxRef};
use k8s_openapi::api::core::v1::Node;
use nlink::netlink::Nftables;
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::{BridgeLink, BridgePortConfig, VethLink};
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use tokio_util::sync::CancellationToken;

use ipam::{Ipam, Subnet};

/// How often the ways to other nodes are compared with the host's routes.
const LOOK: Duration = Duration::from_secs(30);

/// How the pod network is set up.
#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// The node whose share of the addresses is used.
    pub node_name: String,
    /// The address other nodes reach this one at.
    pub node_ip: IpAddr,
    /// Where the addresses given out are kept.
    pub state_dir: PathBuf,
    /// The bridge's name.
    pub bridge: String,
    /// The addresses of all pods of the cluster: network and prefix length.
    pub cluster_cidr: (Ipv4Addr, u8),
    /// An address the bridge has besides the gateway's, where the node's DNS server listens.
    pub dns_address: Ipv4Addr,
}

/// Setting the network up failed.
#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(String, io::Error),
    /// The kernel refused.
    #[error("{0}: {1}")]
    Netlink(&'static str, nlink::Error),
}

fn during(step: &'static str) -> impl Fn(nlink::Error) -> PodNetworkError {
    move |error| PodNetworkError::Netlink(step, error)
}

fn refused(error: &dyn std::fmt::Display) -> NetworkError {
    NetworkError::Failed(error.to_string())
}

/// The pod network.
pub struct PodNetwork {
    config: PodNetworkConfig,
    nodes: Informer<Node>,
    ipam: Ipam,
    /// The subnet the bridge is set up for; the lock also orders what changes the host's rules.
    subnet: tokio::sync::Mutex<Option<Subnet>>,
    mappings: Mutex<rules::Mappings>,
    cancel: CancellationToken,
}

impl PodNetwork {
    /// A network that sets itself up once the node has its share of the addresses.
    ///
    /// # Errors
    /// The state directory or forwarding cannot be set up.
    pub fn new(
        config: PodNetworkConfig,
        nodes: Informer<Node>,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, PodNetworkError> {
        let file = |path: &Path| {
            let path = path.display().to_string();
            move |error| PodNetworkError::File(path, error)
        };
        let ipam = Ipam::open(&config.state_dir.join("addresses")).map_err(file(&config.state_dir))?;
        let mappings =
            rules::Mappings::open(&config.state_dir.join("ports")).map_err(file(&config.state_dir))?;
        for setting in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/route_localnet"] {
            fs::write(setting, "1").map_err(file(Path::new(setting)))?;
        }
        Ok(Arc::new(Self {
            config,
            nodes,
            ipam,
            subnet: tokio::sync::Mutex::default(),
            mappings: Mutex::new(mappings),
            cancel,
        }))
    }

    /// Removes the bridge and the rules; no pod may be left.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn remove(bridge: &str) -> Result<(), PodNetworkError> {
        let route = Connection::<Route>::new().map_err(during("opening netlink"))?;
        route.del_link_if_exists(bridge).await.map_err(during("removing the bridge"))?;
        let firewall = Connection::<Nftables>::new().map_err(during("opening netlink"))?;
        peers::remove(&route).await.map_err(during("removing the ways to other nodes"))?;
        rules::remove(&firewall).await.map_err(during("removing the rules"))
    }

    /// Waits for the node's share, sets the bridge up for it, and keeps the ways to the other nodes' pods true until cancelled.
    pub async fn run(&self) -> Result<(), NetworkError> {
        let mut changes = self.nodes.subscribe();
        let subnet = loop {
            match self.subnet().await {
                Err(NetworkError::NotReady(_)) => {}
                outcome => break outcome?,
            }
            if !matches!(self.cancel.run_until_cancelled(changes.recv()).await, Some(Some(_))) {
                return Ok(());
            }
        };
        let IpAddr::V4(own) = self.config.node_ip else { return Ok(()) };
        let route = Connection::<Route>::new().map_err(|error| refused(&error))?;
        let mut applied: Option<(BTreeMap<Subnet, Ipv4Addr>, peers::Ways)> = None;
        // The host's own routes may change at any time and nothing tells: hence the look now and then.
        let mut look = tokio::time::interval(LOOK);
        let mut due = true;
        loop {
            let peers = peers::peers(&self.nodes.list(), &self.config.node_name);
            if due || applied.as_ref().is_none_or(|(known, _)| *known != peers) {
                let (ways, failures) = peers::ways(&route, &peers).await;
                if let Some(error) = failures.first() {
                    tracing::warn!(%error, nodes = failures.len(), "nodes are out of reach");
                }
                if applied.as_ref().is_none_or(|(_, known)| *known != ways) {
                    match peers::apply(&route, &subnet, own, &ways).await {
                        Ok(()) => applied = Some((peers, ways)),
                        Err(error) => tracing::warn!(%error, "the ways to other nodes are not set"),
                    }
                }
            }
            let next = async {
                tokio::select! { change = changes.recv() => change.map(|_| false), _ = look.tick() => Some(true) }
            };
            match self.cancel.run_until_cancelled(next).await.flatten() {
                Some(looked) => due = looked,
                None => return Ok(()),
            }
        }
    }

    async fn subnet(&self) -> Result<Subnet, NetworkError> {
        let mut subnet = self.subnet.lock().await;
        if let Some(subnet) = *subnet {
            return Ok(subnet);
        }
        let node = self.nodes.get(&ObjectKey::cluster(&self.config.node_name));
        let share = node.and_then(|node| peers::subnet_of(&node));
        let share = share.ok_or_else(|| NetworkError::NotReady("the node has no pod CIDR yet".into()))?;
        self.set_up_host(&share).await.map_err(|error| refused(&error))?;
        *subnet = Some(share);
        Ok(share)
    }

    async fn set_up_host(&self, subnet: &Subnet) -> Result<(), PodNetworkError> {
        let bridge = self.config.bridge.as_str();
        let route = Connection::<Route>::new().map_err(during("opening netlink"))?;
        match route.add_link(BridgeLink::new(bridge)).await {
            Err(error) if !error.is_already_exists() => return Err(during("making the bridge")(error)),
            _ => {}
        }
        for (address, prefix) in [(subnet.gateway(), subnet.prefix), (self.config.dns_address, 32)] {
            let own = Ipv4Address::new(bridge, address, prefix);
            route.replace_address(own).await.map_err(during("addressing the bridge"))?;
        }
        route.set_link_up(bridge).await.map_err(during("starting the bridge"))?;
        let firewall = Connection::<Nftables>::new().map_err(during("opening netlink"))?;
        let mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let applied = rules::apply(&firewall, bridge, subnet, self.config.cluster_cidr, &mappings).await;
        applied.map_err(during("writing the rules"))
    }

    async fn connect(
        &self,
        sandbox: &SandboxRef,
        subnet: &Subnet,
        address: Ipv4Addr,
    ) -> Result<(), PodNetworkError> {
        let host_end = host_end(&sandbox.id);
        let route = Connection::<Route>::new().map_err(during("opening netlink"))?;
        // What an attempt before left half made.
        route.del_link_if_exists(host_end.as_str()).await.map_err(during("removing a stale interface"))?;
        let netns = fs::File::open(&sandbox.netns)
            .map_err(|error| PodNetworkError::File(sandbox.netns.display().to_string(), error))?;
        let pair = VethLink::new(&host_end, "eth0").peer_netns_fd(&netns);
        route.add_link(pair).await.map_err(during("making the pod's interface"))?;
        route
            .set_link_master(host_end.as_str(), self.config.bridge.as_str())
            .await
            .map_err(during("joining the bridge"))?;
        let port = BridgePortConfig::new().hairpin(true);
        route
            .set_bridge_port(host_end.as_str(), port)
            .await
            .map_err(during("configuring the bridge port"))?;
        let inside = Connection::<Route>::new_in(sandbox.netns.as_path())
            .map_err(during("entering the pod's namespace"))?;
        inside.set_link_up("lo").await.map_err(during("starting loopback"))?;
        let own = Ipv4Address::new("eth0", address, subnet.prefix);
        inside.replace_address(own).await.map_err(during("addressing the pod"))?;
        inside.set_link_up("eth0").await.map_err(during("starting the pod's interface"))?;
        route.set_link_up(host_end.as_str()).await.map_err(during("starting the pod's interface"))?;
        let default = Ipv4Route::default_route().gateway(subnet.gateway());
        inside.replace_route(default).await.map_err(during("routing the pod"))
    }

    async fn write_mappings(
        &self,
        change: impl FnOnce(&mut rules::Mappings) -> io::Result<bool>,
    ) -> Result<(), NetworkError> {
        // The lock keeps two writers from overwriting each other's rules.
        let _order = self.subnet.lock().await;
        let mappings = {
            let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
            if !change(&mut mappings).map_err(|error| refused(&error))? {
                return Ok(());
            }
            mappings.clone()
        };
        let firewall = Connection::<Nftables>::new().map_err(|error| refused(&error))?;
        rules::apply_mappings(&firewall, &mappings).await.map_err(|error| refused(&error))
    }
}

/// The host's end of a pod's veth pair: at most 15 characters, from the sandbox's id.
fn host_end(id: &str) -> String {
    format!("cox{}", id.chars().take(12).collect::<String>())
}

#[async_trait]
impl SandboxNetwork for PodNetwork {
    async fn attach(&self, sandbox: &SandboxRef) -> Result<Vec<IpAddr>, NetworkError> {
        let subnet = self.subnet().await?;
        let address = self.ipam.acquire(&subnet, &sandbox.id).map_err(|error| refused(&error))?;
        let address = address.ok_or_else(|| {
            NetworkError::Exhausted(format!("{}/{} is full", subnet.network, subnet.prefix))
        })?;
        self.connect(sandbox, &subnet, address).await.map_err(|error| refused(&error))?;
        if !sandbox.port_mappings.is_empty() {
            self.write_mappings(|mappings| {
                mappings.add(&sandbox.id, address, &sandbox.port_mappings).map(|()| true)
            })
            .await?;
        }
        Ok(vec![IpAddr::V4(address)])
    }

    async fn detach(&self, sandbox: &SandboxRef) -> Result<(), NetworkError> {
        let route = Connection::<Route>::new().map_err(|error| refused(&error))?;
        route.del_link_if_exists(host_end(&sandbox.id).as_str()).await.map_err(|error| refused(&error))?;
        self.write_mappings(|mappings| mappings.remove(&sandbox.id)).await?;
        self.ipam.release(&sandbox.id).map_err(|error| refused(&error))
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        self.subnet().await.map(drop)
    }
}
