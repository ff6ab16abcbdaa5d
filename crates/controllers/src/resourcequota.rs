//! ResourceQuota: counts what is there into the status of quotas, when they change and when something is freed. What is
//! added is charged by the API server itself, in one commit with the object, so a count that is written against the quota's
//! resourceVersion has missed nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use coxswain_api::catalogue;
use coxswain_api::quota::{self, Consumer};
use coxswain_client::{Change, Client, Informer, ObjectKey, Outline, Requeue, WorkQueue};
use coxswain_meta::json::{Value, json};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, ResourceQuotaStatus, ResourceRequirements, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc;

use crate::context::{Context, ignore};

const WORKERS: usize = 4;

struct Controller {
    client: Client,
    quotas: Informer<ResourceQuota>,
    queue: Arc<WorkQueue<ObjectKey>>,
    /// Kinds that a quota counts, to be watched for what is freed.
    counted: mpsc::UnboundedSender<Consumer>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let (counted, wanted) = mpsc::unbounded_channel();
    let controller =
        Controller { client: context.client(), quotas: context.informer(), queue: WorkQueue::new(), counted };
    controller.quotas.synced().await;
    controller.quotas.feed(&controller.queue, |change| match change {
        // Charges of the API server need no count.
        Change::Updated { old, new } if old.spec == new.spec && tells_its_limits(new) => None,
        change => Some(ObjectKey::of(&**change.object())),
    });
    controller.replenish(context.informer::<Pod>(), |old, new| {
        is_over(new) != is_over(old) || old.spec.as_ref().map(requests) != new.spec.as_ref().map(requests)
    });
    controller.replenish(context.informer::<Service>(), |old, new| old.spec != new.spec);
    controller.replenish(context.informer::<PersistentVolumeClaim>(), |old, new| {
        old.spec != new.spec || old.status != new.status
    });
    let work =
        context.drive("resourcequota", controller.queue.clone(), WORKERS, |key| controller.reconcile(key));
    let watches = context.cancel.run_until_cancelled(controller.watch_counted(wanted));
    tokio::join!(work, watches);
}

