//! Whether a node is one on which a DaemonSet's pod runs, and how a pod is bound to its node.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Taint, Toleration,
};

use crate::pods::tolerates;

const NAME: &str = "metadata.name";
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a pod runs on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It has to.
    Runs,
    /// It stays when it is there.
    Stays,
    /// It must not.
    Leaves,
}

/// What daemons tolerate: they serve nodes in trouble too.
pub fn add_tolerations(spec: &mut PodSpec) {
    let network = spec.host_network.filter(|host| *host).map(|_| NO_NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let wanted = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let same = |other: &&mut Toleration| {
            (&other.key, &other.operator, &other.effect) == (&wanted.key, &wanted.operator, &wanted.effect)
        };
        match tolerations.iter_mut().find(same) {
            Some(other) => *other = wanted,
            None => tolerations.push(wanted),
        }
    }
}

/// Whether a pod of this spec, with the tolerations of daemons, runs on a node.
pub fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let named = spec.node_name.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == name);
    if !named || !selects(spec, node) {
        return Fit::Leaves;
    }
    let taints = || node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let hurts =
        |taint: &Taint| !spec.tolerations.iter().flatten().any(|toleration| tolerates(toleration, taint));
    let repels = |effect: &str| taints().any(|taint| taint.effect == effect && hurts(taint));
    match (repels("NoExecute"), repels("NoSchedule")) {
        (true, _) => Fit::Leaves,
        (false, true) => Fit::Stays,
        (false, false) => Fit::Runs,
    }
}

fn selects(spec: &PodSpec, node: &Node) -> bool {
    let label =
        |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let by_labels =
        spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value.as_str()));
    let field = |key: &str| (key == NAME).then_some(node.metadata.name.as_deref()).flatten();
    let meets = |term: &NodeSelectorTerm| {
        let expressions = term.match_expressions.iter().flatten();
        let fields = term.match_fields.iter().flatten();
        (term.match_expressions.is_some() || term.match_fields.is_some())
            && expressions.into_iter().all(|wanted| meets(wanted, label(&wanted.key)))
            && fields.into_iter().all(|wanted| meets(wanted, field(&wanted.key)))
    };
    by_labels && required(spec).is_none_or(|selector| selector.node_selector_terms.iter().any(meets))
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = || wanted.values.iter().flatten();
    let is_in = || value.is_some_and(|value| values().any(|wanted| wanted == value));
    let compared = || {
        let wanted: i64 = values().next()?.parse().ok()?;
        Some(value?.parse::<i64>().ok()?.cmp(&wanted))
    };
    match wanted.operator.as_str() {
        "In" => is_in(),
        "NotIn" => !is_in(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

/// Binds a pod to a node by affinity; the scheduler does the rest.
pub fn bind(spec: &mut PodSpec, node: &str) {
    let by_name =
        NodeSelectorRequirement { key: NAME.into(), operator: "In".into(), values: Some(vec![node.into()]) };
    let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), ..NodeSelectorTerm::default() };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a pod is bound to, or will be.
pub fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let mut fields =
        required(spec)?.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let by_name = fields.find(|field| field.key == NAME && field.operator == "In")?;
    by_name.values.as_ref().filter(|values| values.len() == 1)?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_is_chosen_by_labels_name_and_taints() {
        let node = |taints: Value| -> Node {
            serde_json::from_value(
                json!({ "metadata": { "name": "a", "labels": { "disk": "ssd", "size": "5" } },
                "spec": { "taints": taints } }),
            )
            .unwrap()
        };
        let check = |spec: Value, taints: Value, expected: Fit| {
            let mut spec_value = json!({ "containers": [] });
            spec_value.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let mut pod: PodSpec = serde_json::from_value(spec_value).unwrap();
            add_tolerations(&mut pod);
            assert_eq!(fit(&pod, &node(taints.clone())), expected, "{spec} {taints}");
        };
        check(json!({}), json!([]), Fit::Runs);
        check(
            json!({}),
            json!([{ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule" }]),
            Fit::Runs,
        );
        check(json!({}), json!([{ "key": "x", "effect": "NoSchedule" }]), Fit::Stays);
        check(json!({}), json!([{ "key": "x", "effect": "NoExecute" }]), Fit::Leaves);
        check(json!({}), json!([{ "key": "x", "effect": "PreferNoSchedule" }]), Fit::Runs);
        let network = json!([{ "key": NO_NETWORK.0, "effect": NO_NETWORK.1 }]);
        check(json!({}), network.clone(), Fit::Stays);
        check(json!({ "hostNetwork": true }), network, Fit::Runs);
        check(json!({ "nodeSelector": { "disk": "hdd" } }), json!([]), Fit::Leaves);
        check(json!({ "nodeName": "b" }), json!([]), Fit::Leaves);
        let affinity = |expression: Value| {
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [expression] }] } } } })
        };
        check(affinity(json!({ "key": "size", "operator": "Gt", "values": ["4"] })), json!([]), Fit::Runs);
        check(
            affinity(json!({ "key": "disk", "operator": "NotIn", "values": ["ssd"] })),
            json!([]),
            Fit::Leaves,
        );
    }

    #[test]
    fn a_bound_pod_tells_its_node() {
        let mut pod: Pod = serde_json::from_value(json!({ "spec": { "containers": [] } })).unwrap();
        assert_eq!(node_of(&pod), None);
        bind(pod.spec.as_mut().unwrap(), "a");
        assert_eq!(node_of(&pod), Some("a"));
    }
}
