//! Writes a pod's status and, at its end, deletes its object: what is to be written (pure), and the writing.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use super::status::urgent;
use crate::model::PodId;

/// How long an unimportant change waits for company.
const GATHER: SignedDuration = SignedDuration::from_millis(250);
const LONGEST_RETRY_MILLISECONDS: i64 = 10_000;

/// What has been written of a pod's status, and what is to be.
pub struct Publisher {
    written: PodStatus,
    desired: Option<PodStatus>,
    in_flight: Option<PodStatus>,
    not_before: Timestamp,
    failures: u32,
}

impl Publisher {
    /// Nothing is to be written when the API server has `found` and nothing changes.
    pub fn new(found: PodStatus) -> Self {
        Self {
            written: found,
            desired: None,
            in_flight: None,
            not_before: Timestamp::UNIX_EPOCH,
            failures: 0,
        }
    }

    /// The newest status, written or not: the base of the next.
    pub fn latest(&self) -> &PodStatus {
        self.desired.as_ref().unwrap_or(&self.written)
    }

    /// Takes a new status, to be written if it differs; not before `hold`.
    pub fn offer(&mut self, status: PodStatus, hold: Option<Timestamp>, now: Timestamp) {
        let current = self.in_flight.as_ref().unwrap_or(&self.written);
        if *current == status {
            self.desired = None;
            return;
        }
        if let Some(at) = hold.filter(|at| *at > now) {
            self.not_before = self.not_before.max(at);
        } else if urgent(current, &status) {
            self.not_before = if self.failures == 0 { now } else { self.not_before };
        } else if self.desired.is_none() && self.failures == 0 {
            self.not_before = now + GATHER;
        }
        self.desired = Some(status);
    }

    /// Whether everything has been written.
    pub fn settled(&self) -> bool {
        self.desired.is_none() && self.in_flight.is_none()
    }

    /// Lets nothing wait for company any longer.
    pub fn hurry(&mut self) {
        if self.failures == 0 {
            self.not_before = Timestamp::UNIX_EPOCH;
        }
    }

    /// When the next write is due; `None` when nothing is to be written or a write is under way.
    pub fn due(&self) -> Option<Timestamp> {
        self.desired.as_ref().filter(|_| self.in_flight.is_none()).map(|_| self.not_before)
    }

    /// The patch to send now; follow it with [`Publisher::sent`].
    pub fn take(&mut self, id: &PodId) -> Option<Value> {
        let desired = self.desired.take()?;
        let body = patch(id, &self.written, &desired);
        self.in_flight = Some(desired);
        Some(body)
    }

    /// Ends a write.
    pub fn sent(&mut self, written: bool, now: Timestamp) {
        let Some(status) = self.in_flight.take() else { return };
        if written {
            (self.written, self.failures) = (status, 0);
            return;
        }
        let delay = (100_i64 << self.failures.min(7)).min(LONGEST_RETRY_MILLISECONDS);
        self.failures += 1;
        self.not_before = now + SignedDuration::from_millis(delay);
        self.desired.get_or_insert(status);
    }
}

/// A strategic merge patch from one status to another: only what changed, conditions by their type.
fn patch(id: &PodId, old: &PodStatus, new: &PodStatus) -> Value {
    let object = |status| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let mut changed = Map::new();
    for (key, value) in &new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        let value = match (key.as_str(), value, before) {
            ("conditions", Value::Array(conditions), Some(Value::Array(before))) => {
                let news = conditions.iter().filter(|c| !before.contains(c)).cloned().map(cleared);
                let over = before.iter().filter(|old| comes_and_goes(old) && !has_type(conditions, old));
                let over = over.map(|old| json!({ "$patch": "delete", "type": old["type"] }));
                Value::Array(news.chain(over).collect())
            }
            ("podIPs" | "hostIPs", Value::Array(ips), Some(_)) => {
                let replace = std::iter::once(json!({ "$patch": "replace" }));
                Value::Array(replace.chain(ips.iter().cloned()).collect())
            }
            _ => value.clone(),
        };
        changed.insert(key.clone(), value);
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        changed.insert(key.clone(), Value::Null);
    }
    json!({ "metadata": { "uid": id.uid }, "status": changed })
}

/// Conditions of a resize are there only while they are true; others are never taken away.
fn comes_and_goes(condition: &Value) -> bool {
    condition["type"].as_str().is_some_and(|type_| type_.starts_with("PodResize"))
}

