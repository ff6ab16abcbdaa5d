//! Deployment: rolls its pods from one template to the next by sizing ReplicaSets.

mod plan;
mod sets;
mod status;

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_client::{Client, EventType, Informer, ObjectKey, Recorder, Requeue, WorkQueue};
use coxswain_meta::json::to_value;
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::context::{Context, ignore};
use crate::owner::{self, Claim, claim, controller_of, is_active};
use plan::{Rollout, Sizes, Strategy};
pub use sets::template_hash;
use sets::{DESIRED, MOST, REVISION, Sets, size_of};

const WORKERS: usize = 4;

struct Controller {
    client: Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Arc::new(Controller {
        client: context.client(),
        deployments: context.informer(),
        sets: context.informer(),
        pods: context.pods(),
        recorder: context.recorder("deployment-controller"),
    });
    controller.deployments.synced().await;
    controller.sets.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::new();
    controller.deployments.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    let this = controller.clone();
    controller.sets.feed(&queue, move |change| this.deployments_of(change.object()));
    let this = controller.clone();
    // Only Recreate waits for pods, and only for them to end.
    controller.pods.feed(&queue, move |change| {
        let ended = matches!(change, coxswain_client::Change::Deleted(_)) || !is_active(change.object());
        if ended { this.deployment_of_pod(change.object()) } else { None }
    });
    context.drive("deployment", queue, WORKERS, |key| controller.reconcile(key)).await;
}

impl Controller {
    fn deployments_of(&self, set: &ReplicaSet) -> Vec<ObjectKey> {
        let namespace = set.namespace().unwrap_or_default();
        if let Some(owner) = controller_of(&set.metadata) {
            return if owner.kind == "Deployment" {
                vec![ObjectKey::new(namespace, &owner.name)]
            } else {
                Vec::new()
            };
        }
        let labels = set.metadata.labels.clone().unwrap_or_default();
        let selecting = self
            .deployments
            .in_namespace(&namespace)
            .into_iter()
            .filter(|deployment| selector(deployment).matches(&labels));
        selecting.map(|deployment| ObjectKey::of(&*deployment)).collect()
    }

