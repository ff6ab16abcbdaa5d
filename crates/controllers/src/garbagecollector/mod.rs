//! Garbage collection by owner references: background, foreground and orphaning (KEP "garbage collection", API concepts).

mod graph;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use coxswain_client::{Client, Outline, Requeue, WorkQueue};
use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ignore};
use crate::discovery::{Discovered, discover};
use graph::{Decision, Graph, Node, Owner};

const WORKERS: usize = 8;
/// Definitions that change within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);

struct Collector {
    client: Client,
    /// Every resource that was ever watched; nodes name theirs by its index.
    kinds: RwLock<Vec<Watched>>,
    graph: Mutex<Graph>,
    queue: Arc<WorkQueue<String>>,
}

/// A resource under watch.
struct Watched {
    kind: Arc<Discovered>,
    cancel: CancellationToken,
}

/// Runs the collector.
pub async fn run(context: &Context) {
    let collector = Arc::new(Collector {
        client: context.client(),
        kinds: RwLock::default(),
        graph: Mutex::default(),
        queue: WorkQueue::new(),
    });
    let work =
        context.drive("garbagecollector", collector.queue.clone(), WORKERS, |uid| collector.reconcile(uid));
    tokio::join!(context.cancel.run_until_cancelled(collector.follow_resources()), work);
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kinds(&self) -> RwLockReadGuard<'_, Vec<Watched>> {
        self.kinds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn kind(&self, at: usize) -> Arc<Discovered> {
        self.kinds()[at].kind.clone()
    }

    fn api(&self, kind: &Discovered, namespace: &str) -> Api<DynamicObject> {
        match kind.namespaced && !namespace.is_empty() {
            true => Api::namespaced_with(self.client.clone(), namespace, &kind.resource),
            false => Api::all_with(self.client.clone(), &kind.resource),
        }
    }

    /// Watches every resource there is, those of definitions and services as they come and go.
    async fn follow_resources(&self) {
        let mut watches = FuturesUnordered::new();
        let mut changes = futures::stream::select_all(
            [("apiextensions.k8s.io", "CustomResourceDefinition"), ("apiregistration.k8s.io", "APIService")]
                .map(|(group, kind)| self.resource_changes(group, kind)),
        );
        loop {
            // What comes in a burst is answered once.
            let mut due = None;
            match discover(&self.client).await {
                Ok(found) => {
                    self.take_resources(found).into_iter().for_each(|at| watches.push(self.watch(at)))
                }
                Err(error) => {
                    tracing::debug!(%error, "discovery failed");
                    due = Some(Instant::now() + RETRY);
                }
            }
            loop {
                tokio::select! {
                    Some(()) = changes.next() => due = due.or(Some(Instant::now() + SETTLE)),
                    Some(()) = watches.next() => {}
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
                }
            }
        }
    }

    /// A signal whenever an object changes that brings resources.
    fn resource_changes(&self, group: &str, kind: &str) -> BoxStream<'static, ()> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        let api = Api::<Outline>::all_with(self.client.clone(), &resource);
        watcher(api, watcher::Config::default()).default_backoff().map(drop).boxed()
    }

    /// Takes in the resources there are now; returns those that are new, and lets go of those that are not there.
    fn take_resources(&self, mut found: Vec<Discovered>) -> Vec<usize> {
        found.retain(|kind| {
            kind.serves(&["delete", "list", "watch", "patch"]) && kind.resource.plural != "events"
        });
        let mut kinds = self.kinds.write().unwrap_or_else(PoisonError::into_inner);
        for watched in kinds.iter().filter(|watched| !found.contains(&watched.kind)) {
            watched.cancel.cancel();
        }
        found.retain(|kind| {
            !kinds.iter().any(|watched| *watched.kind == *kind && !watched.cancel.is_cancelled())
        });
        let first = kinds.len();
        kinds.extend(
            found.into_iter().map(|kind| Watched { kind: Arc::new(kind), cancel: CancellationToken::new() }),
        );
        (first..kinds.len()).collect()
    }

    /// Keeps the graph true to the objects of one kind.
    async fn watch(&self, at: usize) {
        let (kind, cancel) = (self.kind(at), self.kinds()[at].cancel.clone());
        let resource = &kind.resource;
        let mut events = std::pin::pin!(
            watcher(Api::<Outline>::all_with(self.client.clone(), resource), watcher::Config::default())
                .default_backoff()
        );
        let mut listed = HashSet::new();
        while let Some(Some(event)) = cancel.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(object.uid());
                    self.put(at, &object);
                }
                Ok(watcher::Event::InitDone) => {
                    let missing = self.graph().missing(at, &listed);
                    missing.iter().for_each(|uid| self.remove(uid));
                }
                Ok(watcher::Event::Apply(object)) => self.put(at, &object),
                Ok(watcher::Event::Delete(object)) => {
                    self.remove(object.meta().uid.as_deref().unwrap_or_default())
                }
                Err(error) => tracing::debug!(kind = resource.kind, %error, "watch interrupted"),
            }
        }
    }

    fn put(&self, kind: usize, object: &Outline) {
        let uid = object.uid().unwrap_or_default();
        let concerned = self.graph().put(uid, Node::of(kind, object.meta()));
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
                let waits_for_itself =
                    self.graph_dependents(uid).iter().any(|(_, dependent)| dependent.is_foreground());
                if foreground && waits_for_itself {
                    // A circle, or what looks like one: somebody has to stop blocking.
                    self.unblock(node).await?;
                }
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
                let api = self.api(&self.kind(node.kind), &node.key.namespace);
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
        let (group, _) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let named = |kind: &Discovered| {
            let resource = &kind.resource;
            (resource.group.as_str(), &resource.kind) == (group, &owner.kind)
        };
        let known = self
            .kinds()
            .iter()
            .find(|watched| !watched.cancel.is_cancelled() && named(&watched.kind))
            .map(|watched| watched.kind.clone());
        let Some(kind) = known else { return Ok(Owner::Solid) };
        if kind.namespaced && namespace.is_empty() {
            return Ok(Owner::Absent);
        }
        let found = self.api(&kind, namespace).get_metadata_opt(&owner.name).await?;
        Ok(if found.is_some_and(|found| found.metadata.uid.as_deref() == Some(&owner.uid)) {
            Owner::Solid
        } else {
            Owner::Absent
        })
    }

    /// Lets the owners of an object go before it does.
    async fn unblock(&self, node: &Node) -> Result<(), kube::Error> {
        let api = self.api(&self.kind(node.kind), &node.key.namespace);
        let Some(current) = api.get_metadata_opt(&node.key.name).await? else { return Ok(()) };
        let mut owners = current.metadata.owner_references.clone().unwrap_or_default();
        if owners.iter().all(|owner| owner.block_owner_deletion != Some(true)) {
            return Ok(());
        }
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version, "ownerReferences": owners } });
        let patched = api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404]))
    }

    async fn unlink(&self, node: &Node, leaving: &[String]) -> Result<(), kube::Error> {
        let api = self.api(&self.kind(node.kind), &node.key.namespace);
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
        let api = self.api(&self.kind(node.kind), &node.key.namespace);
        let Some(current) = api.get_metadata_opt(&node.key.name).await? else { return Ok(()) };
        let finalizers = current.metadata.finalizers.clone().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|name| *name != finalizer).collect();
        let patch = json!({ "metadata": { "resourceVersion": current.metadata.resource_version, "finalizers": kept } });
        let patched = api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).or_else(|error| ignore(error, &[404]))
    }
}
