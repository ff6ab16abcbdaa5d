//! ReplicaSet and ReplicationController: one controller over what the two kinds have in common.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::{Change, Client, EventType, Informer, ObjectKey, Recorder, Requeue, WorkQueue};
use coxswain_meta::labels::Selector;
use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::{Context, ignore};
use crate::expectations::Expectations;
use crate::owner::{self, Claim, claim, controller_of, is_active};
use plan::{Counts, Step};

/// Creations and deletions under way at a time.
const PARALLEL: usize = 16;
const WORKERS: usize = 4;

/// What the two kinds have in common.
trait Replicated:
    Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
    + Clone
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    const CONTROLLER: &'static str;
    fn selector(&self) -> Selector;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> PodTemplateSpec;
    fn status(&self) -> (Counts, i64, Vec<Value>);
}

fn selector_of(value: Option<Value>) -> Selector {
    value.and_then(|value| Selector::from_label_selector(&value).ok()).unwrap_or_else(Selector::nothing)
}

fn conditions<T: serde::Serialize>(list: Option<&Vec<T>>) -> Vec<Value> {
    list.into_iter().flatten().filter_map(|condition| serde_json::to_value(condition).ok()).collect()
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn selector(&self) -> Selector {
        selector_of(serde_json::to_value(&self.spec.selector).ok())
    }

    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.template.clone().unwrap_or_default()
    }

    fn status(&self) -> (Counts, i64, Vec<Value>) {
        let status = self.status.clone().unwrap_or_default();
        let counts = Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
        };
        (counts, status.observed_generation.unwrap_or(0), conditions(status.conditions.as_ref()))
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn selector(&self) -> Selector {
        let labels: BTreeMap<String, String> =
            self.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        if labels.is_empty() { Selector::nothing() } else { Selector::from_map(&json!(labels)) }
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
    }

    fn status(&self) -> (Counts, i64, Vec<Value>) {
        let status = self.status.clone().unwrap_or_default();
        let counts = Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
        };
        (counts, status.observed_generation.unwrap_or(0), conditions(status.conditions.as_ref()))
    }
}

/// Runs the ReplicaSet controller.
pub async fn run_replica_sets(context: &Context) {
    Controller::<ReplicaSet>::new(context).run(context).await;
}

/// Runs the ReplicationController controller.
pub async fn run_replication_controllers(context: &Context) {
    Controller::<ReplicationController>::new(context).run(context).await;
}

struct Controller<K> {
    client: Client,
    owners: Informer<K>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
}

impl<K: Replicated> Controller<K> {
    fn new(context: &Context) -> Arc<Self> {
        Arc::new(Self {
            client: context.client(),
            owners: context.informer(),
            pods: context.pods(),
            expectations: Arc::default(),
            recorder: context.recorder(K::CONTROLLER),
        })
    }

    async fn run(self: Arc<Self>, context: &Context) {
        self.owners.synced().await;
        self.pods.synced().await;
        let queue = WorkQueue::new();
        self.owners.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
        let this = self.clone();
        self.pods.feed(&queue, move |change| this.owners_of(change));
        context.drive(K::CONTROLLER, queue, WORKERS, |key| self.reconcile(key)).await;
    }

