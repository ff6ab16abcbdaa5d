//! The kubelet: makes the pods bound to one node real, through a container runtime (CRI v1) and the Kubernetes API.
//!
//! One task a pod ([`pod`]) looks at the pod, at what the runtime says and at its probes, asks a pure function what to do
//! ([`pod::plan`]) and does it. Everything is started by an event; the slow relist is a safety net.
//! This crate knows neither the runtime's inside nor the network's.

mod admit;
mod backoff;
mod cgroups;
mod cri;
mod events;
mod images;
mod kubelet;
mod logs;
mod model;
mod node;
mod objects;
mod pleg;
mod pod;
mod probe;
mod quantities;
mod server;
mod spec;
mod volumes;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use rustls::server::ResolvesServerCert;

pub use kubelet::run;

#[cfg(test)]
mod tests;

/// Removes what a kubelet that was started with this `cgroup_root` left of cgroups; no pod of it may run.
///
/// # Errors
/// When a cgroup still holds a process.
pub fn remove_cgroups(cgroup_root: &str) -> std::io::Result<()> {
    cgroups::Cgroups::detect(cgroup_root).remove_all()
}

/// The Kubernetes version this kubelet speaks for.
pub const VERSION: &str = "v1.37.0";

/// What the node API needs to serve TLS and to know its callers.
#[derive(Clone)]
pub struct NodeApiTls {
    /// The serving certificate, which may be replaced at any time.
    pub serving: Arc<dyn ResolvesServerCert>,
    /// The authority whose client certificates are accepted, PEM.
    pub client_ca_pem: String,
}

/// Everything a kubelet is told at its start.
#[derive(Clone)]
pub struct KubeletConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Host name the node reports; label `kubernetes.io/hostname`.
    pub hostname: String,
    /// Address of the node; `status.hostIP` of its pods.
    pub node_ip: IpAddr,
    /// Where pods' volumes live (`DIR/kubelet`); logs go to its sibling `pod-logs`.
    pub root_dir: PathBuf,
    /// Unix socket of the container runtime.
    pub cri_socket: PathBuf,
    /// The cluster, as `system:node:<name>`.
    pub client: kube::Client,
    /// Certificates of the node API.
    pub tls: NodeApiTls,
    /// Where the node API listens, usually `node_ip:10250`.
    pub api_address: SocketAddr,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// Pods the node admits at most.
    pub max_pods: u32,
    /// Labels the Node object is created with, besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints the Node object is created with.
    pub taints: Vec<Taint>,
    /// Cgroup above `kubepods`, `/` for the root.
    pub cgroup_root: String,
}

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory it needs cannot be made.
    #[error("cannot prepare {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node API cannot be served.
    #[error("cannot serve the node API: {0}")]
    NodeApi(#[from] server::ServeError),
}