    fn deployment_of_pod(&self, pod: &Pod) -> Option<ObjectKey> {
        let namespace = pod.namespace().unwrap_or_default();
        let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
        let set = self.sets.get(&ObjectKey::new(&namespace, &owner.name))?;
        self.deployments_of(&set).pop()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(Requeue::OnChange) };
        let sets = Sets::of(&deployment, self.claim_sets(&deployment, &key).await?);
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(&deployment, &sets, None).await;
        }
        let spec = deployment.spec.clone();
        let strategy = strategy(&deployment);
        let rollout = Rollout {
            replicas: spec.replicas.unwrap_or(1),
            strategy,
            paused: spec.paused == Some(true),
            new: sets.new.as_deref().map(sets::as_planned),
            old: sets.old.iter().map(|set| sets::as_planned(set)).collect(),
            old_pods_run: self.old_pods_run(&sets, &key),
        };
        self.mark_revision(&deployment, &sets, &rollout).await?;
        let sizes = plan::next(&rollout);
        let recreate_waits =
            strategy == Strategy::Recreate && (rollout.old_pods_run || sizes.old.iter().any(Option::is_some));
        let created = if sets.new.is_none() && !rollout.paused && !recreate_waits {
            Some(self.create_set(&deployment, &sets, &rollout).await?)
        } else {
            self.resize(&deployment, &sets, &rollout, &sizes).await?;
            None
        };
        self.clean_up(&deployment, &sets).await?;
        self.write_status(&deployment, &sets, created.flatten().as_deref()).await
    }

    async fn claim_sets(
        &self,
        deployment: &Deployment,
        key: &ObjectKey,
    ) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let uid = deployment.uid().unwrap_or_default();
        let (selector, deleting) = (selector(deployment), deployment.metadata.deletion_timestamp.is_some());
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut owned = Vec::new();
        for set in self.sets.in_namespace(&key.namespace) {
            let selected = selector.matches(&set.metadata.labels.clone().unwrap_or_default());
            let patch = match claim(&set.metadata, &uid, deleting, selected) {
                Claim::Keep => {
                    owned.push(set);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => owner::adopt_patch(&set.metadata, &owner::controller_ref(deployment)),
                Claim::Release => owner::release_patch(&set.metadata, &uid),
            };
            match api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(set) if owner::is_controlled_by(&set.metadata, &uid) => owned.push(Arc::new(set)),
                Ok(_) => {}
                Err(error) => ignore(error, &[404, 422])?,
            }
        }
        Ok(owned)
    }

    fn old_pods_run(&self, sets: &Sets, key: &ObjectKey) -> bool {
        let old: Vec<&str> = sets.old.iter().filter_map(|set| set.metadata.uid.as_deref()).collect();
        self.pods.in_namespace(&key.namespace).iter().any(|pod| {
            let ended = matches!(
                pod.status.as_ref().and_then(|status| status.phase.as_deref()),
                Some("Succeeded" | "Failed")
            );
            !ended && controller_of(&pod.metadata).is_some_and(|owner| old.contains(&owner.uid.as_str()))
        })
    }

    /// Writes the revision of the current template to its ReplicaSet and to the deployment.
    async fn mark_revision(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        rollout: &Rollout,
    ) -> Result<(), kube::Error> {
        let Some(new) = &sets.new else { return Ok(()) };
        let revision = sets.revision();
        let replicas = rollout.replicas;
        let wanted =
            sets::annotations(deployment, Some(new), revision, replicas, rollout.strategy.most(replicas));
        // Sizes are written together with the scaling they belong to.
        let is_size = |key: &String| key == DESIRED || key == MOST;
        let existing = new.metadata.annotations.clone().unwrap_or_default();
        let changed: HashMap<_, _> =
            wanted.iter().filter(|(key, value)| !is_size(key) && existing.get(*key) != Some(value)).collect();
        let namespace = deployment.namespace().unwrap_or_default();
        if !changed.is_empty() {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
            let patch = Patch::Merge(json!({ "metadata": { "annotations": changed } }));
            api.patch(&new.name_any(), &PatchParams::default(), &patch).await?;
        }
        self.mark_deployment(deployment, revision).await
    }

    async fn mark_deployment(&self, deployment: &Deployment, revision: i64) -> Result<(), kube::Error> {
        let marked = deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
        if marked == Some(&revision.to_string()) {
            return Ok(());
        }
        let api: Api<Deployment> =
            Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let patch = Patch::Merge(
            json!({ "metadata": { "uid": deployment.uid(), "annotations": { REVISION: revision.to_string() } } }),
        );
        api.patch(&deployment.name_any(), &PatchParams::default(), &patch).await.map(drop)
    }

    /// Makes the current template's ReplicaSet; none where it turned out to be there.
    async fn create_set(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        rollout: &Rollout,
    ) -> Result<Option<String>, kube::Error> {
        let (replicas, revision) = (rollout.replicas, sets.revision());
        let annotations =
            sets::annotations(deployment, None, revision, replicas, rollout.strategy.most(replicas));
        let size = plan::new_size(rollout, 0);
        let set = sets::build(deployment, size, annotations);
        let name = set.name_any();
        let api: Api<ReplicaSet> =
            Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &set).await {
            Ok(_) => {
                self.mark_deployment(deployment, revision).await?;
                self.report_scaled(deployment, &name, 0, size);
                Ok(Some(name))
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let existing = api.get(&name).await?;
                let ours = owner::is_controlled_by(&existing.metadata, &deployment.uid().unwrap_or_default());
                if ours && sets::is_current(deployment, &existing) {
                    return Ok(None);
                }
                let collisions =
                    deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0) + 1;
                let deployments: Api<Deployment> =
                    Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
                let patch = Patch::Merge(json!({ "status": { "collisionCount": collisions } }));
                deployments.patch_status(&deployment.name_any(), &PatchParams::default(), &patch).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn resize(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        rollout: &Rollout,
        sizes: &Sizes,
    ) -> Result<(), kube::Error> {
        let new = sets.new.iter().map(|set| (set, sizes.new));
        let old = sets.old.iter().zip(sizes.old.iter().copied());
        let api: Api<ReplicaSet> =
            Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let (replicas, most) = (rollout.replicas, rollout.strategy.most(rollout.replicas));
        for (set, size) in new.chain(old) {
            let planned = sets::as_planned(set);
            let noted = planned.desired == Some(replicas) && planned.most == Some(most);
            if size.is_none() && (noted || planned.size == 0) {
                continue;
            }
            let before = size_of(set);
            let target = size.unwrap_or(before);
            let patch = json!({ "metadata": { "resourceVersion": set.metadata.resource_version,
                "annotations": { DESIRED: replicas.to_string(), MOST: most.to_string() } }, "spec": { "replicas": target } });
            api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
            if target != before {
                self.report_scaled(deployment, &set.name_any(), before, target);
            }
        }
        Ok(())
    }

    fn report_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.recorder.event(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }

    /// Deletes old ReplicaSets beyond the history limit.
    async fn clean_up(&self, deployment: &Deployment, sets: &Sets) -> Result<(), kube::Error> {
        let limit = deployment.spec.revision_history_limit.unwrap_or(10);
        let status = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
        let mut empty: Vec<_> = sets
            .old
            .iter()
            .filter(|set| size_of(set) == 0 && status(set) == 0 && set.metadata.deletion_timestamp.is_none())
            .filter(|set| {
                set.metadata.generation <= set.status.as_ref().and_then(|status| status.observed_generation)
            })
            .collect();
        let surplus = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        empty.sort_by_key(|set| sets::revision_of(set));
        let api: Api<ReplicaSet> =
            Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        for set in empty.into_iter().take(surplus) {
            if let Err(error) = api.delete(&set.name_any(), &DeleteParams::background()).await {
                ignore(error, &[404])?;
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        sets: &Sets,
        created: Option<&str>,
    ) -> Result<Requeue, kube::Error> {
        let (status, next) =
            status::compute(deployment, sets, strategy(deployment), created, Timestamp::now());
        let requeue = next.map_or(Requeue::OnChange, Requeue::After);
        if deployment.status.as_ref() == Some(&status) {
            return Ok(requeue);
        }
        let mut wanted = serde_json::to_value(&status).map_err(kube::Error::SerdeError)?;
        // What fell to nothing has to be taken away by name.
        for field in
            ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"]
        {
            if wanted.get(field).is_none() {
                wanted[field] = Value::Null;
            }
        }
        let api: Api<Deployment> =
            Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let patch = json!({ "metadata": { "uid": deployment.uid(), "resourceVersion": deployment.metadata.resource_version }, "status": wanted });
        match api.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(requeue),
            // A newer version is on its way to the cache and brings us back here.
            Err(error) => ignore(error, &[404, 409]).map(|()| requeue),
        }
    }
}

fn selector(deployment: &Deployment) -> Selector {
    let selector = to_value(&deployment.spec.selector).ok();
    selector.and_then(|value| Selector::from_label_selector(&value).ok()).unwrap_or_else(Selector::nothing)
}

fn strategy(deployment: &Deployment) -> Strategy {
    let spec = deployment.spec.clone();
    let replicas = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.unwrap_or_default();
    if strategy.type_.as_deref() == Some("Recreate") {
        return Strategy::Recreate;
    }
    let rolling = strategy.rolling_update.unwrap_or_default();
    let max_surge = share_of(rolling.max_surge.as_ref(), replicas, true);
    let mut max_unavailable = share_of(rolling.max_unavailable.as_ref(), replicas, false).min(replicas);
    if max_surge == 0 && max_unavailable == 0 {
        // Both rounded to nothing: something has to give for the rollout to move.
        max_unavailable = 1;
    }
    Strategy::Rolling { max_surge, max_unavailable }
}

/// A number, or a percentage of the replicas.
fn share_of(value: Option<&IntOrString>, replicas: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.saturating_mul(replicas);
            if up { (hundredths + 99) / 100 } else { hundredths / 100 }
        }
        None => 0,
    }
}
