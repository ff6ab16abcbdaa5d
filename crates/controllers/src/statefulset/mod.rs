//! StatefulSet: pods with names and volumes of their own, made, updated and deleted in order.

mod identity;
mod plan;
mod retention;

use std::collections::HashSet;
use std::sync::Arc;

use coxswain_client::{Change, EventType, Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::{Context, Written, ignore, message};
use crate::history::{History, template_of};
use crate::podcontrol::{PodControl, selector_of};
use plan::{Counts, Step, Terms, ordinal_of, revision_of};
use retention::Policy;

const CONTROLLER: &str = "statefulset-controller";
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
const WORKERS: usize = 4;

struct Controller {
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    control: PodControl,
    history: History,
    written: Written,
}

/// A claim that is being deleted, and would be lost to the pod that is to use it.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("pvc {0} is being deleted")]
    ClaimGoes(String),
}

impl Error {
    fn message(&self) -> String {
        match self {
            Self::Api(error) => message(error),
            Self::ClaimGoes(_) => self.to_string(),
        }
    }
}

/// What a reconcile works on.
struct Work<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    terms: &'a Terms,
    key: &'a ObjectKey,
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
    collisions: i32,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Arc::new(Controller {
        sets: context.informer(),
        claims: context.informer(),
        control: PodControl::new(context, CONTROLLER),
        history: History::new(context, HASH_LABEL),
        written: Written::default(),
    });
    controller.sets.synced().await;
    controller.claims.synced().await;
    controller.control.pods.synced().await;
    controller.history.revisions.synced().await;
    let queue = WorkQueue::new();
    controller.sets.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    let this = controller.clone();
    let pods = controller.control.pods.clone();
    pods.feed(&queue, move |change| this.control.owners_of(&this.sets, change, set_selector));
    let this = controller.clone();
    controller.claims.feed(&queue, move |change| this.waiting_for(change));
    context.drive(CONTROLLER, queue, WORKERS, |key| controller.reconcile(key)).await;
}

fn set_selector(set: &StatefulSet) -> Selector {
    selector_of(&set.spec.selector)
}

