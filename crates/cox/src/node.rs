//! The node: pod network, container runtime, kubelet, service proxy and DNS, each a task.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use coxswain_client::{Client, InformerFactory};
use coxswain_kubelet::{KubeletConfig, NodeApiTls};
use coxswain_network::{DnsConfig, PodNetwork, PodNetworkConfig, ProxyConfig};
use coxswain_runtime::RuntimeConfig;
use nix::fcntl::{Flock, FlockArg};
use rcgen::SanType;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::NodeArgs;
use crate::{files, registries};

/// The bridge that pods are connected to.
pub const BRIDGE: &str = "cox0";
/// The addresses of all pods.
pub const POD_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 42, 0, 0), 16);
/// The addresses of services.
pub const SERVICE_CIDR: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 43, 0, 0), 16);
/// Where pods find the DNS server.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
/// The cluster's domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
const KUBELET_PORT: u16 = 10250;
const MAX_PODS: u32 = 110;

/// The cgroup above those of the pods: clusters of different directories do not meet.
pub fn cgroup_root(data_dir: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    format!("/coxswain-{:08x}", hasher.finish() >> 32)
}

/// Who a machine is in the cluster.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Name of the Node object.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
}

impl NodeIdentity {
    /// What the flags say; the host's name and the address others are reached from where they do not.
    pub fn of(args: &NodeArgs, bind_address: IpAddr) -> anyhow::Result<Self> {
        let name = match &args.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        let ip = match args.node_ip {
            Some(ip) => ip,
            None if !bind_address.is_unspecified() => bind_address,
            None => routed_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        Ok(Self { name, ip })
    }

    /// The node's user name.
    pub fn user(&self) -> String {
        format!("system:node:{}", self.name)
    }

    /// The names its own API is served under.
    pub fn served_as(&self) -> anyhow::Result<Vec<SanType>> {
        Ok(vec![SanType::IpAddress(self.ip), SanType::DnsName(self.name.as_str().try_into()?)])
    }
}

/// The address this machine reaches others from; nothing is sent.
fn routed_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// How the parts of the node reach the cluster.
pub struct Cluster<'a> {
    /// The process's shared caches.
    pub informers: &'a Arc<InformerFactory>,
    /// A client that acts as a user with groups.
    pub as_user: &'a dyn Fn(&str, &[&str]) -> Client,
}

/// Starts everything that makes this machine a node of the cluster.
pub fn start(
    node: &NodeIdentity,
    args: &NodeArgs,
    tls: NodeApiTls,
    cluster: &Cluster<'_>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    let data_dir = args.data_dir.as_path();
    let run_dir = data_dir.join("run");
    files::private_dir(&run_dir)?;
    let alone = claim_machine()?;
    let client = (cluster.as_user)(&node.user(), &["system:nodes"]);
    let network_config = PodNetworkConfig {
        node_name: node.name.clone(),
        node_ip: node.ip,
        state_dir: data_dir.join("network"),
        bridge: BRIDGE.to_owned(),
        cluster_cidr: POD_CIDR,
        dns_address: DNS_ADDRESS,
    };
    let network = PodNetwork::new(network_config, cluster.informers.informer(), cancel.clone())
        .context("the pod network")?;
    let runtime = RuntimeConfig {
        root: data_dir.join("runtime"),
        run_dir: run_dir.join("shims"),
        socket: run_dir.join("cri.sock"),
        shim_command: vec!["/proc/self/exe".into(), "shim".into()],
        network: network.clone(),
        registries: args.registry_config.as_deref().map(registries::read).transpose()?.unwrap_or_default(),
        cgroup_parent: format!("{}/kubepods", cgroup_root(data_dir)),
    };
    let kubelet = kubelet_config(node, args, tls, client, &runtime.socket);
    let proxy = ProxyConfig {
        node_name: node.name.clone(),
        node_ip: node.ip,
        cluster_cidr: POD_CIDR,
        bridge: BRIDGE.to_owned(),
        service_cidr: SERVICE_CIDR,
    };
    let dns = DnsConfig {
        listen: vec![SocketAddr::new(DNS_ADDRESS.into(), 53)],
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
        networks: vec![POD_CIDR, SERVICE_CIDR],
        upstreams: None,
    };
    let as_user = |user: &str| cluster.informers.for_client((cluster.as_user)(user, &[]));
    let (proxy_informers, dns_informers) =
        (as_user("system:kube-proxy"), as_user("system:serviceaccount:kube-system:coredns"));
    let (own, runtime_cancel) = (cancel.clone(), cancel.clone());
    spawn(tasks, cancel, "pod network", async move {
        let _alone = alone;
        network.run().await
    });
    spawn(tasks, cancel, "container runtime", async move {
        coxswain_runtime::serve(runtime, runtime_cancel).await
    });
    spawn(tasks, cancel, "kubelet", coxswain_kubelet::run(kubelet, own.clone()));
    spawn(tasks, cancel, "service proxy", coxswain_network::run_proxy(proxy_informers, proxy, own.clone()));
    spawn(tasks, cancel, "DNS", coxswain_network::run_dns(dns_informers, dns, own));
    Ok(())
}

/// A machine (to be exact, a network namespace) is one node at a time: two would fight over bridge, ports and rules.
fn claim_machine() -> anyhow::Result<Flock<File>> {
    let namespace = std::fs::metadata("/proc/self/ns/net").context("this network namespace")?.ino();
    let path = format!("/run/coxswain-node-{namespace}.lock");
    let file =
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).context(path)?;
    let taken = |(_, error)| {
        anyhow::anyhow!("another cox runs a node on this machine ({error}); stop it, or use --no-node")
    };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(taken)
}

/// Runs a part of the node; a part that fails stops the process, which restarts it whole.
fn spawn<E: std::fmt::Display>(
    tasks: &TaskTracker,
    cancel: &CancellationToken,
    name: &'static str,
    part: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    let cancel = cancel.clone();
    tasks.spawn(async move {
        if let Err(error) = part.await {
            tracing::error!(part = name, %error, "a part of the node failed");
            cancel.cancel();
        }
    });
}

fn kubelet_config(
    node: &NodeIdentity,
    args: &NodeArgs,
    tls: NodeApiTls,
    client: Client,
    socket: &Path,
) -> KubeletConfig {
    KubeletConfig {
        node_name: node.name.clone(),
        hostname: node.name.clone(),
        node_ip: node.ip,
        root_dir: args.data_dir.join("kubelet"),
        cri_socket: socket.to_owned(),
        client,
        tls,
        api_address: SocketAddr::new(node.ip, KUBELET_PORT),
        cluster_dns: vec![DNS_ADDRESS.into()],
        cluster_domain: CLUSTER_DOMAIN.to_owned(),
        max_pods: MAX_PODS,
        labels: args.node_labels.iter().cloned().collect(),
        taints: args.register_with_taints.clone(),
        cgroup_root: cgroup_root(&args.data_dir),
    }
}