fn has_type(conditions: &[Value], other: &Value) -> bool {
    conditions.iter().any(|condition| condition["type"] == other["type"])
}

/// A condition whose absent members are taken away, since conditions are merged.
fn cleared(mut condition: Value) -> Value {
    if let Value::Object(map) = &mut condition {
        for key in ["reason", "message"] {
            map.entry(key).or_insert(Value::Null);
        }
    }
    condition
}

/// Sends a status patch; `false` when it has to be sent again. A pod that is gone needs no status.
pub async fn write(client: Client, id: &PodId, body: Value) -> bool {
    let pods: Api<Pod> = Api::namespaced(client, &id.namespace);
    match pods.patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(body)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => true,
        Err(error) => {
            tracing::debug!(pod = %id, %error, "pod status not written");
            false
        }
    }
}

/// Deletes the object of a pod that has ended; `false` when it has to be tried again.
pub async fn delete(client: Client, id: &PodId) -> bool {
    let pods: Api<Pod> = Api::namespaced(client, &id.namespace);
    let preconditions = Preconditions { uid: Some(id.uid.clone()), resource_version: None };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match pods.delete(&id.name, &params).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => true,
        Err(error) => {
            tracing::debug!(pod = %id, %error, "pod not deleted");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    fn condition(type_: &str, status: &str) -> PodCondition {
        PodCondition { type_: type_.to_owned(), status: status.to_owned(), ..PodCondition::default() }
    }

    #[test]
    fn a_patch_holds_only_what_changed() {
        let old = PodStatus {
            phase: Some("Pending".to_owned()),
            reason: Some("Old".to_owned()),
            host_ip: Some("1.2.3.4".to_owned()),
            conditions: Some(vec![
                condition("Ready", "False"),
                condition("Initialized", "True"),
                condition("PodResizeInProgress", "True"),
                condition("example.com/foreign", "True"),
            ]),
            pod_ips: Some(vec![PodIP { ip: "10.0.0.1".to_owned() }]),
            ..PodStatus::default()
        };
        let new = PodStatus {
            phase: Some("Running".to_owned()),
            reason: None,
            conditions: Some(vec![condition("Ready", "True"), condition("Initialized", "True")]),
            pod_ips: Some(vec![PodIP { ip: "10.0.0.2".to_owned() }]),
            ..old.clone()
        };
        let id = PodId { uid: "u".to_owned(), ..PodId::default() };
        let expected = json!({ "metadata": { "uid": "u" }, "status": {
            "phase": "Running",
            "reason": null,
            "conditions": [
                { "type": "Ready", "status": "True", "reason": null, "message": null },
                { "$patch": "delete", "type": "PodResizeInProgress" },
            ],
            "podIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.2" }],
        } });
        assert_eq!(patch(&id, &old, &new), expected);
    }

    #[test]
    fn a_failed_write_is_repeated_with_the_newest_status() {
        let now = Timestamp::UNIX_EPOCH;
        let running = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        let mut publisher = Publisher::new(PodStatus::default());
        publisher.offer(running.clone(), None, now);
        assert_eq!(publisher.due(), Some(now), "a new phase does not wait");
        assert!(publisher.take(&PodId::default()).is_some());
        assert_eq!(publisher.due(), None);
        publisher.sent(false, now);
        assert_eq!(publisher.due(), Some(now + SignedDuration::from_millis(100)));
        publisher.take(&PodId::default());
        publisher.sent(true, now);
        publisher.offer(running, None, now);
        assert!(publisher.settled());
    }

    #[test]
    fn a_replacement_is_told_when_it_is_over_or_takes_long() {
        let (now, hold) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1));
        let status = |ready: &str, generation| PodStatus {
            conditions: Some(vec![condition("Ready", ready)]),
            observed_generation: Some(generation),
            ..PodStatus::default()
        };
        let mut publisher = Publisher::new(status("True", 1));
        publisher.offer(status("True", 2), None, now);
        publisher.offer(status("False", 2), Some(hold), now);
        assert_eq!(publisher.due(), Some(hold), "not even with what waited before");
        publisher.offer(status("False", 2), Some(hold), hold);
        assert_eq!(publisher.due(), Some(hold), "at once when it takes long");
        publisher.offer(status("True", 1), None, now);
        assert!(publisher.settled(), "nothing was to be seen");
    }
}
