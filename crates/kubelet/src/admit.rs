//! Whether the node takes a pod: resources, host ports, node affinity, taints that do not tolerate it. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::pod::containers::{self, spec};
use crate::quantities;
use crate::spec::resources::pod_request;

/// Why the node does not take a pod: reason and message of its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// A word, such as `OutOfcpu`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Decides whether the node takes a pod besides the `others` it has.
///
/// # Errors
/// The reason why not.
pub fn admit(pod: &Pod, others: &[Arc<Pod>], node: &Node, max_pods: u32) -> Result<(), Rejection> {
    fits(pod, others, node, max_pods)?;
    let reject = |reason: &str, sentence: &str| {
        let message = format!("Predicate {reason} failed: {sentence}");
        Err(Rejection { reason: reason.to_owned(), message })
    };
    if !matches_node(pod, node) {
        return reject("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let taken: Vec<HostPort> = others.iter().flat_map(|other| host_ports(other)).collect();
    if host_ports(pod).iter().any(|port| taken.iter().any(|other| port.conflicts(other))) {
        return reject("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let tolerations = spec(pod).tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    if taints.iter().filter(|t| t.effect == "NoExecute").any(|t| !tolerations.iter().any(|o| tolerates(o, t)))
    {
        return reject("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    Ok(())
}

/// Why a pod cannot be made larger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The node is too small.
    Ever(String),
    /// Others use what is there.
    Now(String),
}

/// Whether the node has what a pod wants besides the `others`.
///
/// # Errors
/// Why not.
pub fn room(pod: &Pod, others: &[Arc<Pod>], node: &Node) -> Result<(), NoRoom> {
    if let Err(alone) = fits(pod, &[], node, u32::MAX) {
        return Err(NoRoom::Ever(alone.message));
    }
    fits(pod, others, node, u32::MAX).map_err(|rejection| NoRoom::Now(rejection.message))
}

fn fits(pod: &Pod, others: &[Arc<Pod>], node: &Node, max_pods: u32) -> Result<(), Rejection> {
    let out_of = |resource: &str, requested: i64, used: i64, capacity: i64| {
        Err(Rejection {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        })
    };
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count + 1 > i64::from(max_pods) {
        return out_of("pods", 1, count, i64::from(max_pods));
    }
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let Some(capacity) = allocatable.and_then(|a| a.get(resource)) else { continue };
        let read = if resource == "cpu" { quantities::milli } else { quantities::units };
        let (capacity, requested) = (read(capacity), pod_request(pod, resource));
        let used: i64 = others.iter().map(|other| pod_request(other, resource)).sum();
        if requested > 0 && used + requested > capacity {
            return out_of(resource, requested, used, capacity);
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let every = spec(pod).containers.iter().chain(containers::init_containers(pod).map(|(_, c)| c));
    let ports = every.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|p| *p > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some(HostPort { ip: port.host_ip.clone().unwrap_or_default(), protocol, port: number })
        })
        .collect()
}

/// Whether a toleration covers a taint.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && exists))
        && (exists
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

/// Node selector and required node affinity.
fn matches_node(pod: &Pod, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let selected =
        spec(pod).node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value.as_str()));
    let affinity = spec(pod).affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let terms = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref();
    selected
        && terms
            .is_none_or(|terms| terms.node_selector_terms.iter().any(|term| term_matches(term, &label, name)))
}

fn term_matches<'a>(
    term: &NodeSelectorTerm,
    label: &impl Fn(&str) -> Option<&'a str>,
    name: Option<&str>,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| requirement_matches(r, label(&r.key)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_matches(r, name))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let compare = |wanted: std::cmp::Ordering| {
        let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
        match (number(value), number(values.first().map(String::as_str))) {
            (Some(a), Some(b)) => a.cmp(&b) == wanted,
            _ => false,
        }
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(std::cmp::Ordering::Greater),
        "Lt" => compare(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).expect("a pod")
    }

    fn check(spec: Value, others: &[Value], expected: Option<&str>) {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n", "labels": { "disk": "ssd", "size": "5" } },
            "spec": { "taints": [{ "key": "gone", "effect": "NoExecute" }] },
            "status": { "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "3" } },
        }))
        .expect("a node");
        let others: Vec<Arc<Pod>> = others.iter().map(|o| Arc::new(pod(o.clone()))).collect();
        let mut spec = spec;
        spec["tolerations"] = json!([{ "operator": "Exists" }]);
        let got = admit(&pod(spec.clone()), &others, &node, 3).err().map(|r| r.reason);
        assert_eq!(got.as_deref(), expected, "{spec}");
    }

    #[test]
    fn a_pod_is_taken_or_refused_for_the_right_reason() {
        let cpu = |amount: &str| json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] });
        let port = |ip: &str| json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 1, "hostPort": 80, "hostIP": ip }] }] });
        let empty = json!({ "containers": [] });
        check(cpu("600m"), &[cpu("400m")], None);
        check(cpu("601m"), &[cpu("400m")], Some("OutOfcpu"));
        check(empty.clone(), &[empty.clone(), empty.clone(), empty.clone()], Some("OutOfpods"));
        check(port(""), &[port("10.0.0.1")], Some("NodePorts"));
        check(port("10.0.0.2"), &[port("10.0.0.1")], None);
        check(json!({ "containers": [], "nodeSelector": { "disk": "hdd" } }), &[], Some("NodeAffinity"));
        let affinity = |operator: &str| {
            json!({ "containers": [], "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                    { "matchExpressions": [{ "key": "size", "operator": operator, "values": ["4"] }] }] } } } })
        };
        check(affinity("Gt"), &[], None);
        check(affinity("Lt"), &[], Some("NodeAffinity"));
        let node: Node = serde_json::from_value(json!({ "metadata": {},
            "spec": { "taints": [{ "key": "gone", "effect": "NoExecute" }] } }))
        .expect("a node");
        let refused = admit(&pod(empty), &[], &node, 9).expect_err("not tolerated");
        assert_eq!(refused.reason, "TaintToleration");
    }
}
