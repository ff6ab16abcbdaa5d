//! Pods that wait for a node: ready to be tried, backing off, or waiting for an event that may help.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::cycle::Failure;
use crate::framework::Event;
use crate::pod::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// The most important first, then the one that came first.
type Order = (std::cmp::Reverse<i32>, u64);

enum State {
    Active(Order),
    BackingOff(Instant),
    Waiting(Failure),
}

struct Entry {
    pod: PodInfo,
    attempts: u32,
    came: u64,
    tried: Option<Instant>,
    state: State,
}

/// The queue, by uid.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeMap<Order, String>,
    came: u64,
}

impl Queue {
    /// A pod wants a node. One that is known keeps its place, unless its spec changed: then it is tried again.
    pub fn put(&mut self, pod: PodInfo) {
        let uid = pod.uid.clone();
        if let Some(entry) = self.entries.get_mut(&uid) {
            let changed = entry.pod.object.spec != pod.object.spec
                || entry.pod.object.metadata.labels != pod.object.metadata.labels;
            entry.pod = pod;
            if changed && matches!(entry.state, State::Waiting(_)) {
                self.activate(&uid);
            }
            return;
        }
        self.came += 1;
        let entry = Entry {
            pod,
            attempts: 0,
            came: self.came,
            tried: None,
            state: State::BackingOff(Instant::now()),
        };
        self.entries.insert(uid.clone(), entry);
        self.activate(&uid);
    }

    /// A pod wants no node any more.
    pub fn remove(&mut self, uid: &str) {
        if let Some(Entry { state: State::Active(order), .. }) = self.entries.remove(uid) {
            self.active.remove(&order);
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            let order = (std::cmp::Reverse(entry.pod.priority), entry.came);
            entry.state = State::Active(order);
            self.active.insert(order, uid.to_owned());
        }
    }

    /// The next pod to try. It leaves the queue; [`Queue::failed`] puts it back.
    pub fn pop(&mut self) -> Option<(PodInfo, Attempt)> {
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.remove(&uid)?;
        Some((entry.pod, Attempt { attempts: entry.attempts + 1, came: entry.came }))
    }

    /// No node takes the pod: it waits for an event that helps.
    pub fn failed(&mut self, pod: PodInfo, attempt: Attempt, failure: Failure) {
        self.insert(pod, attempt, State::Waiting(failure));
    }

    /// The node was found but not bound: the pod is tried again after a while.
    pub fn retry(&mut self, pod: PodInfo, attempt: Attempt) {
        let state = State::BackingOff(Instant::now() + backoff(attempt.attempts));
        self.insert(pod, attempt, state);
    }

    fn insert(&mut self, pod: PodInfo, attempt: Attempt, state: State) {
        let entry =
            Entry { attempts: attempt.attempts, came: attempt.came, tried: Some(Instant::now()), state, pod };
        self.entries.insert(entry.pod.uid.clone(), entry);
    }

    /// Something happened: pods that it may help are tried again, once their back-off has passed.
    pub fn on_event(&mut self, event: Event) {
        for entry in self.entries.values_mut() {
            if matches!(&entry.state, State::Waiting(failure) if failure.is_helped_by(event)) {
                let since = entry.tried.unwrap_or_else(Instant::now);
                entry.state = State::BackingOff(since + backoff(entry.attempts));
            }
        }
        self.wake();
    }

    /// Makes pods active whose back-off has passed; when the next one's passes.
    pub fn wake(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let (mut due, mut next) = (Vec::new(), None);
        for (uid, entry) in &self.entries {
            match entry.state {
                State::BackingOff(at) if at <= now => due.push(uid.clone()),
                State::BackingOff(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
                _ => {}
            }
        }
        due.iter().for_each(|uid| self.activate(uid));
        next
    }
}

/// The history of a pod's attempts.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    attempts: u32,
    came: u64,
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::*;
    use crate::cycle::schedule;
    use crate::snapshot::Snapshot;

    fn pod(name: &str, priority: i32, cpu: &str) -> PodInfo {
        let containers = json!([{ "name": "c", "resources": { "requests": { "cpu": cpu } } }]);
        let pod = json!({ "metadata": { "name": name, "uid": name }, "spec": { "priority": priority, "containers": containers } });
        PodInfo::new(&Arc::new(serde_json::from_value::<Pod>(pod).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_important_go_first_and_failures_wait_for_what_helps() {
        let mut queue = Queue::default();
        queue.put(pod("low", 0, "1"));
        queue.put(pod("high", 10, "64"));
        queue.put(pod("low2", 0, "1"));
        let (high, attempt) = queue.pop().unwrap();
        assert_eq!(high.uid, "high");
        assert_eq!(queue.pop().unwrap().0.uid, "low");
        assert_eq!(queue.pop().unwrap().0.uid, "low2");

        let mut snapshot = Snapshot::default();
        let node =
            json!({ "metadata": { "name": "n" }, "status": { "allocatable": { "cpu": "2", "pods": "10" } } });
        snapshot.put_node(&serde_json::from_value::<Node>(node).unwrap());
        let failure = schedule(&high, &snapshot, 0).unwrap_err();
        queue.failed(high, attempt, failure);
        tokio::time::advance(Duration::from_secs(60)).await;
        queue.on_event(Event::NodeLabelsChanged);
        assert!(
            queue.pop().is_none(),
            "labels do not help a pod that lacks CPU, and time alone does not either"
        );
        queue.on_event(Event::CapacityFreed);
        assert_eq!(queue.pop().unwrap().0.uid, "high");
    }
}
