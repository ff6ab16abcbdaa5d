//! The Node object: registration, status, lease; and this node's object as the rest of the kubelet sees it.

mod machine;
mod status;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coxswain_client::{Change, EventType, InformerFactory};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::KubeletConfig;
use crate::kubelet::Kubelet;
use crate::quantities::{self, Resources};

pub use machine::meminfo_kib;

const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(10);
/// A node that is not ready is looked at more often: nothing tells when its network is up.
const LOOK_UNREADY: Duration = Duration::from_millis(200);
const REPORT: Duration = Duration::from_secs(300);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The node's object, as last seen.
pub struct NodeCell {
    node: RwLock<Arc<Node>>,
    known: watch::Sender<bool>,
    changed: Notify,
}

impl NodeCell {
    /// What the kubelet knows of its node by itself.
    pub fn new(config: &KubeletConfig) -> Self {
        let node = Arc::new(first(config));
        Self { node: RwLock::new(node), known: watch::channel(false).0, changed: Notify::new() }
    }

    /// The node.
    pub fn get(&self) -> Arc<Node> {
        self.node.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, node: Arc<Node>) {
        *self.node.write().unwrap_or_else(PoisonError::into_inner) = node;
        self.known.send_replace(true);
        self.changed.notify_one();
    }

    /// Resolves when the API server has the node.
    pub async fn known(&self) {
        // The sender lives in `self`.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// What pods may have of the node.
    pub fn allocatable(&self) -> Resources {
        self.get().status.as_ref().and_then(|s| s.allocatable.clone()).unwrap_or_default()
    }

    /// Memory of the node in bytes.
    pub fn memory_bytes(&self) -> i64 {
        let node = self.get();
        let capacity = node.status.as_ref().and_then(|s| s.capacity.as_ref());
        capacity.and_then(|c| c.get("memory")).map_or(0, quantities::units)
    }
}

/// The node as it is created.
fn first(config: &KubeletConfig) -> Node {
    let mut labels = config.labels.clone();
    labels.extend(well_known(config));
    let capacity = machine::capacity(&config.root_dir, config.max_pods);
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(config.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            ..NodeStatus::default()
        }),
    }
}

fn well_known(config: &KubeletConfig) -> [(String, String); 5] {
    [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine::architecture()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// Registers the node and keeps its object true.
pub async fn run(kubelet: Arc<Kubelet>, factory: &Arc<InformerFactory>) {
    let mut status = status::observe(&kubelet, None).await;
    let node = register(&kubelet, &status).await;
    kubelet.node.set(Arc::new(node));
    tokio::join!(watch_self(&kubelet, factory), lease(&kubelet), report(&kubelet, &mut status),);
}

/// Creates the node, or brings the labels of an existing one up to date.
async fn register(kubelet: &Kubelet, status: &NodeStatus) -> Node {
    let nodes: Api<Node> = Api::all(kubelet.config.client.clone());
    let name = &kubelet.config.node_name;
    let mut wait = Duration::from_millis(20);
    loop {
        let mut node = first(&kubelet.config);
        node.status = Some(status.clone());
        let result = match nodes.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(error)) if error.code == 409 => {
                let labels: std::collections::BTreeMap<_, _> =
                    kubelet.config.labels.clone().into_iter().chain(well_known(&kubelet.config)).collect();
                let body = json!({ "metadata": { "labels": labels } });
                nodes.patch(name, &PatchParams::default(), &Patch::Merge(body)).await
            }
            result => result,
        };
        match result {
            Ok(node) => return node,
            Err(error) => tracing::debug!(%error, "node not registered yet"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_RETRY);
    }
}

/// Follows changes of the node: its pod subnet goes to the runtime, its labels count in admission.
async fn watch_self(kubelet: &Kubelet, factory: &Arc<InformerFactory>) {
    let fields = format!("metadata.name={}", kubelet.config.node_name);
    let mut changes = factory.informer_by_fields::<Node>(&fields).subscribe();
    let mut told = None;
    while let Some(change) = changes.recv().await {
        let (Change::Added(node) | Change::Updated { new: node, .. }) = change else { continue };
        let subnet = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|cidr| !cidr.is_empty());
        if let Some(subnet) = subnet.filter(|subnet| told.as_ref() != Some(subnet)) {
            match kubelet.cri.set_pod_cidr(&subnet).await {
                Ok(()) => told = Some(subnet),
                Err(error) => tracing::debug!(%error, "the runtime does not take the pod subnet"),
            }
        }
        kubelet.node.set(node);
    }
}