impl Controller {
    /// The sets that may wait for a claim to be gone.
    fn waiting_for(&self, change: &Change<PersistentVolumeClaim>) -> Vec<ObjectKey> {
        let Change::Deleted(claim) = change else { return Vec::new() };
        let name = claim.name_any();
        let uses = |set: &Arc<StatefulSet>| {
            set.spec.volume_claim_templates.iter().flatten().any(|template| {
                name.strip_prefix(&template.name_any())
                    .and_then(|rest| rest.strip_prefix('-'))
                    .and_then(plan::parse_name)
                    .is_some_and(|(parent, _)| parent == set.name_any())
            })
        };
        let sets = self.sets.in_namespace(&claim.namespace().unwrap_or_default()).into_iter();
        sets.filter(uses).map(|set| ObjectKey::of(&*set)).collect()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, Error> {
        let Some(set) = self.sets.get(&key) else {
            self.control.expectations.forget(&key);
            self.written.forget(&key);
            return Ok(Requeue::OnChange);
        };
        let (terms, spec) = (Terms::of(&set), &set.spec);
        if !self.written.seen(&key, &set.metadata) || !self.control.expectations.fulfilled(&key) {
            return Ok(Requeue::OnChange);
        }
        let selector = set_selector(&set);
        let revisions = self.history.claim(&*set, &selector, &self.control).await?;
        let is_current =
            |revision: &Arc<ControllerRevision>| template_of(revision).as_ref() == Some(&spec.template);
        if terms.deleting && !revisions.iter().any(is_current) {
            // What is collected with the set is not made again.
            return Ok(Requeue::OnChange);
        }
        let owned = self.control.claim(&*set, &selector, None, |pod| identity::is_member(&set, pod)).await?;
        let status = set.status.clone().unwrap_or_default();
        let mut collisions = status.collision_count.unwrap_or(0);
        let update = self.history.current(&*set, &spec.template, &revisions, &mut collisions).await?;
        let named =
            revisions.iter().find(|revision| Some(&revision.name_any()) == status.current_revision.as_ref());
        let current = named.unwrap_or(&update).clone();
        let work = Work { set: &set, spec, terms: &terms, key: &key, current, update, collisions };
        let (current, update) = (work.current.name_any(), work.update.name_any());
        let plan = plan::plan(&terms, &owned, &current, &update, Timestamp::now());
        let mut outcome = Ok(());
        for step in plan.steps {
            outcome = self.act(&work, step).await;
            if outcome.is_err() {
                break;
            }
        }
        self.write_status(&work, plan.counts).await?;
        outcome?;
        self.forget_revisions(&work, &owned, &revisions).await?;
        Ok(plan.next.map_or(Requeue::OnChange, Requeue::After))
    }

    async fn act(&self, work: &Work<'_>, step: Step) -> Result<(), Error> {
        match step {
            Step::Create { ordinal, updated } => self.create(work, ordinal, updated).await,
            Step::MakeClaims(pod) => {
                let Some(ordinal) = ordinal_of(&pod) else { return Ok(()) };
                self.make_claims(work, ordinal).await?;
                self.mend_claims(work, &pod).await
            }
            Step::Mend(pod) => self.mend(work, &pod).await,
            Step::MendClaims(pod) => self.mend_claims(work, &pod).await,
            Step::Delete(pod) => self.delete(work, &pod).await,
        }
    }

    fn report(&self, work: &Work<'_>, verb: &str, pod: &str, outcome: &Result<(), Error>) {
        let (recorder, set) = (&self.control.recorder, work.set.name_any());
        match outcome {
            Ok(()) => recorder.event(
                work.set,
                EventType::Normal,
                &format!("Successful{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {set} successful"),
            ),
            Err(error) => recorder.event(
                work.set,
                EventType::Warning,
                &format!("Failed{verb}"),
                format!("{verb} Pod {pod} in StatefulSet {set} failed error: {}", error.message()),
            ),
        }
    }

    async fn create(&self, work: &Work<'_>, ordinal: usize, updated: bool) -> Result<(), Error> {
        let revision = if updated { &work.update } else { &work.current };
        let template = template_of(revision).unwrap_or_else(|| work.spec.template.clone());
        let pod = identity::build(work.set, work.spec, template, &revision.name_any(), ordinal);
        if Policy::of(work.spec).when_scaled {
            let stale = self.claims_of(work, ordinal).iter().any(|claim| retention::is_stale(claim, &pod));
            if stale {
                // It goes with an earlier pod of this name, and its end brings us back here.
                return Ok(());
            }
        }
        let name = pod.name_any();
        let mut outcome = self.make_claims(work, ordinal).await;
        if outcome.is_ok() {
            match self.control.api(&work.key.namespace).create(&PostParams::default(), &pod).await {
                Ok(made) => {
                    let (pod_key, uid) = (ObjectKey::of(&made), made.uid().unwrap_or_default());
                    let seen = || self.control.pods.get(&pod_key).is_some();
                    self.control.expectations.created(work.key, &uid, seen);
                    outcome = self.mend_claims(work, &made).await;
                }
                // The cache does not show it yet, or it is somebody else's: no reason for an event.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    return Err(kube::Error::Api(status).into());
                }
                Err(error) => outcome = Err(error.into()),
            }
        }
        self.report(work, "Create", &name, &outcome);
        outcome
    }

    async fn delete(&self, work: &Work<'_>, pod: &Pod) -> Result<(), Error> {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        self.control.expectations.deleting(work.key, &uid);
        let deleted =
            self.control.api(&work.key.namespace).delete(&name, &DeleteParams::default()).await.map(drop);
        if deleted.is_err() {
            self.control.expectations.saw_deletion(work.key, &uid);
        }
        let outcome = deleted.or_else(|error| ignore(error, &[404])).map_err(Error::from);
        self.report(work, "Delete", &name, &outcome);
        outcome
    }

    /// The claims of an ordinal that exist.
    fn claims_of(&self, work: &Work<'_>, ordinal: usize) -> Vec<Arc<PersistentVolumeClaim>> {
        let claims = identity::claims(work.set, work.spec, ordinal);
        claims.filter_map(|claim| self.claims.get(&ObjectKey::of(&claim))).collect()
    }

