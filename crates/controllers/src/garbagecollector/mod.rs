//! Garbage collection by owner references: background, foreground and orphaning (KEP "garbage collection", API concepts).

mod graph;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_api::catalogue::{KINDS, Kind};
use coxswain_client::{Client, Requeue, WorkQueue};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

use crate::context::{Context, ignore};
use crate::namespace::{is_stored, resource_of};
use graph::{Decision, Graph, Node, Owner};

const WORKERS: usize = 8;

struct Collector {
    client: Client,
    kinds: Vec<&'static Kind>,
    graph: Mutex<Graph>,
    queue: Arc<WorkQueue<String>>,
}

/// Runs the collector.
pub async fn run(context: &Context) {
    let collected = |kind: &&Kind| {
        is_stored(kind)
            && kind.verbs.contains(&"delete")
            && kind.verbs.contains(&"watch")
            && kind.plural != "events"
    };
    let collector = Arc::new(Collector {
        client: context.client(),
        kinds: KINDS.iter().filter(collected).collect(),
        graph: Mutex::default(),
        queue: WorkQueue::new(),
    });
    let watches = (0..collector.kinds.len()).map(|at| {
        let (collector, cancel) = (collector.clone(), context.cancel.clone());
        async move { cancel.run_until_cancelled(collector.watch(at)).await }
    });
    let work =
        context.drive("garbagecollector", collector.queue.clone(), WORKERS, |uid| collector.reconcile(uid));
    tokio::join!(futures::future::join_all(watches), work);
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        let resource = resource_of(kind);
        match kind.namespaced && !namespace.is_empty() {
            true => Api::namespaced_with(self.client.clone(), namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Keeps the graph true to the objects of one kind.
    async fn watch(&self, at: usize) {
        let resource = resource_of(self.kinds[at]);
        let mut events = std::pin::pin!(
            watcher(
                Api::<PartialObjectMeta<DynamicObject>>::all_with(self.client.clone(), &resource),
                watcher::Config::default()
            )
            .default_backoff()
        );
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(object.metadata.uid.clone());
                    self.put(at, &object);
                }
                Ok(watcher::Event::InitDone) => {
                    let missing = self.graph().missing(at, &listed);
                    missing.iter().for_each(|uid| self.remove(uid));
                }
                Ok(watcher::Event::Apply(object)) => self.put(at, &object),
                Ok(watcher::Event::Delete(object)) => {
                    self.remove(object.metadata.uid.as_deref().unwrap_or_default())
                }
                Err(error) => tracing::debug!(kind = self.kinds[at].kind, %error, "watch interrupted"),
            }
        }
    }

    fn put(&self, kind: usize, object: &PartialObjectMeta<DynamicObject>) {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let concerned = self.graph().put(uid, Node::of(kind, &object.metadata));
        concerned.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn remove(&self, uid: &str) {
        let concerned = self.graph().remove(uid);
        concerned.into_iter().for_each(|uid| self.queue.add(uid));
    }

    async fn reconcile(&self, uid: String) -> Result<Requeue, kube::Error> {
        let Some(node) = self.graph().get(&uid).cloned() else { return Ok(Requeue::OnChange) };
        if node.is_orphaning() {
            for (_, dependent) in self.graph_dependents(&uid) {
                self.unlink(&dependent, std::slice::from_ref(&uid)).await?;
            }
            self.remove_finalizer(&node, graph::ORPHAN).await?;
        } else if node.is_foreground() {
            let blocks = |dependent: &Node| {
                dependent
                    .owners
                    .iter()
                    .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
            };
            if !self.graph_dependents(&uid).iter().any(|(_, dependent)| blocks(dependent)) {
                self.remove_finalizer(&node, graph::FOREGROUND).await?;
            }
        } else if !node.owners.is_empty() && !node.deleting {
            self.judge(&uid, &node).await?;
        }
        Ok(Requeue::OnChange)
    }

    fn graph_dependents(&self, uid: &str) -> Vec<(String, Node)> {
        self.graph().dependents(uid)
    }

    async fn judge(&self, uid: &str, node: &Node) -> Result<(), kube::Error> {
        let mut owners = Vec::with_capacity(node.owners.len());
        for owner in &node.owners {
            owners.push((owner.uid.clone(), self.state_of(owner, &node.key.namespace).await?));
        }
        match graph::decide(&owners, !self.graph_dependents(uid).is_empty()) {
            Decision::Keep => Ok(()),
            Decision::Unlink(leaving) => self.unlink(node, &leaving).await,
            Decision::Delete { foreground } => {
                let policy = match () {
                    () if foreground || node.finalizers.iter().any(|name| name == graph::FOREGROUND) => {
                        PropagationPolicy::Foreground
                    }
                    () if node.finalizers.iter().any(|name| name == graph::ORPHAN) => {
                        PropagationPolicy::Orphan
                    }
                    () => PropagationPolicy::Background,
                };
                let params = DeleteParams {
                    propagation_policy: Some(policy),
                    preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
                    ..DeleteParams::default()
                };
                let api = self.api(self.kinds[node.kind], &node.key.namespace);
                api.delete(&node.key.name, &params)
                    .await
                    .map(drop)
                    .or_else(|error| ignore(error, &[404, 409]))
            }
        }
    }

    /// How an owner stands; one that the graph does not know is asked for.
    async fn state_of(&self, owner: &OwnerReference, namespace: &str) -> Result<Owner, kube::Error> {
        if let Some(node) = self.graph().get(&owner.uid) {
            return Ok(if node.is_foreground() { Owner::Waiting } else { Owner::Solid });
        }
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let Some(kind) = coxswain_api::catalogue::by_gvk(group, version, &owner.kind) else {
            return Ok(Owner::Solid);
        };
        if kind.namespaced && namespace.is_empty() {
            return Ok(Owner::Absent);
        }
        let found = self.api(kind, namespace).get_metadata_opt(&owner.name).await?;
        Ok(if found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&owner.uid)) {
            Owner::Solid
        } else {
            Owner::Absent
        })
    }

    async fn unlink(&self, node: &Node, leaving: &[String]) -> Result<(), kube::Error> {
        let api = self.api(self.kinds[node.kind], &node.key.namespace);
        let Some(current) = api.get_metadata_opt(&node.key.name).await? else { return Ok(()) };
        let owners = current.metadata.owner_references.clone().unwrap_or_default();
        let kept: Vec<_> = owners.iter().filter(|owner| !leaving.contains(&owner.uid)).collect();
        if kept.len() == owners.len() {
            return Ok(());
        }
        let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version, "ownerReferences": kept } });
        let patched = api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404]))
    }

    async fn remove_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), kube::Error> {
        let api = self.api(self.kinds[node.kind], &node.key.namespace);
        let Some(current) = api.get_metadata_opt(&node.key.name).await? else { return Ok(()) };
        let finalizers = current.metadata.finalizers.clone().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|name| *name != finalizer).collect();
        let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version, "finalizers": kept } });
        let patched = api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404]))
    }
}
