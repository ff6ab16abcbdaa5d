//! Nodes: their share of the pod addresses, whether they live, and the pods that have to leave them.

mod plan;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use coxswain_client::{Change, Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::context::{Config, Context, ignore};
use crate::pods;

struct Lifecycle {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
}

/// Runs the lifecycle controller.
pub async fn run_lifecycle(context: &Context) {
    let controller = Arc::new(Lifecycle {
        client: context.client(),
        nodes: context.informer(),
        leases: context.informer(),
        pods: context.pods(),
    });
    controller.nodes.synced().await;
    controller.leases.synced().await;
    controller.pods.synced().await;
    let nodes = WorkQueue::new();
    controller.nodes.feed(&nodes, |change| [change.object().name_any()]);
    controller.leases.feed(&nodes, |change| {
        // Renewals are looked at when the last one runs out; only the first and the end of a lease are news.
        let news = !matches!(change, Change::Updated { .. })
            && change.object().namespace().as_deref() == Some("kube-node-lease");
        news.then(|| change.object().name_any())
    });
    let pods = WorkQueue::new();
    let this = controller.clone();
    controller.pods.feed(&pods, move |change| {
        let pod = change.object();
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        this.nodes
            .get(&ObjectKey::cluster(node))
            .filter(|node| is_evicting(node))
            .map(|_| ObjectKey::of(&**pod))
    });
    let this = controller.clone();
    controller.nodes.feed(&pods, move |change| {
        if is_evicting(change.object()) { this.pods_on(&change.object().name_any()) } else { Vec::new() }
    });
    let lifecycle = context.drive("node-lifecycle", nodes, 2, |name| controller.reconcile(name));
    let eviction = context.drive("taint-eviction", pods, 2, |key| controller.evict(key));
    tokio::join!(lifecycle, eviction);
}

fn is_evicting(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.effect == "NoExecute")
}

impl Lifecycle {
    fn pods_on(&self, node: &str) -> Vec<ObjectKey> {
        let on_node =
            |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
        self.pods.list().into_iter().filter(on_node).map(|pod| ObjectKey::of(&*pod)).collect()
    }

    async fn reconcile(&self, name: String) -> Result<Requeue, kube::Error> {
        let Some(node) = self.nodes.get(&ObjectKey::cluster(&name)) else { return Ok(Requeue::OnChange) };
        let now = Timestamp::now();
        let api: Api<Node> = Api::all(self.client.clone());
        if let Some(taints) = plan::taints(&node, now) {
            let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": taints } });
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404, 409]))?;
        }
        let lease = self.leases.get(&ObjectKey::new("kube-node-lease", &name));
        let renewed =
            lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|MicroTime(at)| *at));
        let renewed = renewed.or(node.metadata.creation_timestamp.as_ref().map(|Time(at)| *at));
        match plan::until_silent(renewed, now) {
            Some(left) => Ok(Requeue::After(left + std::time::Duration::from_millis(100))),
            None => self.mark_unknown(&node, now).await.map(|()| Requeue::OnChange),
        }
    }

    /// A node that is not heard of: what its conditions say is no longer known, and its pods are not ready.
    async fn mark_unknown(&self, node: &Node, now: Timestamp) -> Result<(), kube::Error> {
        let mut conditions =
            node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown") {
            return Ok(());
        }
        for condition in conditions.iter_mut().filter(|condition| condition.status != "Unknown") {
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(Time(now));
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "status": { "conditions": conditions } });
        let patched = api.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404, 409]))?;
        for key in self.pods_on(&node.name_any()) {
            let Some(pod) = self.pods.get(&key) else { continue };
            let mut conditions =
                pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
            let Some(ready) = conditions
                .iter_mut()
                .find(|condition| condition.type_ == "Ready" && condition.status == "True")
            else {
                continue;
            };
            ready.status = "False".into();
            ready.last_transition_time = Some(Time(now));
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": conditions } });
            let patched = pods.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404, 409]))?;
        }
        Ok(())
    }

    async fn evict(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(pod) = self.pods.get(&key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(Requeue::OnChange);
        };
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| self.nodes.get(&ObjectKey::cluster(spec.node_name.as_deref()?)));
        let Some(node) = node else { return Ok(Requeue::OnChange) };
        match plan::eviction(&pod, &node, Timestamp::now()) {
            None => Ok(Requeue::OnChange),
            Some(left) if !left.is_zero() => Ok(Requeue::After(left)),
            Some(_) => {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
                let why = "Taint manager: deleting due to NoExecute taint";
                let patch = Patch::Strategic(pods::disruption(&pod, "DeletionByTaintManager", why));
                let patched = api.patch_status(&key.name, &PatchParams::default(), &patch).await;
                patched.map(drop).or_else(|error| ignore(error, &[404, 409]))?;
                let deleted = api.delete(&key.name, &DeleteParams::default()).await;
                deleted.map(drop).or_else(|error| ignore(error, &[404])).map(|()| Requeue::OnChange)
            }
        }
    }
}

/// Gives every node a share of the pod addresses.
pub async fn run_ipam(context: &Context) {
    let (client, nodes): (_, Informer<Node>) = (context.client(), context.informer());
    nodes.synced().await;
    let queue = WorkQueue::new();
    nodes.feed(&queue, |change| {
        change
            .object()
            .spec
            .as_ref()
            .is_none_or(|spec| spec.pod_cidr.is_none())
            .then(|| change.object().name_any())
    });
    // One worker: a share is given when its write has been seen, so that no two nodes get the same.
    let given = std::sync::Mutex::new(HashSet::<String>::new());
    let assign = |name: String| {
        let (client, nodes, given) = (client.clone(), &nodes, &given);
        async move {
            let Some(node) = nodes.get(&ObjectKey::cluster(&name)) else { return Ok(Requeue::OnChange) };
            if node.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some()) {
                return Ok(Requeue::OnChange);
            }
            let used = nodes.list().into_iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.clone());
            let share = {
                let mut given = given.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                given.extend(used);
                let Some(share) = free_share(&context.config, &given) else {
                    tracing::error!(node = name, "no pod addresses are left for the node");
                    return Ok(Requeue::OnChange);
                };
                given.insert(share.clone());
                share
            };
            let patch = json!({ "metadata": { "uid": node.uid() }, "spec": { "podCIDR": share, "podCIDRs": [share] } });
            let patched =
                Api::<Node>::all(client).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404])).map(|()| Requeue::OnChange)
        }
    };
    context.drive("node-ipam", queue, 1, assign).await;
}

fn free_share(config: &Config, used: &HashSet<String>) -> Option<String> {
    let ((network, length), share) = (config.pod_cidr, config.node_prefix_length);
    let shares = (0..1u32 << (share - length)).map(|at| {
        let address = Ipv4Addr::from(u32::from(network) + (at << (32 - share)));
        format!("{address}/{share}")
    });
    shares.into_iter().find(|share| !used.contains(share))
}
