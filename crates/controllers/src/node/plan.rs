//! What a node's silence and conditions mean: taints, and when pods have to leave.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::pods::tolerates;

/// A node that has not renewed its lease for this long is not known to live.
pub const GRACE: SignedDuration = SignedDuration::from_secs(40);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// How long until a node that renewed at some time counts as silent; none where it does already.
pub fn until_silent(renewed: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let left = GRACE - now.duration_since(renewed?);
    left.is_positive().then(|| left.unsigned_abs())
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.iter().flatten();
    conditions.filter(|condition| condition.type_ == kind).map(|condition| condition.status.as_str()).next()
}

/// The taints a node has to carry for its conditions: key and effect.
fn wanted(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut taints = Vec::new();
    match condition(node, "Ready") {
        Some("True") => {}
        Some("Unknown") => taints.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        Some(_) => taints.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        None => taints.push((NOT_READY, "NoSchedule")),
    }
    for (kind, key) in [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ] {
        if condition(node, kind) == Some("True") {
            taints.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    taints
}

const OURS: [&str; 7] = [
    NOT_READY,
    UNREACHABLE,
    UNSCHEDULABLE,
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
];

/// The node's taints as they should be; none where they are so already.
pub fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let wanted = wanted(node);
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| !OURS.contains(&taint.key.as_str()) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in &wanted {
        if !taints.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            let time_added = (*effect == "NoExecute").then_some(Time(now));
            taints.push(Taint { key: (*key).into(), effect: (*effect).into(), value: None, time_added });
        }
    }
    (taints != current).then_some(taints)
}

/// When a pod has to leave a node because of its NoExecute taints: none is never, zero is now.
pub fn eviction(pod: &Pod, node: &Node, now: Timestamp) -> Option<Duration> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let mut leaves: Option<Duration> = None;
    for taint in taints.filter(|taint| taint.effect == "NoExecute") {
        let tolerated: Vec<&Toleration> =
            tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        let shortest = tolerated.iter().filter_map(|toleration| toleration.toleration_seconds).min();
        let after = match (tolerated.is_empty(), shortest) {
            (true, _) => Duration::ZERO,
            (false, None) => continue,
            (false, Some(seconds)) => {
                let since = taint.time_added.as_ref().map_or(now, |Time(at)| *at);
                let left = SignedDuration::from_secs(seconds.max(0)) - now.duration_since(since);
                if left.is_positive() { left.unsigned_abs() } else { Duration::ZERO }
            }
        };
        leaves = Some(leaves.map_or(after, |leaves| leaves.min(after)));
    }
    leaves
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: &str, taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "taints": taints },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] } }))
        .unwrap()
    }

    #[test]
    fn taints_follow_conditions_and_foreign_ones_stay() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let foreign =
            json!([{ "key": "own", "effect": "NoSchedule" }, { "key": NOT_READY, "effect": "NoSchedule" }]);
        let ready = taints(&node("True", foreign.clone()), now).unwrap();
        assert_eq!(ready.iter().map(|taint| taint.key.as_str()).collect::<Vec<_>>(), ["own"]);
        let keys: Vec<_> =
            taints(&node("False", foreign), now).unwrap().into_iter().map(|taint| taint.effect).collect();
        assert_eq!(keys, ["NoSchedule", "NoSchedule", "NoExecute"]);
        assert_eq!(taints(&node("True", json!([])), now), None);
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let node = node(
            "Unknown",
            json!([{ "key": UNREACHABLE, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z" }]),
        );
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({ "spec": { "containers": [], "tolerations": tolerations } }))
                .unwrap()
        };
        assert_eq!(eviction(&pod(json!([])), &node, now), Some(Duration::ZERO));
        let patient = json!([{ "key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }]);
        assert_eq!(eviction(&pod(patient), &node, now), Some(Duration::from_secs(240)));
        assert_eq!(eviction(&pod(json!([{ "operator": "Exists" }])), &node, now), None);
        assert_eq!(
            until_silent(Some("2026-01-01T00:00:30Z".parse().unwrap()), now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(until_silent(Some("2026-01-01T00:00:10Z".parse().unwrap()), now), None);
    }
}
