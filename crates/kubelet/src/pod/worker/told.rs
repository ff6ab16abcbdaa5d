//! What a worker says of containers that wait: the reasons in the status, and the events of those in back-off.

use std::collections::BTreeMap;

use coxswain_client::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::pod::plan::{Plan, Work};
use crate::pod::{Waiting, containers};

impl Worker {
    /// Why containers wait.
    pub(super) fn waiting(&self, plan: &Plan, now: Timestamp) -> BTreeMap<String, Waiting> {
        let mut waiting = plan.waiting.clone();
        for (name, failed) in &self.failed {
            if let Some(reason) = &failed.waiting {
                let backing_off =
                    self.retries.get(&Work::Container(name.clone())).is_some_and(|at| *at > now);
                let reason = if failed.told && backing_off {
                    pull_backoff(&self.pod, name, reason)
                } else {
                    reason.clone()
                };
                waiting.insert(name.clone(), reason);
            }
        }
        waiting
    }

    /// The events of containers in back-off.
    pub(super) fn tell_backoff(&mut self, plan: &Plan, now: Timestamp) {
        for name in plan.waiting.keys() {
            if self.crash_told.insert(name.clone()) {
                let text = format!("Back-off restarting failed container {name} in pod {}", self.id);
                self.kubelet.events.container(&self.pod, name, EventType::Warning, "BackOff", text);
            }
        }
        let mut later = None;
        for (name, failed) in &mut self.failed {
            let pulling = failed.waiting.as_ref().is_some_and(|w| w.reason == "ErrImagePull");
            let at = failed.since + SignedDuration::from_secs(2);
            if !pulling || failed.told {
                continue;
            }
            if now < at {
                later = Some(later.map_or(at, |old: Timestamp| old.min(at)));
                continue;
            }
            failed.told = true;
            let image = containers::find(&self.pod, name).and_then(|(_, c)| c.image).unwrap_or_default();
            let events = &self.kubelet.events;
            let text = format!("Back-off pulling image \"{image}\"");
            events.container(&self.pod, name, EventType::Normal, "BackOff", text);
            events.container(&self.pod, name, EventType::Warning, "Failed", "Error: ImagePullBackOff");
        }
        if let Some(at) = later {
            self.wake(at);
        }
    }
}

/// What a container whose pull failed shows until the next attempt.
fn pull_backoff(pod: &Pod, name: &str, failed: &Waiting) -> Waiting {
    if failed.reason != "ErrImagePull" {
        return failed.clone();
    }
    let image = containers::find(pod, name).and_then(|(_, c)| c.image).unwrap_or_default();
    let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failed.message);
    Waiting { reason: "ImagePullBackOff".to_owned(), message }
}
