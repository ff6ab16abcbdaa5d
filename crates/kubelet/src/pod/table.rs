//! The pods of the node: one worker task each, found by UID; and which of them count against the node's capacity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::worker::{Start, Worker};
use crate::admit::{self, NoRoom, Rejection};
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::probe::ProbeReport;

/// What a worker is told.
pub enum Message {
    /// The pod's object changed.
    Pod(Arc<Pod>),
    /// The pod's object is gone.
    Gone,
    /// The runtime has news of the pod.
    Runtime,
    /// An object that a volume or a variable of the pod refers to changed.
    Objects,
    /// A probe changed its mind.
    Probe(ProbeReport),
    /// Another pod has left the node.
    Room,
}

struct Entry {
    pod: Arc<Pod>,
    inbox: mpsc::UnboundedSender<Message>,
    /// The pod takes no room any more: rejected, or all its containers have ended for good.
    over: bool,
    /// The pod waits for room to grow.
    deferred: bool,
}

/// All pods that have a worker.
pub struct Table {
    kubelet: Weak<Kubelet>,
    entries: Mutex<HashMap<String, Entry>>,
    tasks: TaskTracker,
}

impl Table {
    /// An empty table of a kubelet.
    pub fn new(kubelet: Weak<Kubelet>) -> Self {
        Self { kubelet, entries: Mutex::default(), tasks: TaskTracker::new() }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pod as the API server has it now; a new one is admitted or rejected.
    pub fn set(&self, pod: &Arc<Pod>) {
        let id = PodId::of(pod);
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(&id.uid) {
            entry.pod = pod.clone();
            let _ = entry.inbox.send(Message::Pod(pod.clone()));
            return;
        }
        let Some(kubelet) = self.kubelet.upgrade() else { return };
        let over = is_over(pod);
        let rejected = rejection(pod, &entries, &kubelet);
        let start = match (over, rejected.clone()) {
            (true, _) => Start::Over,
            (false, Some(rejection)) => Start::Rejected(rejection),
            (false, None) => Start::Run,
        };
        let over = over || rejected.is_some();
        let inbox = self.spawn(kubelet, pod.clone(), start);
        entries.insert(id.uid, Entry { pod: pod.clone(), inbox, over, deferred: false });
    }

    /// Whether a new pod would be rejected on the node as last seen.
    pub fn rejects(&self, pod: &Pod) -> bool {
        let entries = self.entries();
        let Some(kubelet) = self.kubelet.upgrade() else { return false };
        !entries.contains_key(&PodId::of(pod).uid) && rejection(pod, &entries, &kubelet).is_some()
    }

    /// Ends what the runtime still has of a pod that no longer exists.
    pub fn end_orphan(&self, id: PodId) {
        let Some(kubelet) = self.kubelet.upgrade() else { return };
        let metadata = ObjectMeta {
            name: Some(id.name.clone()),
            namespace: Some(id.namespace.clone()),
            uid: Some(id.uid.clone()),
            ..ObjectMeta::default()
        };
        let pod = Arc::new(Pod { metadata, ..Pod::default() });
        let mut entries = self.entries();
        entries.entry(id.uid).or_insert_with(|| {
            let inbox = self.spawn(kubelet, pod.clone(), Start::Orphan);
            Entry { pod, inbox, over: true, deferred: false }
        });
    }

    fn spawn(&self, kubelet: Arc<Kubelet>, pod: Arc<Pod>, start: Start) -> mpsc::UnboundedSender<Message> {
        let (inbox, messages) = mpsc::unbounded_channel();
        let (cancel, sender) = (kubelet.cancel.clone(), inbox.clone());
        self.tasks.spawn(async move {
            let uid = PodId::of(&pod).uid;
            let table = kubelet.clone();
            let worker = Worker::new(kubelet, pod, start, sender, messages);
            if cancel.run_until_cancelled(worker.run()).await.is_some() {
                table.table.entries().remove(&uid);
            }
        });
        inbox
    }

    /// Tells a pod's worker something; `false` when there is no such pod.
    pub fn tell(&self, uid: &str, message: Message) -> bool {
        self.entries().get(uid).is_some_and(|entry| entry.inbox.send(message).is_ok())
    }

    /// Whether a pod has a worker.
    pub fn knows(&self, uid: &str) -> bool {
        self.entries().contains_key(uid)
    }

    /// Has every worker look at the runtime again.
    pub fn wake_all(&self) {
        self.entries().values().for_each(|entry| {
            let _ = entry.inbox.send(Message::Runtime);
        });
    }

    /// Notes that a pod takes no room any more.
    pub fn set_over(&self, uid: &str) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(uid) {
            entry.over = true;
        }
        entries.values().filter(|entry| entry.deferred).for_each(|entry| {
            let _ = entry.inbox.send(Message::Room);
        });
    }

    /// Whether there is room for what a pod wants now; if not, it is told when another leaves.
    ///
    /// # Errors
    /// Why there is none.
    pub fn room(&self, pod: &Pod, node: &Node) -> Result<(), NoRoom> {
        let uid = PodId::of(pod).uid;
        let mut entries = self.entries();
        let others = entries.iter().filter(|(other, entry)| **other != uid && !entry.over);
        let others: Vec<Arc<Pod>> = others.map(|(_, entry)| entry.pod.clone()).collect();
        let room = admit::room(pod, &others, node);
        if let Some(entry) = entries.get_mut(&uid) {
            entry.deferred = matches!(room, Err(NoRoom::Now(_)));
        }
        room
    }

    /// All pods, in no order.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.entries().values().map(|entry| entry.pod.clone()).collect()
    }

    /// The pod with a namespace and name that is not over, or any.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let entries = self.entries();
        let mut named = entries.values().filter(|entry| {
            let meta = &entry.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        });
        let first = named.next()?;
        Some(named.find(|entry| !entry.over).filter(|_| first.over).unwrap_or(first).pod.clone())
    }

    /// Waits until every worker has returned; call after cancelling.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Why the node does not take a new pod; one that it took before it keeps.
fn rejection(pod: &Pod, entries: &HashMap<String, Entry>, kubelet: &Kubelet) -> Option<Rejection> {
    let accepted = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
    if is_over(pod) || accepted || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let others: Vec<Arc<Pod>> = entries.values().filter(|e| !e.over).map(|e| e.pod.clone()).collect();
    admit::admit(pod, &others, &kubelet.node.get(), kubelet.config.max_pods).err()
}
