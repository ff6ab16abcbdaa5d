//! What a deployment's status says: counts, availability, progress.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::plan::Strategy;
use super::sets::{Sets, size_of};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
/// A deadline of this many seconds is none.
const NO_DEADLINE: i32 = i32::MAX;

/// The status as it should be, and when the progress deadline will have passed.
pub fn compute(
    deployment: &Deployment,
    sets: &Sets,
    strategy: Strategy,
    created: Option<&str>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let replicas = deployment.spec.replicas.unwrap_or(1);
    let sum = |field: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.all().filter_map(|set| set.status.as_ref()).map(field).sum()
    };
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let specified: i32 = sets.all().map(|set| size_of(set)).sum();
    let updated = sets.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let some = |count: i32| (count > 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(specified - available),
        collision_count: old.collision_count,
        ..DeploymentStatus::default()
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let (enough, reason, message) = if available >= strategy.least_available(replicas) {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut conditions, AVAILABLE, enough, reason, message.to_owned(), now);
    let next = progress(deployment, sets, &old, &status, &mut conditions, created, now);
    status.conditions = Some(conditions);
    (status, next)
}

fn is(condition: &DeploymentCondition, kind: &str) -> bool {
    condition.type_.as_deref() == Some(kind)
}

fn set(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let condition = |since: Option<Time>| DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(value.into()),
        reason: Some(reason.into()),
        message: Some(message.clone()),
        last_update_time: Some(Time(now)),
        last_transition_time: since.or(Some(Time(now))),
    };
    match conditions.iter_mut().find(|condition| is(condition, kind)) {
        Some(old)
            if old.status.as_deref() == Some(value)
                && old.reason.as_deref() == Some(reason)
                && old.message.as_deref() == Some(&message) => {}
        Some(old) => {
            let since =
                if old.status.as_deref() == Some(value) { old.last_transition_time.clone() } else { None };
            *old = condition(since);
        }
        None => conditions.push(condition(None)),
    }
}

/// The `Progressing` condition; returns when the deadline will have passed.
fn progress(
    deployment: &Deployment,
    sets: &Sets,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    created: Option<&str>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.clone();
    let deadline = spec.progress_deadline_seconds.filter(|seconds| *seconds != NO_DEADLINE);
    let current = conditions.iter().find(|condition| is(condition, PROGRESSING));
    let reason = current.as_ref().and_then(|condition| condition.reason.clone()).unwrap_or_default();
    let name = sets.new.as_ref().map(|set| set.name_any()).or(created.map(str::to_owned));
    let subject = name.map_or_else(
        || format!("Deployment \"{}\"", deployment.name_any()),
        |name| format!("ReplicaSet \"{name}\""),
    );
    if spec.paused == Some(true) {
        if deadline.is_some() && reason != "ProgressDeadlineExceeded" {
            set(conditions, PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into(), now);
        }
        return None;
    }
    if reason == "DeploymentPaused" {
        set(conditions, PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now);
        return deadline.map(|_| Duration::ZERO);
    }
    let deadline_seconds = deadline?;
    if let Some(created) = created {
        set(
            conditions,
            PROGRESSING,
            "True",
            "NewReplicaSetCreated",
            format!("Created new replica set \"{created}\""),
            now,
        );
        return Some(Duration::from_secs(u64::try_from(deadline_seconds).unwrap_or(0)));
    }
    let judged = Judged { subject, reason, replicas: spec.replicas.unwrap_or(1), deadline_seconds, now };
    advance(&judged, old, status, conditions)
}

/// A rollout that is neither paused nor has just begun.
struct Judged {
    /// What the messages are about.
    subject: String,
    /// The reason of the condition so far.
    reason: String,
    replicas: i32,
    deadline_seconds: i32,
    now: Timestamp,
}

/// Compares two statuses: whether the rollout is complete, moved, or has stood still too long.
fn advance(
    judged: &Judged,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
) -> Option<Duration> {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let complete = count(status.updated_replicas) == judged.replicas
        && count(status.replicas) == judged.replicas
        && count(status.available_replicas) == judged.replicas;
    let settled = judged.reason == "NewReplicaSetAvailable"
        && old.observed_generation == status.observed_generation
        && count(old.updated_replicas) == count(old.replicas);
    if complete {
        set(
            conditions,
            PROGRESSING,
            "True",
            "NewReplicaSetAvailable",
            format!("{} has successfully progressed.", judged.subject),
            judged.now,
        );
        return None;
    }
    if settled
        && count(status.replicas) == count(status.updated_replicas)
        && count(old.replicas) == count(status.replicas)
    {
        // A finished rollout whose pods come and go makes no new progress to speak of.
        return None;
    }
    let behind = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    let moved = count(status.updated_replicas) > count(old.updated_replicas)
        || behind(status) < behind(old)
        || count(status.ready_replicas) > count(old.ready_replicas)
        || count(status.available_replicas) > count(old.available_replicas);
    if moved || judged.reason.is_empty() || judged.reason == "NewReplicaSetAvailable" {
        conditions
            .retain(|condition| !is(condition, PROGRESSING) || condition.status.as_deref() == Some("True"));
        // Progress restarts the clock even where the words stay the same.
        if let Some(condition) = conditions.iter_mut().find(|condition| is(condition, PROGRESSING)) {
            condition.message = None;
        }
        set(
            conditions,
            PROGRESSING,
            "True",
            "ReplicaSetUpdated",
            format!("{} is progressing.", judged.subject),
            judged.now,
        );
    }
    let since = conditions
        .iter()
        .find(|condition| is(condition, PROGRESSING))
        .and_then(|condition| condition.last_update_time.clone());
    let Time(since) = since?;
    if judged.reason == "ProgressDeadlineExceeded" && !moved {
        return None;
    }
    let left = SignedDuration::from_secs(judged.deadline_seconds.into()) - judged.now.duration_since(since);
    if left.is_positive() {
        return Some(left.unsigned_abs());
    }
    set(
        conditions,
        PROGRESSING,
        "False",
        "ProgressDeadlineExceeded",
        format!("{} has timed out progressing.", judged.subject),
        judged.now,
    );
    None
}
