//! What the runtime says of one pod, and the labels and annotations by which a pod is found again after our restart.

use std::collections::BTreeMap;

use coxswain_cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// Name of the pod, on sandboxes and containers.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// UID of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Name of the container in the pod's spec.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: hash of the parts of the container's spec whose change means a restart.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was restarted before this instance.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: the pod's termination grace period, for pods whose object is gone.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation: where the container may leave its last words.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: where else they may come from.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// State of a container instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended.
    Exited,
    /// The runtime cannot tell.
    #[default]
    Unknown,
}

/// One instance of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerRecord {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Restarts before this instance.
    pub restart_count: u32,
    /// The sandbox it lives in.
    pub sandbox_id: String,
    /// What it does.
    pub state: State,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its process started; the epoch if never.
    pub started_at: Timestamp,
    /// When its process ended.
    pub finished_at: Timestamp,
    /// Exit code of the process.
    pub exit_code: i32,
    /// Why it ended, in a word.
    pub reason: String,
    /// Why it ended, the runtime's words or the container's own.
    pub message: String,
    /// Image as the spec named it.
    pub image: String,
    /// Image as the runtime resolved it.
    pub image_ref: String,
    /// Hash it was made with.
    pub hash: String,
    /// Its log file.
    pub log_path: String,
    /// Grace period it was made with.
    pub grace_seconds: Option<i64>,
    /// Host path of the file of its last words, and whether the log may stand in.
    pub last_words: Option<(String, bool)>,
    /// User, group and supplemental groups of its first process.
    pub user: Option<(i64, i64, Vec<i64>)>,
}

impl ContainerRecord {
    /// Whether a process may be alive in it.
    pub fn alive(&self) -> bool {
        matches!(self.state, State::Running | State::Unknown)
    }
}

/// One sandbox of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRecord {
    /// The runtime's id.
    pub id: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Whether its namespaces are up.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Addresses, the primary one first; empty on the host's network.
    pub ips: Vec<String>,
}

/// All of a pod that the runtime has; newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodRuntime {
    /// Sandboxes.
    pub sandboxes: Vec<SandboxRecord>,
    /// Container instances.
    pub containers: Vec<ContainerRecord>,
}

impl PodRuntime {
    /// Sorts both lists newest first.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.attempt)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.restart_count, c.created_at)));
    }

    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest ended instance besides the newest.
    pub fn previous(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().filter(|c| c.name == name).skip(1).find(|c| c.state == State::Exited)
    }

    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&SandboxRecord> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }
}

/// A CRI time (nanoseconds since the epoch).
pub fn time(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A time as the API keeps it: whole seconds.
pub fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Reads a container's list entry and status into a record.
pub fn container_record(listed: &v1::Container, status: v1::ContainerStatus) -> ContainerRecord {
    let state = match status.state() {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running,
        v1::ContainerState::ContainerExited => State::Exited,
        v1::ContainerState::ContainerUnknown => State::Unknown,
    };
    let note = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let message_path = note(MESSAGE_PATH);
    let last_words = status
        .mounts
        .iter()
        .find(|mount| !message_path.is_empty() && mount.container_path == message_path)
        .map(|mount| (mount.host_path.clone(), note(MESSAGE_POLICY) == "FallbackToLogsOnError"));
    ContainerRecord {
        name: status.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
        restart_count: note(RESTART_COUNT).parse().unwrap_or(0),
        sandbox_id: listed.pod_sandbox_id.clone(),
        state,
        created_at: time(status.created_at),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        image: image_name(&status),
        hash: note(CONTAINER_HASH),
        grace_seconds: note(GRACE_PERIOD).parse().ok(),
        last_words,
        user: status
            .user
            .and_then(|user| user.linux)
            .map(|user| (user.uid, user.gid, user.supplemental_groups)),
        id: status.id,
        reason: status.reason,
        message: status.message,
        image_ref: status.image_ref,
        log_path: status.log_path,
    }
}

fn image_name(status: &v1::ContainerStatus) -> String {
    let image = status.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

/// Reads a sandbox's list entry and its addresses into a record.
pub fn sandbox_record(listed: &v1::PodSandbox, ips: Vec<String>) -> SandboxRecord {
    SandboxRecord {
        id: listed.id.clone(),
        attempt: listed.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: listed.state() == v1::PodSandboxState::SandboxReady,
        created_at: time(listed.created_at),
        ips,
    }
}

/// Addresses in a sandbox's status.
pub fn sandbox_ips(status: &v1::PodSandboxStatus) -> Vec<String> {
    let Some(network) = &status.network else { return Vec::new() };
    let more = network.additional_ips.iter().map(|ip| ip.ip.clone());
    std::iter::once(network.ip.clone()).chain(more).filter(|ip| !ip.is_empty()).collect()
}

/// Namespace, name and UID of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl PodId {
    /// The identity of a pod object.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) }
    }

    /// The identity a sandbox's labels tell.
    pub fn of_labels(labels: &std::collections::HashMap<String, String>) -> Option<Self> {
        let uid = labels.get(POD_UID).filter(|uid| !uid.is_empty())?.clone();
        let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
        Some(Self { namespace: text(POD_NAMESPACE), name: text(POD_NAME), uid })
    }

    /// The three labels of everything that belongs to the pod.
    pub fn labels(&self) -> BTreeMap<String, String> {
        [(POD_NAME, &self.name), (POD_NAMESPACE, &self.namespace), (POD_UID, &self.uid)]
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .into()
    }
}

impl std::fmt::Display for PodId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}
