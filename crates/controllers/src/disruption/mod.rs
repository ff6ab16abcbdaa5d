//! PodDisruptionBudget: how many pods may be evicted now. The API server's eviction takes from it.

mod plan;

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::json::json;
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::context::{Context, ignore};
use crate::owner::controller_of;

const WORKERS: usize = 2;

struct Controller {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
    queue: Arc<WorkQueue<ObjectKey>>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller {
        client: context.client(),
        budgets: context.informer(),
        pods: context.pods(),
        deployments: context.informer(),
        replica_sets: context.informer(),
        stateful_sets: context.informer(),
        controllers: context.informer(),
        queue: WorkQueue::new(),
    };
    tokio::join!(
        controller.budgets.synced(),
        controller.pods.synced(),
        controller.deployments.synced(),
        controller.replica_sets.synced(),
        controller.stateful_sets.synced(),
        controller.controllers.synced(),
    );
    controller.budgets.feed(&controller.queue, |change| Some(ObjectKey::of(&**change.object())));
    let budgets = controller.budgets.clone();
    controller.pods.feed(&controller.queue, move |change| {
        let pod = change.object();
        let mut concerned = budgets.list();
        concerned.retain(|budget| budget.namespace() == pod.namespace() && selects(budget, pod));
        concerned.iter().map(|budget| ObjectKey::of(&**budget)).collect::<Vec<_>>()
    });
    controller.follow_scale(&controller.deployments, |deployment| deployment.spec.replicas);
    controller.follow_scale(&controller.replica_sets, |set| set.spec.replicas);
    controller.follow_scale(&controller.stateful_sets, |set| set.spec.replicas);
    controller.follow_scale(&controller.controllers, |set| set.spec.as_ref().and_then(|spec| spec.replicas));
    let queue = controller.queue.clone();
    context.drive("disruption", queue, WORKERS, |key| controller.reconcile(key)).await;
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector =
        budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(|selector| json!(selector));
    let selector = selector.and_then(|selector| Selector::from_label_selector(&selector).ok());
    selector.is_some_and(|selector| {
        selector.matches_json(&json!(pod.metadata.labels.clone().unwrap_or_default()))
    })
}

impl Controller {
    /// A change of scale concerns every budget of the namespace: budgets are few.
    fn follow_scale<K>(&self, informer: &Informer<K>, scale: fn(&K) -> Option<i32>)
    where
        K: kube::Resource + Clone + Send + Sync + 'static,
    {
        let budgets = self.budgets.clone();
        informer.feed(&self.queue, move |change| {
            let changed = match change {
                coxswain_client::Change::Updated { old, new } => scale(old) != scale(new),
                _ => true,
            };
            let mut concerned = budgets.list();
            concerned.retain(|budget| changed && budget.namespace() == change.object().namespace());
            concerned.iter().map(|budget| ObjectKey::of(&**budget)).collect::<Vec<_>>()
        });
    }

    /// What the controllers of the pods ask for, each counted once; pods of nobody are not counted.
    fn scale(&self, pods: &[&Pod]) -> i32 {
        let mut scales = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            let key = ObjectKey::new(pod.namespace().unwrap_or_default(), &owner.name);
            let (uid, replicas) = match owner.kind.as_str() {
                "ReplicaSet" => {
                    let Some(set) = self.replica_sets.get(&key) else { continue };
                    let deployment = controller_of(&set.metadata)
                        .filter(|owner| owner.kind == "Deployment")
                        .and_then(|owner| self.deployments.get(&ObjectKey::new(&key.namespace, &owner.name)));
                    match deployment {
                        Some(deployment) => (deployment.uid(), deployment.spec.replicas),
                        None => (set.uid(), set.spec.replicas),
                    }
                }
                "StatefulSet" => {
                    let Some(set) = self.stateful_sets.get(&key) else { continue };
                    (set.uid(), set.spec.replicas)
                }
                "ReplicationController" => {
                    let Some(set) = self.controllers.get(&key) else { continue };
                    (set.uid(), set.spec.as_ref().and_then(|spec| spec.replicas))
                }
                _ => continue,
            };
            scales.insert(uid, replicas.unwrap_or(1));
        }
        scales.values().sum()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(budget) = self.budgets.get(&key) else { return Ok(Requeue::OnChange) };
        let Some(spec) = &budget.spec else { return Ok(Requeue::OnChange) };
        let mut pods = self.pods.list();
        pods.retain(|pod| pod.namespace().as_deref() == Some(&key.namespace) && selects(&budget, pod));
        let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        let expected = plan::expected(spec, pods.len(), self.scale(&pods));
        let (status, again) = plan::status(
            budget.status.as_ref(),
            budget.metadata.generation,
            expected,
            &pods,
            Timestamp::now(),
        );
        let again = again.map_or(Requeue::OnChange, Requeue::After);
        if budget.status.as_ref() == Some(&status) {
            return Ok(again);
        }
        // Against the version that was read: an eviction in between has taken from it.
        let mut budget = (*budget).clone();
        budget.status = Some(status);
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = api.replace_status(&key.name, &PostParams::default(), &budget).await;
        // After a conflict the newer version is on its way.
        written.map(drop).or_else(|error| ignore(error, &[404, 409])).map(|()| again)
    }
}
