//! TaintToleration and NodeUnschedulable.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let (key, effect) = (text(&toleration.key), text(&toleration.effect));
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists || text(&toleration.value) == text(&taint.value))
}

fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo, effects: &[&str]) -> Vec<&'a Taint> {
    let matters = |taint: &&Taint| effects.contains(&taint.effect.as_str());
    let refused = |taint: &&Taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint));
    node.taints.iter().filter(matters).filter(refused).collect()
}

/// Filter of NodeUnschedulable.
pub fn unschedulable(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let taint = Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
    let refuses =
        node.unschedulable && !pod.tolerations.iter().any(|toleration| tolerates(toleration, &taint));
    if refuses { vec!["node(s) were unschedulable".into()] } else { Vec::new() }
}

/// Filter of TaintToleration.
pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    match untolerated(pod, node, &["NoSchedule", "NoExecute"]).first() {
        Some(taint) => vec![format!(
            "node(s) had untolerated taint(s) {{{}: {}}}",
            taint.key,
            taint.value.as_deref().unwrap_or_default()
        )],
        None => Vec::new(),
    }
}

/// Score of TaintToleration: how many taints would rather not have the pod.
pub fn score(pod: &PodInfo, node: &NodeInfo) -> i64 {
    i64::try_from(untolerated(pod, node, &["PreferNoSchedule"]).len()).unwrap_or(i64::MAX)
}
