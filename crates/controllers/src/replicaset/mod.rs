//! ReplicaSet and ReplicationController: one controller over what the two kinds have in common.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::{Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Context, ignore, message};
use crate::owner::is_active;
use crate::podcontrol::{Owner, PodControl, pod_of, selector_of};
use plan::{Counts, Step};

const WORKERS: usize = 4;

/// What the two kinds have in common.
trait Replicated: Owner {
    const CONTROLLER: &'static str;
    fn selector(&self) -> Selector;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> PodTemplateSpec;
    fn status(&self) -> (Counts, i64, Vec<Value>);
}

fn conditions<T: serde::Serialize>(list: Option<&Vec<T>>) -> Vec<Value> {
    list.into_iter().flatten().filter_map(|condition| serde_json::to_value(condition).ok()).collect()
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn selector(&self) -> Selector {
        selector_of(&self.spec.selector)
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
        if labels.is_empty() {
            Selector::nothing()
        } else {
            Selector::from_map(&coxswain_meta::json!(labels))
        }
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
    owners: Informer<K>,
    control: PodControl,
}

impl<K: Replicated> Controller<K> {
    fn new(context: &Context) -> Arc<Self> {
        Arc::new(Self { owners: context.informer(), control: PodControl::new(context, K::CONTROLLER) })
    }

    async fn run(self: Arc<Self>, context: &Context) {
        self.owners.synced().await;
        self.control.pods.synced().await;
        let queue = WorkQueue::new();
        self.owners.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
        let this = self.clone();
        self.control
            .pods
            .feed(&queue, move |change| this.control.owners_of(&this.owners, change, K::selector));
        context.drive(K::CONTROLLER, queue, WORKERS, |key| self.reconcile(key)).await;
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(owner) = self.owners.get(&key) else {
            self.control.expectations.forget(&key);
            return Ok(Requeue::OnChange);
        };
        let active = self.control.claim(&*owner, &owner.selector(), None, is_active).await?;
        let acted = if self.control.expectations.fulfilled(&key) && owner.meta().deletion_timestamp.is_none()
        {
            self.act(&owner, plan::step(owner.replicas(), &active)).await
        } else {
            Ok(())
        };
        let next = self.write_status(&owner, &active, acted.as_ref().err()).await?;
        acted.map(|()| next.map_or(Requeue::OnChange, Requeue::After))
    }

    async fn act(&self, owner: &K, step: Step) -> Result<(), kube::Error> {
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => {
                let mut pod = pod_of(owner, owner.template());
                pod.metadata.generate_name = Some(format!("{}-", owner.name_any()));
                self.control.create(owner, std::iter::repeat_n(pod, count)).await.1
            }
            Step::Delete(pods) => self.control.delete(owner, pods).await.1,
        }
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
        let api: Api<K> =
            Api::namespaced(self.control.client.clone(), &owner.namespace().unwrap_or_default());
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
            "message": message(error), "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()) })),
        (None, _) => {}
    }
    new
}
