//! Feeds the core from informers, binds what it decides, and tells what it could not decide.

use std::sync::Arc;

use coxswain_client::{Change, Client, EventType, Informer, InformerFactory, Recorder};
use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cycle::{Failure, schedule};
use crate::framework::Event;
use crate::pod::{PodInfo, has_ended};
use crate::preemption::{Budget, Preemption, is_eligible, preempt};
use crate::queue::{Attempt, Queue};
use crate::snapshot::Snapshot;

const NAME: &str = "default-scheduler";
/// Bindings under way at a time.
const PARALLEL_BINDS: usize = 32;

/// Runs the scheduler until `cancel`.
pub async fn run(factory: Arc<InformerFactory>, cancel: CancellationToken) {
    let (pods, nodes): (Informer<Pod>, Informer<Node>) = (factory.informer(), factory.informer());
    let budgets: Informer<PodDisruptionBudget> = factory.informer();
    let synced = async { tokio::join!(pods.synced(), nodes.synced(), budgets.synced()) };
    cancel.run_until_cancelled(synced).await;
    let client = factory.client().clone();
    let scheduler = Scheduler {
        recorder: Recorder::new(client.clone(), NAME, "", cancel.clone()),
        client,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        budgets,
        binds: JoinSet::new(),
        preemptions: JoinSet::new(),
        turn: 0,
    };
    cancel.run_until_cancelled(scheduler.run(pods, nodes)).await;
}

struct Bound {
    pod: PodInfo,
    attempt: Attempt,
    node: String,
    result: Result<(), kube::Error>,
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    budgets: Informer<PodDisruptionBudget>,
    binds: JoinSet<Bound>,
    preemptions: JoinSet<()>,
    turn: usize,
}

impl Scheduler {
    async fn run(mut self, pods: Informer<Pod>, nodes: Informer<Node>) {
        let (mut pods, mut nodes) = (pods.subscribe(), nodes.subscribe());
        loop {
            // Everything that is known goes into the snapshot before anything is decided.
            while let Ok(change) = nodes.try_recv() {
                self.node_changed(&change);
            }
            while let Ok(change) = pods.try_recv() {
                self.pod_changed(&change);
            }
            let wake = self.queue.wake();
            while self.binds.len() < PARALLEL_BINDS && self.schedule_one() {}
            let wake_at =
                wake.unwrap_or_else(|| tokio::time::Instant::now() + std::time::Duration::from_secs(3600));
            tokio::select! {
                change = nodes.recv() => match change { Some(change) => self.node_changed(&change), None => return },
                change = pods.recv() => match change { Some(change) => self.pod_changed(&change), None => return },
                Some(Ok(bound)) = self.binds.join_next() => self.bound(bound),
                Some(_) = self.preemptions.join_next() => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        let node = change.object();
        match change {
            Change::Deleted(_) => self.snapshot.remove_node(&node.name_any()),
            Change::Added(_) => {
                self.snapshot.put_node(node);
                self.queue.on_event(Event::NodeAdded);
            }
            Change::Updated { old, new } => {
                self.snapshot.put_node(new);
                for event in node_events(old, new) {
                    self.queue.on_event(event);
                }
            }
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.uid().unwrap_or_default();
        let bound = pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.node_name.as_deref().is_some_and(|name| !name.is_empty()));
        let gone = matches!(change, Change::Deleted(_)) || has_ended(pod);
        if gone {
            self.queue.remove(&uid);
            self.snapshot.withdraw(&uid);
            if self.snapshot.remove_pod(&uid) {
                self.queue.on_event(Event::CapacityFreed);
            }
        } else if bound {
            self.queue.remove(&uid);
            self.snapshot.put_pod(PodInfo::new(pod));
        } else if !self.snapshot.has_pod(&uid) {
            match wants_node(pod) {
                true => {
                    let info = PodInfo::new(pod);
                    let promised = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_ref());
                    if let (Some(node), None) = (promised, self.snapshot.nomination(&uid)) {
                        self.snapshot.nominate(info.clone(), node);
                    }
                    self.queue.put(info);
                }
                false => self.queue.remove(&uid),
            }
        }
    }

    /// Decides about the next pod and starts its binding; whether there was one.
    fn schedule_one(&mut self) -> bool {
        let Some((pod, attempt)) = self.queue.pop() else { return false };
        self.turn += 1;
        match schedule(&pod, &self.snapshot, self.turn) {
            Ok(at) => {
                let node = self.snapshot.nodes()[at].name.clone();
                // Assumed: the next decision counts on this one.
                self.snapshot.put_pod(PodInfo { node: node.clone(), ..pod.clone() });
                let client = self.client.clone();
                self.binds.spawn(async move {
                    let result = bind(&client, &pod, &node).await;
                    Bound { pod, attempt, node, result }
                });
            }
            Err(failure) => {
                self.preempt(&pod, &failure);
                self.queue.failed(pod, attempt, failure);
            }
        }
        true
    }

    fn budgets(&self) -> Vec<Budget> {
        let budget = |budget: Arc<PodDisruptionBudget>| {
            let selector = json!(budget.spec.as_ref()?.selector.as_ref()?);
            let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed);
            Some(Budget {
                namespace: budget.namespace().unwrap_or_default(),
                selector: Selector::from_label_selector(&selector).ok()?,
                allowed: allowed.unwrap_or(0),
            })
        };
        self.budgets.list().into_iter().filter_map(budget).collect()
    }