    async fn make_claims(&self, work: &Work<'_>, ordinal: usize) -> Result<(), Error> {
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.control.client.clone(), &work.key.namespace);
        let (set, pod) = (work.set.name_any(), identity::pod_name(work.set, ordinal));
        for claim in identity::claims(work.set, work.spec, ordinal) {
            let name = claim.name_any();
            if let Some(existing) = self.claims.get(&ObjectKey::of(&claim)) {
                if existing.metadata.deletion_timestamp.is_some() {
                    return Err(Error::ClaimGoes(name));
                }
                continue;
            }
            let (kind, reason, text) = match api.create(&PostParams::default(), &claim).await {
                Ok(_) => (
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Create Claim {name} Pod {pod} in StatefulSet {set} success"),
                ),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => continue,
                Err(error) => {
                    let text = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {}",
                        message(&error)
                    );
                    self.control.recorder.event(work.set, EventType::Warning, "FailedCreate", text);
                    return Err(error.into());
                }
            };
            self.control.recorder.event(work.set, kind, reason, text);
        }
        Ok(())
    }

    /// Makes the owners of a pod's claims what the retention policy says.
    async fn mend_claims(&self, work: &Work<'_>, pod: &Pod) -> Result<(), Error> {
        let Some(ordinal) = ordinal_of(pod) else { return Ok(()) };
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.control.client.clone(), &work.key.namespace);
        let policy = Policy::of(work.spec);
        for claim in self.claims_of(work, ordinal) {
            let is_wanted = work.terms.wants(ordinal);
            if retention::has_other_controller(policy, &claim, work.set, pod) {
                let text = format!(
                    "PersistentVolumeClaim {} has a conflicting OwnerReference that acts as a managing controller, \
                     the retention policy is ignored for this claim",
                    claim.name_any()
                );
                self.control.recorder.event(work.set, EventType::Warning, "ConflictingController", text);
            }
            let Some(owners) = retention::owners(policy, &claim, work.set, pod, is_wanted) else { continue };
            let patch = json!({ "metadata": { "resourceVersion": claim.metadata.resource_version, "ownerReferences": owners } });
            let patched = api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404]))?;
        }
        Ok(())
    }

    async fn mend(&self, work: &Work<'_>, pod: &Pod) -> Result<(), Error> {
        self.mend_claims(work, pod).await?;
        let ordinal = ordinal_of(pod).unwrap_or_default();
        if identity::mended(work.set, work.spec, ordinal, pod).is_none() {
            return Ok(());
        }
        let mut outcome = self.make_claims(work, ordinal).await;
        if outcome.is_ok() {
            outcome = self.replace(work, ordinal, pod).await.map_err(Error::from);
        }
        self.report(work, "Update", &pod.name_any(), &outcome);
        outcome
    }

    /// Writes a pod as it should be: all of it, of which the cache has a part.
    async fn replace(&self, work: &Work<'_>, ordinal: usize, pod: &Pod) -> Result<(), kube::Error> {
        let api = self.control.api(&work.key.namespace);
        let whole = api.get(&pod.name_any()).await?;
        if whole.uid() != pod.uid() {
            return Ok(());
        }
        let Some(mended) = identity::mended(work.set, work.spec, ordinal, &whole) else { return Ok(()) };
        api.replace(&mended.name_any(), &PostParams::default(), &mended).await.map(drop)
    }

    async fn write_status(&self, work: &Work<'_>, mut counts: Counts) -> Result<(), Error> {
        let update = work.update.name_any();
        let mut current = work.current.name_any();
        if plan::is_rolled_out(work.terms, &counts) {
            counts.current = counts.updated;
            current.clone_from(&update);
        }
        let generation = work.set.metadata.generation.unwrap_or(0);
        let old = work.set.status.clone().unwrap_or_default();
        let number = |number: Option<i32>| number.unwrap_or(0);
        let before = Counts {
            replicas: old.replicas,
            ready: number(old.ready_replicas),
            available: number(old.available_replicas),
            current: number(old.current_replicas),
            updated: number(old.updated_replicas),
        };
        let same = before == counts
            && old.observed_generation == Some(generation)
            && old.current_revision.as_ref() == Some(&current)
            && old.update_revision.as_ref() == Some(&update)
            && old.collision_count == Some(work.collisions);
        if same {
            return Ok(());
        }
        let status = json!({ "observedGeneration": generation, "replicas": counts.replicas, "readyReplicas": counts.ready,
            "availableReplicas": counts.available, "currentReplicas": counts.current, "updatedReplicas": counts.updated,
            "currentRevision": current, "updateRevision": update, "collisionCount": work.collisions });
        let api: Api<StatefulSet> = Api::namespaced(self.control.client.clone(), &work.key.namespace);
        let patch = Patch::Merge(
            json!({ "metadata": { "uid": work.set.uid(), "resourceVersion": work.set.resource_version() }, "status": status }),
        );
        match api.patch_status(&work.key.name, &PatchParams::default(), &patch).await {
            Ok(written) => self.written.wrote(work.key, &written.metadata),
            Err(error) => ignore(error, &[404])?,
        }
        Ok(())
    }

    /// Deletes the oldest revisions that nothing uses, down to the limit.
    async fn forget_revisions(
        &self,
        work: &Work<'_>,
        owned: &[Arc<Pod>],
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<(), Error> {
        let live: HashSet<String> = owned
            .iter()
            .map(|pod| revision_of(pod).to_owned())
            .chain([work.current.name_any(), work.update.name_any()])
            .collect();
        let unused: Vec<_> =
            revisions.iter().filter(|revision| !live.contains(&revision.name_any())).collect();
        let limit = usize::try_from(work.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
        for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
            self.history.delete(work.set, revision).await?;
        }
        Ok(())
    }
}
