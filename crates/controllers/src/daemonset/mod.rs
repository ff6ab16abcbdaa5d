//! DaemonSet: a pod on every node that fits.

mod fit;
mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coxswain_client::{Change, EventType, Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::labels::Selector;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::context::{Context, Written, ignore};
use crate::history::{History, REVISION_LABEL, label, template_of};
use crate::podcontrol::{PodControl, pod_of, selector_of};
use fit::{Fit, fit};
use plan::{ByNode, Counts, GENERATION_LABEL, Plan, Terms};

const CONTROLLER: &str = "daemonset-controller";
const WORKERS: usize = 2;
/// Pods made or deleted in one go.
const BURST: usize = 250;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15 * 60);

/// How long the next failed pod of a node stays, and since when.
type Backoffs = HashMap<(ObjectKey, String), (Duration, Instant)>;

struct Controller {
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    control: PodControl,
    history: History,
    written: Written,
    backoffs: Mutex<Backoffs>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Arc::new(Controller {
        sets: context.informer(),
        nodes: context.informer(),
        control: PodControl::new(context, CONTROLLER),
        history: History::new(context, REVISION_LABEL),
        written: Written::default(),
        backoffs: Mutex::default(),
    });
    controller.sets.synced().await;
    controller.nodes.synced().await;
    controller.control.pods.synced().await;
    controller.history.revisions.synced().await;
    let queue = WorkQueue::new();
    controller.sets.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    let this = controller.clone();
    let pods = controller.control.pods.clone();
    pods.feed(&queue, move |change| this.control.owners_of(&this.sets, change, set_selector));
    let sets = controller.sets.clone();
    controller.nodes.feed(&queue, move |change| {
        let sets = if matters(change) { sets.list() } else { Vec::new() };
        sets.into_iter().map(|set| ObjectKey::of(&*set)).collect::<Vec<_>>()
    });
    context.drive(CONTROLLER, queue, WORKERS, |key| controller.reconcile(key)).await;
}

fn set_selector(set: &DaemonSet) -> Selector {
    selector_of(&set.spec.selector)
}

