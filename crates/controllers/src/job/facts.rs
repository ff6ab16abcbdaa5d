//! What a job says and what its pods tell.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::pods;

/// Holds a pod until the job has counted it.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod's completion index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: the failures of an index that count.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation: the failures of an index that a policy lets pass.
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

const CONTROLLER: &str = "kubernetes.io/job-controller";
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// A job's spec, with what its defaults mean.
pub struct Terms<'a> {
    pub spec: &'a JobSpec,
    pub name: &'a str,
    pub indexed: bool,
    pub suspended: bool,
    /// A pod that is going is replaced only when it has ended.
    pub replaces_ended_only: bool,
}

impl<'a> Terms<'a> {
    /// The terms of a job; none when it has no spec.
    pub fn of(job: &'a Job) -> Option<Self> {
        let spec = job.spec.as_ref()?;
        Some(Self {
            spec,
            name: job.metadata.name.as_deref().unwrap_or_default(),
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            suspended: spec.suspend == Some(true),
            replaces_ended_only: spec.pod_failure_policy.is_some()
                || spec.pod_replacement_policy.as_deref() == Some("Failed"),
        })
    }

    /// Whether the job is another controller's.
    pub fn managed_elsewhere(&self) -> bool {
        self.spec.managed_by.as_deref().is_some_and(|by| by != CONTROLLER)
    }

    /// `spec.parallelism`.
    pub fn parallelism(&self) -> i32 {
        self.spec.parallelism.unwrap_or(1)
    }

    /// `spec.completions`, as the bound of indexes.
    pub fn completions(&self) -> u32 {
        self.spec.completions.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
    }

    /// A pod's completion index, where the job has such an index.
    pub fn index_of(&self, pod: &Pod) -> Option<u32> {
        index_of(pod).filter(|index| *index < self.completions())
    }

    /// Whether a pod counts as failed.
    pub fn has_failed(&self, pod: &Pod) -> bool {
        // A pod that is going may never come to say so.
        pods::phase(pod) == "Failed" || (!self.replaces_ended_only && pods::is_terminating(pod))
    }
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The completion index that a pod carries.
pub fn index_of(pod: &Pod) -> Option<u32> {
    annotation(pod, INDEX)?.parse().ok()
}

/// The failures of a pod's index before it: those that count, and those that do not.
pub fn failures_of(pod: &Pod) -> (u32, u32) {
    let count = |name| annotation(pod, name).and_then(|text| text.parse().ok());
    let valid = |count: Option<u32>| count.filter(|count| i32::try_from(*count).is_ok()).unwrap_or(0);
    (valid(count(INDEX_FAILURES)), valid(count(INDEX_IGNORED)))
}

/// Whether the pod has not been let go yet.
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// When a pod ended, as well as can be told.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let ended = status.and_then(|status| {
        let sidecar = |status: &&ContainerStatus| {
            let spec = pod.spec.as_ref();
            spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().any(|container| {
                container.name == status.name && container.restart_policy.as_deref() == Some("Always")
            })
        };
        let sidecars = status.init_container_statuses.iter().flatten().filter(sidecar);
        let ends: Option<Vec<Timestamp>> = status
            .container_statuses
            .iter()
            .flatten()
            .chain(sidecars)
            .map(|container| {
                let ended = container.state.as_ref()?.terminated.as_ref()?;
                ended.finished_at.as_ref().map(|Time(at)| *at)
            })
            .collect();
        ends?.into_iter().max()
    });
    let unready = || {
        let mut conditions = status?.conditions.iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status == "False")?;
        ready.last_transition_time.as_ref().map(|Time(at)| *at)
    };
    let deleted = || {
        let Time(at) = pod.metadata.deletion_timestamp.as_ref()?;
        let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
        at.checked_sub(grace).ok()
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|Time(at)| *at);
    ended.or_else(unready).or_else(deleted).or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The failures of a job since its last success; its next pod waits the longer the more they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    pub failures: u32,
    pub last: Option<Timestamp>,
}

impl Backoff {
    /// With the pods that ended since.
    pub fn after(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let success = succeeded.iter().map(|pod| finished_at(pod)).max();
        let failures = failed.iter().map(|pod| finished_at(pod));
        let failures: Vec<_> = failures.filter(|at| success.is_none_or(|success| *at > success)).collect();
        let before = if success.is_some() { Self::default() } else { self };
        Self {
            failures: before.failures + u32::try_from(failures.len()).unwrap_or(u32::MAX),
            last: failures.into_iter().max().or(before.last),
        }
    }

    /// How long the next pod has to wait.
    pub fn left(self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.failures > 0) else { return Duration::ZERO };
        let wait = FIRST_BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_BACKOFF);
        let passed = now.duration_since(last);
        if passed.is_negative() {
            wait + passed.unsigned_abs()
        } else {
            wait.saturating_sub(passed.unsigned_abs())
        }
    }
}

/// A condition that becomes true (or false) now.
pub fn condition(kind: &str, is: bool, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: if is { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The condition of a type, where it is true.
pub fn holds<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == kind && condition.status == "True")
}

/// The condition that ended the job.
pub fn finished(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    holds(status, "Complete").or_else(|| holds(status, "Failed"))
}

/// Puts a condition in the place of the one of its type. One that was never true does not become false. Whether anything
/// changed.
pub fn put(status: &mut JobStatus, condition: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|other| other.type_ == condition.type_) {
        Some(old) => {
            let same = (&old.status, &old.reason, &old.message)
                == (&condition.status, &condition.reason, &condition.message);
            if !same {
                *old = condition;
            }
            !same
        }
        None if condition.status == "True" => {
            conditions.push(condition);
            true
        }
        None => false,
    }
}