    /// Looks for pods that may leave for one that found no node, and tells how it stands.
    fn preempt(&mut self, pod: &PodInfo, failure: &Failure) {
        if !is_eligible(pod, &self.snapshot) {
            return self.report(pod, &failure.message());
        }
        match preempt(pod, &self.snapshot, &self.budgets()) {
            Some(found) => {
                self.report(pod, &failure.message());
                self.make_room(pod, found);
            }
            None => {
                self.snapshot.withdraw(&pod.uid);
                self.report(pod, &failure.without_victims());
            }
        }
    }

    /// Promises a node to a pod and ends those that are in its way.
    fn make_room(&mut self, pod: &PodInfo, found: Preemption) {
        self.snapshot.nominate(pod.clone(), &found.node);
        for victim in &found.victims {
            let message = format!("Preempted by pod {} on node {}", pod.uid, found.node);
            self.recorder.event(&*victim.object, EventType::Normal, "Preempted", message);
        }
        let (client, pod) = (self.client.clone(), pod.clone());
        self.preemptions.spawn(async move {
            let nominated =
                json!({ "metadata": { "uid": pod.uid }, "status": { "nominatedNodeName": found.node } });
            patch_status(&client, &pod, &nominated).await;
            for victim in &found.victims {
                let condition = json!({ "type": "DisruptionTarget", "status": "True",
                    "reason": "PreemptionByScheduler", "lastTransitionTime": Time(Timestamp::now()),
                    "message": format!("{NAME}: preempting to accommodate a higher priority pod") });
                let told =
                    json!({ "metadata": { "uid": victim.uid }, "status": { "conditions": [condition] } });
                patch_status(&client, victim, &told).await;
                let api: Api<Pod> = Api::namespaced(client.clone(), &victim.key.namespace);
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(victim.uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                if let Err(error) = api.delete(&victim.key.name, &params).await {
                    tracing::debug!(%error, pod = %victim.key, "a pod was not preempted");
                }
            }
        });
    }

    fn bound(&mut self, Bound { pod, attempt, node, result }: Bound) {
        match result {
            Ok(()) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.event(&*pod.object, EventType::Normal, "Scheduled", message);
            }
            Err(error) => {
                self.snapshot.remove_pod(&pod.uid);
                self.queue.on_event(Event::CapacityFreed);
                // Gone, or bound by somebody else: the informer says which.
                let settled = matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409));
                if !settled {
                    self.report(&pod, &error.to_string());
                    self.queue.retry(pod, attempt);
                }
            }
        }
    }

    /// Tells that a pod found no node: an event and the condition, which nobody waits for.
    fn report(&self, pod: &PodInfo, message: &str) {
        self.recorder.event(&*pod.object, EventType::Warning, "FailedScheduling", message);
        let conditions = pod.object.status.as_ref().and_then(|status| status.conditions.as_ref());
        let told = conditions.into_iter().flatten().any(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.message.as_deref() == Some(message)
        });
        if told {
            return;
        }
        let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": Time(Timestamp::now()) });
        let told = json!({ "metadata": { "uid": pod.uid }, "status": { "conditions": [condition] } });
        let (client, pod) = (self.client.clone(), pod.clone());
        tokio::spawn(async move { patch_status(&client, &pod, &told).await });
    }
}

async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.key.namespace);
    let patched = api.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    if let Err(error) = patched {
        tracing::debug!(%error, pod = %pod.key, "a pod's status was not written");
    }
}

fn wants_node(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME;
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && pod.metadata.deletion_timestamp.is_none()
}

fn node_events(old: &Node, new: &Node) -> Vec<Event> {
    let spec = |node: &Node| node.spec.clone().unwrap_or_default();
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let (before, after) = (spec(old), spec(new));
    let changes = [
        (old.labels() != new.labels(), Event::NodeLabelsChanged),
        (
            before.taints != after.taints || before.unschedulable != after.unschedulable,
            Event::NodeTaintsChanged,
        ),
        (allocatable(old) != allocatable(new), Event::CapacityFreed),
    ];
    changes.into_iter().filter(|(changed, _)| *changed).map(|(_, event)| event).collect()
}

async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.key.name.clone()),
            namespace: Some(pod.key.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.into()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
    let path = format!("/api/v1/namespaces/{}/pods/{}/binding", pod.key.namespace, pod.key.name);
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await.map(drop)
}