/// Whether a change of a node may change which pods it has.
fn matters(change: &Change<Node>) -> bool {
    let Change::Updated { old, new } = change else { return true };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(set) = self.sets.get(&key) else {
            self.control.expectations.forget(&key);
            self.written.forget(&key);
            self.backoffs.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| *of != key);
            return Ok(Requeue::OnChange);
        };
        if set.metadata.deletion_timestamp.is_some() || !self.written.seen(&key, &set.metadata) {
            return Ok(Requeue::OnChange);
        }
        let satisfied = self.control.expectations.fulfilled(&key);
        let selector = set_selector(&set);
        let revisions = self.history.claim(&*set, &selector, &self.control).await?;
        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let current = self.history.current(&*set, &set.spec.template, &revisions, &mut collisions).await?;
        let owned = self.control.claim(&*set, &selector, None, |_| true).await?;
        self.merge_revisions(&set, &current, &revisions, &owned).await?;
        let terms = Terms::of(&set, label(&current, REVISION_LABEL));
        let (fits, by_node) = (self.fits(&set), plan::by_node(&owned));
        let (mut retry, mut outcome) = (None, Ok(()));
        if satisfied {
            let mut plan = plan::place(&terms, &fits, &by_node, Timestamp::now());
            if plan.is_empty() {
                plan = plan::roll(&terms, &fits, &by_node, Timestamp::now());
            }
            (retry, outcome) = self.act(&set, &key, &terms, plan).await;
            if outcome.is_ok() {
                outcome = self.forget_revisions(&set, &current, &revisions, &owned).await;
            }
        }
        let next = self.write_status(&set, &key, &terms, (&fits, &by_node), collisions, satisfied).await?;
        outcome?;
        Ok(next.into_iter().chain(retry).min().map_or(Requeue::OnChange, Requeue::After))
    }

    fn fits(&self, set: &DaemonSet) -> HashMap<String, Fit> {
        let mut spec = set.spec.template.spec.clone().unwrap_or_default();
        fit::add_tolerations(&mut spec);
        self.nodes.list().into_iter().map(|node| (node.name_any(), fit(&spec, &node))).collect()
    }

    async fn act(
        &self,
        set: &DaemonSet,
        key: &ObjectKey,
        terms: &Terms,
        plan: Plan,
    ) -> (Option<Duration>, Result<(), kube::Error>) {
        let (recorder, mut delete, mut retry) = (&self.control.recorder, plan.delete, None::<Duration>);
        for (node, pod) in plan.failed {
            if let Some(left) = self.back_off(key, &node) {
                retry = Some(retry.map_or(left, |retry| retry.min(left)));
                continue;
            }
            let text = format!(
                "Found failed daemon pod {}/{} on node {node}, will try to kill it",
                key.namespace,
                pod.name_any()
            );
            recorder.event(set, EventType::Warning, "FailedDaemonPod", text);
            delete.push(pod);
        }
        for pod in plan.succeeded {
            let node = fit::node_of(&pod).unwrap_or_default();
            let text = format!(
                "Found succeeded daemon pod {}/{} on node {node}, will try to delete it",
                key.namespace,
                pod.name_any()
            );
            recorder.event(set, EventType::Normal, "SucceededDaemonPod", text);
            delete.push(pod);
        }
        let base = self.pod(set, terms);
        let pods = plan.create.into_iter().take(BURST).map(|node| {
            let mut pod = base.clone();
            fit::bind(pod.spec.get_or_insert_default(), &node);
            pod
        });
        let created = self.control.create(set, pods).await.1;
        delete.truncate(BURST);
        let deleted = self.control.delete(set, delete).await.1;
        (retry, created.and(deleted))
    }

    /// How long the failed pod of a node has to stay yet; when it may go, the next one will stay for longer.
    fn back_off(&self, key: &ObjectKey, node: &str) -> Option<Duration> {
        let mut all = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let entry = all.get(&(key.clone(), node.to_owned())).copied();
        let entry = entry.filter(|(_, since)| now - *since < 2 * LONGEST_BACKOFF);
        if let Some((wait, since)) = entry
            && now - since < wait
        {
            return Some(wait - (now - since));
        }
        let wait = entry.map_or(FIRST_BACKOFF, |(wait, _)| (wait * 2).min(LONGEST_BACKOFF));
        all.insert((key.clone(), node.to_owned()), (wait, now));
        None
    }

    fn pod(&self, set: &DaemonSet, terms: &Terms) -> Pod {
        let mut pod = pod_of(set, set.spec.template.clone());
        pod.metadata.generate_name = Some(format!("{}-", set.name_any()));
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.into(), terms.hash.clone());
        if let Some(generation) = &terms.generation {
            labels.insert(GENERATION_LABEL.into(), generation.clone());
        }
        fit::add_tolerations(pod.spec.get_or_insert_default());
        pod
    }

    /// Of several revisions with the current template one stays.
    async fn merge_revisions(
        &self,
        set: &DaemonSet,
        current: &ControllerRevision,
        revisions: &[Arc<ControllerRevision>],
        owned: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let same = |revision: &&Arc<ControllerRevision>| {
            revision.metadata.name != current.metadata.name
                && template_of(revision).as_ref() == Some(&set.spec.template)
        };
        for twin in revisions.iter().filter(same) {
            let hash = label(twin, REVISION_LABEL);
            for pod in owned.iter().filter(|pod| revision_of(pod) == hash) {
                let labels = json!({ REVISION_LABEL: label(current, REVISION_LABEL) });
                let patch = Patch::Merge(json!({ "metadata": { "uid": pod.uid(), "labels": labels } }));
                let api = self.control.api(&pod.namespace().unwrap_or_default());
                let patched = api.patch(&pod.name_any(), &PatchParams::default(), &patch).await;
                patched.map(drop).or_else(|error| ignore(error, &[404]))?;
            }
            self.history.delete(set, twin).await?;
        }
        Ok(())
    }

    /// Deletes the oldest revisions that no pod has, down to the limit.
    async fn forget_revisions(
        &self,
        set: &DaemonSet,
        current: &ControllerRevision,
        revisions: &[Arc<ControllerRevision>],
        owned: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let live: HashSet<&str> = owned.iter().map(|pod| revision_of(pod)).collect();
        let old: Vec<_> =
            revisions.iter().filter(|revision| revision.metadata.name != current.metadata.name).collect();
        let limit = usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
        let unused = old.iter().filter(|revision| !live.contains(label(revision, REVISION_LABEL)));
        for revision in unused.take(old.len().saturating_sub(limit)) {
            self.history.delete(set, revision).await?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        set: &DaemonSet,
        key: &ObjectKey,
        terms: &Terms,
        (fits, by_node): (&HashMap<String, Fit>, &ByNode),
        collisions: i32,
        observed: bool,
    ) -> Result<Option<Duration>, kube::Error> {
        let (counts, next) = plan::count(terms, fits, by_node, Timestamp::now());
        let old = set.status.clone().unwrap_or_default();
        let generation = set.metadata.generation.filter(|_| observed).or(old.observed_generation);
        let number = |number: Option<i32>| number.unwrap_or(0);
        let before = Counts {
            desired: old.desired_number_scheduled,
            current: old.current_number_scheduled,
            misscheduled: old.number_misscheduled,
            ready: old.number_ready,
            updated: number(old.updated_number_scheduled),
            available: number(old.number_available),
            unavailable: number(old.number_unavailable),
        };
        if (before, old.observed_generation, number(old.collision_count)) == (counts, generation, collisions)
        {
            return Ok(next);
        }
        let mut status = json!({ "desiredNumberScheduled": counts.desired, "currentNumberScheduled": counts.current,
            "numberMisscheduled": counts.misscheduled, "numberReady": counts.ready,
            "updatedNumberScheduled": counts.updated, "numberAvailable": counts.available,
            "numberUnavailable": counts.unavailable, "observedGeneration": generation });
        if collisions > 0 {
            status["collisionCount"] = collisions.into();
        }
        let api: Api<DaemonSet> = Api::namespaced(self.control.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({ "metadata": { "uid": set.uid() }, "status": status }));
        match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
            Ok(written) => self.written.wrote(key, &written.metadata),
            Err(error) => ignore(error, &[404, 409])?,
        }
        Ok(next)
    }
}

fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(REVISION_LABEL)).map(String::as_str).unwrap_or_default()
}
