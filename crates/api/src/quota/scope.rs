//! The scopes of a quota: which pods and claims it counts.

use coxswain_meta::json::Value;

use super::Consumer;
use crate::core::pod::{QosClass, qos_class};
use crate::value::{filled, has, int, items, text};

/// Whether all scopes of a quota hold for an object. A kind that has no scopes is counted only by quotas without any.
pub(super) fn matches(consumer: &Consumer, quota: &Value, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = items(spec, "scopes").iter().filter_map(Value::as_str);
    let mut plain = plain.map(|scope| holds(consumer, scope, "Exists", &[], object));
    let mut selected = items(&spec["scopeSelector"], "matchExpressions").iter().map(|selector| {
        let values: Vec<&str> = items(selector, "values").iter().filter_map(Value::as_str).collect();
        holds(consumer, text(selector, "scopeName"), text(selector, "operator"), &values, object)
    });
    plain.all(|holds| holds) && selected.all(|holds| holds)
}

fn holds(consumer: &Consumer, scope: &str, operator: &str, values: &[&str], object: &Value) -> bool {
    let spec = &object["spec"];
    match (consumer.plural.as_str(), scope) {
        ("pods", "Terminating") => int(spec, "activeDeadlineSeconds").is_some(),
        ("pods", "NotTerminating") => int(spec, "activeDeadlineSeconds").is_none(),
        ("pods", "BestEffort") => qos_class(object) == QosClass::BestEffort,
        ("pods", "NotBestEffort") => qos_class(object) != QosClass::BestEffort,
        ("pods", "PriorityClass") => selects(operator, values, &[text(spec, "priorityClassName")]),
        ("pods", "CrossNamespacePodAffinity") => crosses_namespaces(&spec["affinity"]),
        ("persistentvolumeclaims", "VolumeAttributesClass") => {
            let status = &object["status"];
            let named = [
                text(spec, "volumeAttributesClassName"),
                text(status, "currentVolumeAttributesClassName"),
                text(&status["modifyVolumeStatus"], "targetVolumeAttributesClassName"),
            ];
            selects(operator, values, &named)
        }
        _ => false,
    }
}

/// An operator over what an object names; an empty name is none.
fn selects(operator: &str, values: &[&str], named: &[&str]) -> bool {
    let mut named = named.iter().filter(|name| !name.is_empty()).peekable();
    match operator {
        "Exists" => named.peek().is_some(),
        "DoesNotExist" => named.peek().is_none(),
        "In" => named.any(|name| values.contains(name)),
        "NotIn" => named.peek().is_none() || named.any(|name| !values.contains(name)),
        _ => false,
    }
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let crosses = |term: &Value| filled(term, "namespaces") || has(term, "namespaceSelector");
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = &affinity[kind];
        items(terms, "requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || items(terms, "preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}