    /// The owners that a change of a pod concerns; also where expectations are met.
    fn owners_of(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let key_of = |pod: &Pod| {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == K::kind(&()))?;
            Some(ObjectKey::new(pod.namespace().unwrap_or_default(), &owner.name))
        };
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut keys: Vec<ObjectKey> = key_of(pod).into_iter().collect();
        if let Change::Updated { old, .. } = change {
            keys.extend(key_of(old).filter(|key| !keys.contains(key)));
        }
        for key in &keys {
            match change {
                Change::Deleted(_) => self.expectations.saw_deletion(key, uid),
                _ if pod.metadata.deletion_timestamp.is_some() => self.expectations.saw_deletion(key, uid),
                _ => self.expectations.saw_creation(key, uid),
            }
        }
        if keys.is_empty()
            && pod.metadata.deletion_timestamp.is_none()
            && controller_of(&pod.metadata).is_none()
        {
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let namespace = pod.namespace().unwrap_or_default();
            let owners = self
                .owners
                .in_namespace(&namespace)
                .into_iter()
                .filter(|owner| owner.selector().matches(&labels));
            keys.extend(owners.map(|owner| ObjectKey::of(&*owner)));
        }
        keys
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(owner) = self.owners.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Requeue::OnChange);
        };
        let active = self.claim_pods(&owner, &key).await?;
        let acted = if self.expectations.fulfilled(&key) && owner.meta().deletion_timestamp.is_none() {
            self.act(&owner, &key, plan::step(owner.replicas(), &active)).await
        } else {
            Ok(())
        };
        let next = self.write_status(&owner, &active, acted.as_ref().err()).await?;
        acted.map(|()| next.map_or(Requeue::OnChange, Requeue::After))
    }

    /// The active pods of an owner, after adopting and releasing.
    async fn claim_pods(&self, owner: &K, key: &ObjectKey) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let uid = owner.uid().unwrap_or_default();
        let (selector, deleting) = (owner.selector(), owner.meta().deletion_timestamp.is_some());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut active = Vec::new();
        for pod in self.pods.in_namespace(&key.namespace).into_iter().filter(|pod| is_active(pod)) {
            let selected = selector.matches(pod.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()));
            let patch = match claim(&pod.metadata, &uid, deleting, selected) {
                Claim::Keep => {
                    active.push(pod);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => owner::adopt_patch(&pod.metadata, &owner::controller_ref(owner)),
                Claim::Release => owner::release_patch(&pod.metadata, &uid),
            };
            let patched = api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            match patched {
                Ok(pod) if owner::is_controlled_by(&pod.metadata, &uid) => active.push(Arc::new(pod)),
                Ok(_) => {}
                Err(error) => ignore(error, &[404, 422])?,
            }
        }
        Ok(active)
    }

    async fn act(&self, owner: &K, key: &ObjectKey, step: Step) -> Result<(), kube::Error> {
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => self.create(owner, key, count).await,
            Step::Delete(pods) => self.delete(owner, key, pods).await,
        }
    }

    /// Makes pods, doubling the number at a time, so that a refusal costs few requests.
    async fn create(&self, owner: &K, key: &ObjectKey, count: usize) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let (pod, params) = (pod_of(owner, &key.name), PostParams::default());
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let results: Vec<_> = stream::iter(0..size)
                .map(|_| api.create(&params, &pod))
                .buffer_unordered(PARALLEL)
                .collect()
                .await;
            for result in results {
                match result {
                    Ok(made) => {
                        let (pod_key, uid) = (ObjectKey::of(&made), made.uid().unwrap_or_default());
                        self.expectations.created(key, &uid, || self.pods.get(&pod_key).is_some());
                        let message = format!("Created pod: {}", made.name_any());
                        self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        self.recorder.event(
                            owner,
                            EventType::Warning,
                            "FailedCreate",
                            format!("Error creating: {error}"),
                        );
                        return Err(error);
                    }
                }
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, owner: &K, key: &ObjectKey, pods: Vec<Arc<Pod>>) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let delete = |pod: Arc<Pod>| {
            let api = api.clone();
            async move {
                let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
                self.expectations.deleting(key, &uid);
                match api.delete(&name, &DeleteParams::default()).await {
                    Ok(_) => {
                        let message = format!("Deleted pod: {name}");
                        self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", message);
                        Ok(())
                    }
                    Err(error) => {
                        self.expectations.saw_deletion(key, &uid);
                        ignore(error, &[404])
                    }
                }
            }
        };
        let results: Vec<_> = stream::iter(pods).map(delete).buffer_unordered(PARALLEL).collect().await;
        results.into_iter().collect()
    }

    async fn write_status(
        &self,
        owner: &K,
        active: &[Arc<Pod>],
        failure: Option<&kube::Error>,
    ) -> Result<Option<std::time::Duration>, kube::Error> {
        let labels = owner.template().metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
        let is_labeled = |pod: &Pod| {
            let of_pod = pod.metadata.labels.as_ref();
            labels.iter().all(|(key, value)| of_pod.and_then(|all| all.get(key)) == Some(value))
        };
        let (counts, next) = plan::count(active, is_labeled, owner.min_ready_seconds(), Timestamp::now());
        let generation = owner.meta().generation.unwrap_or(0);
        let (old_counts, observed, conditions) = owner.status();
        let new_conditions = with_failure(&conditions, failure);
        if (counts, generation, &new_conditions) == (old_counts, observed, &conditions) {
            return Ok(next);
        }
        let mut status = json!({ "replicas": counts.replicas, "fullyLabeledReplicas": counts.fully_labeled,
            "readyReplicas": counts.ready, "availableReplicas": counts.available, "observedGeneration": generation });
        if new_conditions != conditions {
            status["conditions"] = new_conditions.into();
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &owner.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({ "metadata": { "uid": owner.uid() }, "status": status }));
        match api.patch_status(&owner.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => Ok(next),
            Err(error) => ignore(error, &[404, 409]).map(|()| next),
        }
    }
}

/// The conditions with `ReplicaFailure` as it is now.
fn with_failure(conditions: &[Value], failure: Option<&kube::Error>) -> Vec<Value> {
    let is_failure = |condition: &&Value| condition["type"] == "ReplicaFailure";
    let had = conditions.iter().find(is_failure);
    let mut new: Vec<Value> = conditions.iter().filter(|condition| !is_failure(condition)).cloned().collect();
    match (failure, had) {
        (Some(_), Some(had)) => new.push(had.clone()),
        (Some(error), None) => new.push(json!({ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": error.to_string(), "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()) })),
        (None, _) => {}
    }
    new
}

fn pod_of<K: Replicated>(owner: &K, name: &str) -> Pod {
    let template = owner.template();
    let metadata = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![owner::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
