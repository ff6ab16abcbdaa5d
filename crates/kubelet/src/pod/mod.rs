//! One pod: its worker task, the pure decision what to do next, the pure status, and the work itself.

pub mod containers;
mod hooks;
mod kill;
mod phase;
pub mod plan;
mod prepare;
mod publish;
pub mod resize;
mod start;
pub mod status;
pub mod table;
pub mod worker;

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Why a container waits; becomes `state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// A word, such as `ImagePullBackOff`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// What hooks and probes say of a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The postStart hook is done and the startup probe has succeeded.
    pub started: bool,
    /// The readiness probe succeeds.
    pub ready: bool,
    /// Message of the probe that wants the container killed, and the grace it gives.
    pub failed: Option<(String, Option<i64>)>,
}

/// Health by container id.
pub type HealthById = BTreeMap<String, Health>;

/// Why a pod is brought to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its object is marked for deletion, or gone.
    Deleted,
    /// All its work is done, or has failed for good.
    Finished,
    /// The kubelet gave up on it: reason and message of the status.
    Failed(String, String),
}

/// The end of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub why: EndReason,
    /// When it began.
    pub since: Timestamp,
    /// How long containers may take.
    pub grace_seconds: i64,
}
