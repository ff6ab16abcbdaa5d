//! How many pods to make, which to delete, and what the status says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::pods;

/// A creation burst is bounded; the rest follows in the next reconcile.
const BURST: usize = 500;

/// What brings the pods to the number wanted.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// They are that many.
    Nothing,
    /// Make some.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<Pod>>),
}

/// Compares the active pods with the number wanted.
pub fn step(replicas: i32, active: &[Arc<Pod>]) -> Step {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match active.len() {
        have if have < wanted => Step::Create((wanted - have).min(BURST)),
        have if have > wanted => Step::Delete(surplus(active, (have - wanted).min(BURST))),
        _ => Step::Nothing,
    }
}

fn surplus(active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let mut mates: HashMap<Option<String>, usize> = HashMap::new();
    for pod in active {
        *mates.entry(node(pod)).or_default() += 1;
    }
    let mut ranked: Vec<_> = active.iter().map(|pod| (pod.clone(), mates[&node(pod)])).collect();
    ranked.sort_by(|a, b| pods::deletion_order((&a.0, a.1), (&b.0, b.1)));
    ranked.into_iter().take(count).map(|(pod, _)| pod).collect()
}

/// The counts of a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
}

/// Counts the active pods; also when the next of them becomes available by time alone.
pub fn count(
    active: &[Arc<Pod>],
    is_labeled: impl Fn(&Pod) -> bool,
    min_ready_seconds: i32,
    now: Timestamp,
) -> (Counts, Option<Duration>) {
    let mut counts =
        Counts { replicas: i32::try_from(active.len()).unwrap_or(i32::MAX), ..Counts::default() };
    let mut next = None;
    for pod in active {
        counts.fully_labeled += i32::from(is_labeled(pod));
        counts.ready += i32::from(pods::is_ready(pod));
        match pods::is_available(pod, min_ready_seconds, now) {
            Ok(()) => counts.available += 1,
            Err(Some(left)) => next = Some(next.map_or(left, |next: Duration| next.min(left))),
            Err(None) => {}
        }
    }
    (counts, next)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: Option<&str>, ready: bool) -> Arc<Pod> {
        let condition = json!([{ "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": if node.is_some() { "Running" } else { "Pending" }, "conditions": condition } });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let pods = [
            pod("ready", Some("a"), true),
            pod("crowded", Some("b"), true),
            pod("mate", Some("b"), true),
            pod("unready", Some("c"), false),
            pod("unscheduled", None, false),
        ];
        let Step::Delete(gone) = step(2, &pods) else { panic!("five are too many") };
        let names: Vec<_> = gone.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["unscheduled", "unready", "crowded"]);
        assert_eq!(step(5, &pods), Step::Nothing);
        assert_eq!(step(7, &pods), Step::Create(2));
    }

    #[test]
    fn availability_is_a_matter_of_time() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let (counts, next) = count(&[pod("p", Some("a"), true)], |_| true, 30, now);
        assert_eq!((counts.ready, counts.available, next), (1, 0, Some(Duration::from_secs(20))));
        assert_eq!(count(&[pod("p", Some("a"), true)], |_| true, 10, now).0.available, 1);
    }
}