/// Whether the limits in the status are those of the spec, and each has a use.
fn tells_its_limits(quota: &ResourceQuota) -> bool {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let status = quota.status.as_ref();
    let (told, used) =
        (status.and_then(|status| status.hard.as_ref()), status.and_then(|status| status.used.as_ref()));
    hard == told && hard.map(|hard| hard.keys().collect::<Vec<_>>()) == used.map(|used| used.keys().collect())
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn requests(spec: &PodSpec) -> Vec<Option<&ResourceRequirements>> {
    spec.containers.iter().map(|container| container.resources.as_ref()).collect()
}

/// The kinds that have informers of their own here.
fn has_informer(consumer: &Consumer) -> bool {
    consumer.group.is_empty()
        && matches!(consumer.plural.as_str(), "pods" | "services" | "persistentvolumeclaims")
}

impl Controller {
    fn count_again(&self, namespace: &str) {
        let quotas =
            self.quotas.list().into_iter().filter(|quota| quota.namespace().as_deref() == Some(namespace));
        quotas.for_each(|quota| self.queue.add(ObjectKey::of(&*quota)));
    }

    /// Counts again where an object of a kind is gone or frees something.
    fn replenish<K>(&self, informer: Informer<K>, frees: impl Fn(&K, &K) -> bool + Send + Sync + 'static)
    where
        K: Resource + Clone + Send + Sync + 'static,
    {
        let quotas = self.quotas.clone();
        informer.feed(&self.queue, move |change| {
            let freed = match change {
                Change::Added(_) => false,
                Change::Updated { old, new } => frees(old, new),
                Change::Deleted(_) => true,
            };
            let namespace = change.object().namespace().filter(|_| freed);
            let mut concerned = quotas.list();
            concerned.retain(|quota| namespace.is_some() && quota.namespace() == namespace);
            concerned.iter().map(|quota| ObjectKey::of(&**quota)).collect::<Vec<_>>()
        });
    }

    /// Watches every kind that a quota asks for, once.
    async fn watch_counted(&self, mut wanted: mpsc::UnboundedReceiver<Consumer>) {
        let mut seen = HashSet::new();
        let mut watches = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(consumer) = wanted.recv() => {
                    if seen.insert(consumer.clone()) {
                        watches.push(self.watch(consumer));
                    }
                }
                Some(consumer) = watches.next() => drop(seen.remove(&consumer)),
                else => return,
            }
        }
    }

    /// Counts again whenever an object of a kind is gone; ends where the kind itself is not there.
    async fn watch(&self, consumer: Consumer) -> Consumer {
        let Ok(Some(resource)) = self.resource(&consumer).await else { return consumer };
        let api = Api::<Outline>::all_with(self.client.clone(), &resource);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Delete(object)) => {
                    self.count_again(object.meta().namespace.as_deref().unwrap_or_default());
                }
                // What was freed while the watch was away is not told.
                Ok(watcher::Event::InitDone) => {
                    self.quotas.list().iter().for_each(|quota| self.queue.add(ObjectKey::of(&**quota)));
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(?consumer, %error, "watch interrupted"),
            }
        }
        consumer
    }

    /// How a kind is reached: from the catalogue, or for custom kinds from discovery.
    async fn resource(&self, consumer: &Consumer) -> Result<Option<ApiResource>, kube::Error> {
        let built_in = catalogue::KINDS
            .iter()
            .find(|kind| kind.plural == consumer.plural && kind.group == consumer.group)
            .filter(|kind| kind.namespaced && kind.verbs.contains(&"list"));
        if let Some(kind) = built_in {
            let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
            return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, kind.plural)));
        }
        if consumer.group.is_empty() {
            return Ok(None);
        }
        let groups = self.client.list_api_groups().await?.groups;
        let Some(group) = groups.into_iter().find(|group| group.name == consumer.group) else {
            return Ok(None);
        };
        let Some(version) = group.preferred_version.or_else(|| group.versions.into_iter().next()) else {
            return Ok(None);
        };
        let resources = self.client.list_api_group_resources(&version.group_version).await?.resources;
        let found =
            resources.into_iter().find(|resource| resource.name == consumer.plural && resource.namespaced);
        Ok(found.map(|resource| {
            let gvk = GroupVersionKind::gvk(&consumer.group, &version.version, &resource.kind);
            ApiResource::from_gvk_with_plural(&gvk, &consumer.plural)
        }))
    }

    /// Every object of a kind in a namespace, as of now.
    async fn objects(&self, consumer: &Consumer, namespace: &str) -> Result<Vec<Value>, kube::Error> {
        let Some(resource) = self.resource(consumer).await? else { return Ok(Vec::new()) };
        let prefix = if resource.group.is_empty() { "api" } else { "apis" };
        let path = format!("/{prefix}/{}/namespaces/{namespace}/{}", resource.api_version, resource.plural);
        let request =
            http::Request::get(path).body(Vec::new()).map_err(kube::core::request::Error::BuildRequest);
        let mut list: Value = self.client.request(request.map_err(kube::Error::BuildRequest)?).await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.namespace);
        // The count stands against this very version: read it before the objects.
        let Some(mut quota) = api.get_opt(&key.name).await? else { return Ok(Requeue::OnChange) };
        let document = json!(quota);
        let hard = quota.spec.clone().unwrap_or_default().hard.unwrap_or_default();
        let consumers: BTreeSet<Consumer> = hard.keys().filter_map(|name| Consumer::of(name)).collect();
        let mut used = BTreeMap::new();
        for consumer in consumers {
            let objects = self.objects(&consumer, &key.namespace).await?;
            let counted = quota::used(&document, &document["spec"]["hard"], &consumer, &objects);
            used.extend(counted.into_iter().map(|(name, amount)| (name, Quantity(amount.to_string()))));
            if !has_informer(&consumer) {
                let _ = self.counted.send(consumer);
            }
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref() == Some(&status) {
            return Ok(Requeue::OnChange);
        }
        quota.status = Some(status);
        let written = api.replace_status(&key.name, &PostParams::default(), &quota).await;
        match written.map(drop) {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.queue.add(key);
                Ok(Requeue::OnChange)
            }
            written => written.or_else(|error| ignore(error, &[404])).map(|()| Requeue::OnChange),
        }
    }
}
