//! DefaultPreemption: which less important pods leave so that a pod finds a node. Pure.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/pod-priority-preemption/>

use std::cmp::Reverse;

use coxswain_meta::json::json;
use coxswain_meta::labels::Selector;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::cycle::reject;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// What a disruption budget still allows.
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// The pods it counts.
    pub selector: Selector,
    /// How many of them may go.
    pub allowed: i32,
}

/// Who leaves where.
#[derive(Debug)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// The pods that leave it.
    pub victims: Vec<PodInfo>,
    /// How many of them a budget would keep.
    violations: usize,
}

/// Whether a pod may drive others out now; not while those that it drove out are still leaving.
pub fn is_eligible(pod: &PodInfo, snapshot: &Snapshot) -> bool {
    let spec = pod.object.spec.as_ref();
    if spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return false;
    }
    let Some(nominated) = snapshot.nomination(&pod.uid) else { return true };
    let leaving =
        |other: &PodInfo| other.priority < pod.priority && other.object.metadata.deletion_timestamp.is_some();
    !snapshot.pods_on(nominated).any(leaving)
}

/// The least harm with which a node takes the pod; none where none does.
pub fn preempt(pod: &PodInfo, snapshot: &Snapshot, budgets: &[Budget]) -> Option<Preemption> {
    let candidates = snapshot.nodes().iter().filter_map(|node| victims_on(pod, node, snapshot, budgets));
    candidates.min_by_key(harm)
}

/// Upstream's order: kept budgets, then the importance of the most important victim, of all together, their number, and
/// last how long the most important ones have run already.
fn harm(found: &Preemption) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = found.victims.iter().map(|victim| victim.priority).max().unwrap_or(i32::MIN);
    // Negative priorities must not make more victims look like less harm.
    let sum = found.victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1).sum();
    let most_important = found.victims.iter().filter(|victim| victim.priority == highest);
    (found.violations, highest, sum, found.victims.len(), Reverse(most_important.filter_map(started).min()))
}

fn started(pod: &PodInfo) -> Option<Timestamp> {
    pod.object.status.as_ref()?.start_time.as_ref().map(|time| time.0)
}

/// The fewest and least important pods without which the node takes the pod.
fn victims_on(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot, budgets: &[Budget]) -> Option<Preemption> {
    let mut lesser: Vec<&PodInfo> =
        snapshot.pods_on(&node.name).filter(|other| other.priority < pod.priority).collect();
    if lesser.is_empty() {
        return None;
    }
    let mut left = node.clone();
    snapshot.add_nominated(pod, &mut left);
    lesser.iter().for_each(|other| left.subtract(other));
    if reject(pod, &left).is_some() {
        return None;
    }
    // The most important first: they are the first to be let back.
    lesser.sort_by(|a, b| {
        b.priority.cmp(&a.priority).then(started(a).cmp(&started(b))).then(a.uid.cmp(&b.uid))
    });
    let (kept_by_budgets, free) = by_budgets(&lesser, budgets);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (other, violates) in kept_by_budgets.iter().map(|p| (*p, 1)).chain(free.iter().map(|p| (*p, 0))) {
        left.add(other);
        if reject(pod, &left).is_some() {
            left.subtract(other);
            violations += violates;
            victims.push(other.clone());
        }
    }
    // Nothing has to leave where the node takes the pod as it is.
    (!victims.is_empty()).then(|| Preemption { node: node.name.clone(), victims, violations })
}

/// Those whose end a budget would forbid, and those that may go.
fn by_budgets<'a>(pods: &[&'a PodInfo], budgets: &[Budget]) -> (Vec<&'a PodInfo>, Vec<&'a PodInfo>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.iter().copied().partition(|pod| {
        let labels = json!(pod.object.labels());
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut allowed) {
            if budget.namespace == pod.key.namespace && budget.selector.matches_json(&labels) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coxswain_meta::json::{Value, from_value, json};
    use k8s_openapi::api::core::v1::{Node, Pod};

    use super::*;

    fn pod(name: &str, node: &str, priority: i32, cpu: &str) -> PodInfo {
        let pod = json!({"metadata": {"name": name, "uid": name, "namespace": "n", "labels": {"app": name}},
            "spec": {"priority": priority, "nodeName": node,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        PodInfo::new(&Arc::new(from_value::<Pod>(pod).expect("a pod")))
    }

    fn node(name: &str, spec: Value) -> Node {
        let node = json!({"metadata": {"name": name}, "spec": spec,
            "status": {"allocatable": {"cpu": "2", "pods": "10"}}});
        from_value(node).expect("a node")
    }

    fn cluster(pods: Vec<PodInfo>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.put_node(&node("a", json!({})));
        snapshot.put_node(&node("b", json!({})));
        snapshot.put_node(&node("closed", json!({"unschedulable": true})));
        pods.into_iter().for_each(|pod| snapshot.put_pod(pod));
        snapshot
    }

    fn left(pods: Vec<PodInfo>, cpu: &str, budgets: &[Budget]) -> Option<(String, Vec<String>)> {
        let found = preempt(&pod("new", "", 100, cpu), &cluster(pods), budgets)?;
        Some((found.node, found.victims.into_iter().map(|victim| victim.uid).collect()))
    }

    #[test]
    fn the_least_important_leave_and_no_more_than_needed() {
        let pods = || {
            vec![
                pod("a1", "a", 1, "1"),
                pod("a2", "a", 50, "1"),
                pod("b1", "b", 20, "1"),
                pod("b2", "b", 20, "1"),
                pod("free", "closed", 0, "1"),
            ]
        };
        assert_eq!(left(pods(), "1", &[]), Some(("a".into(), vec!["a1".into()])));
        // Both of a node have to go: those whose most important is the least.
        assert_eq!(left(pods(), "2", &[]), Some(("b".into(), vec!["b1".into(), "b2".into()])));
        assert_eq!(left(pods(), "3", &[]), None, "no node is large enough");
    }

    #[test]
    fn equals_and_betters_stay() {
        let pods = vec![pod("a1", "a", 100, "2"), pod("b1", "b", 200, "2")];
        assert_eq!(left(pods, "1", &[]), None);
    }

    #[test]
    fn budgets_are_kept_where_they_can_be() {
        let pods = vec![pod("a1", "a", 1, "2"), pod("b1", "b", 5, "2")];
        let selector = Selector::from_map(&json!({"app": "a1"}));
        let budget = Budget { namespace: "n".into(), selector, allowed: 0 };
        assert_eq!(left(pods, "1", &[budget]), Some(("b".into(), vec!["b1".into()])));
    }

    #[test]
    fn a_nominated_pod_is_reckoned_with_and_waits_for_its_room() {
        let mut victim = pod("a1", "a", 1, "2");
        Arc::make_mut(&mut victim.object).metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let mut snapshot = cluster(vec![victim, pod("b1", "b", 500, "2")]);
        let new = pod("new", "", 100, "2");
        snapshot.nominate(new.clone(), "a");
        assert!(!is_eligible(&new, &snapshot), "its victim is still leaving");
        snapshot.remove_pod("a1");
        assert!(is_eligible(&new, &snapshot));
        let lesser = pod("lesser", "", 10, "1");
        assert!(crate::cycle::schedule(&lesser, &snapshot, 0).is_err(), "the room is promised");
        assert!(crate::cycle::schedule(&new, &snapshot, 0).is_ok());
    }
}