/// Reads the node again, where its watch may be behind.
pub async fn refresh(kubelet: &Kubelet) {
    let nodes: Api<Node> = Api::all(kubelet.config.client.clone());
    match nodes.get(&kubelet.config.node_name).await {
        Ok(node) => kubelet.node.set(Arc::new(node)),
        Err(error) => tracing::debug!(%error, "node not read again"),
    }
}

/// Reports the status when it changes, and every five minutes.
async fn report(kubelet: &Kubelet, status: &mut NodeStatus) {
    let nodes: Api<Node> = Api::all(kubelet.config.client.clone());
    let mut written: Option<(NodeStatus, Instant)> = None;
    let mut wait = Duration::from_millis(20);
    loop {
        let due =
            written.as_ref().is_none_or(|(old, at)| at.elapsed() >= REPORT || !status::alike(old, status));
        if due {
            match nodes.patch_status(&kubelet.config.node_name, &PatchParams::default(), &patch(status)).await
            {
                Ok(_) => {
                    tell_ready(kubelet, written.as_ref().map(|(old, _)| old), status);
                    written = Some((status.clone(), Instant::now()));
                }
                Err(kube::Error::Api(error)) if error.code == 404 => {
                    register(kubelet, status).await;
                }
                Err(error) => tracing::debug!(%error, "node status not written"),
            }
        }
        let ready = status::ready(status) && written.is_some();
        wait = if ready { LOOK } else { (wait * 2).min(LOOK_UNREADY) };
        // A change of the node (its pod subnet, say) is a reason to look again, as long as it is not ready.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = kubelet.node.changed.notified(), if !ready => {}
        }
        *status = status::observe(kubelet, Some(status)).await;
    }
}

fn patch(status: &NodeStatus) -> Patch<serde_json::Value> {
    Patch::Strategic(json!({ "status": status }))
}

fn tell_ready(kubelet: &Kubelet, old: Option<&NodeStatus>, new: &NodeStatus) {
    let is = status::ready(new);
    if old.is_some_and(|old| status::ready(old) == is) || (old.is_none() && !is) {
        return;
    }
    let reason = if is { "NodeReady" } else { "NodeNotReady" };
    let text = format!("Node {} status is now: {reason}", kubelet.config.node_name);
    kubelet.events.node(EventType::Normal, reason, text);
}

/// Renews the node's lease.
async fn lease(kubelet: &Kubelet) {
    let leases: Api<Lease> = Api::namespaced(kubelet.config.client.clone(), "kube-node-lease");
    let name = &kubelet.config.node_name;
    let mut wait = Duration::from_millis(100);
    loop {
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let body = json!({ "spec": spec });
        let result = match leases.patch(name, &PatchParams::default(), &Patch::Merge(body)).await {
            Err(kube::Error::Api(error)) if error.code == 404 => {
                let node = kubelet.node.get();
                let owner = OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid: node.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                };
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                };
                leases.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
            }
            result => result,
        };
        let pause = match result {
            Ok(_) => {
                wait = Duration::from_millis(100);
                RENEW
            }
            Err(error) => {
                tracing::debug!(%error, "node lease not renewed");
                wait = (wait * 2).min(LONGEST_RETRY);
                wait
            }
        };
        tokio::time::sleep(pause).await;
    }
}
