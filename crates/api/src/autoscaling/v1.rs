//! HorizontalPodAutoscaler between autoscaling/v1 and v2: what v1 has no fields for, it keeps in annotations, in types of its own.

use coxswain_meta::json::{Map, Value, json};

use super::cpu_metric;
use crate::value::{child, int, items, present, remove, set, set_default, text};

/// Where v1 keeps the metrics it has no fields for.
pub(super) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// Where v1 keeps the conditions.
pub(super) const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// Where v1 keeps the current values of metrics.
pub(super) const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
/// Where v1 keeps the scaling behaviour.
pub(super) const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

const SOURCES: [&str; 5] = ["object", "pods", "resource", "containerResource", "external"];

/// The members of the annotations' types in the order that they are written in.
const ORDER: &[&str] = &[
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "target",
    "kind",
    "name",
    "apiVersion",
    "metricName",
    "metricSelector",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetValue",
    "currentValue",
    "targetAverageValue",
    "currentAverageValue",
    "container",
    "selector",
    "averageValue",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

/// v1 → v2.
pub(super) fn to_storage(hpa: &mut Value) {
    set(hpa, "apiVersion", "autoscaling/v2");
    let list = |value: Option<Value>| value.and_then(|value| value.as_array().cloned());
    let others = list(take_annotation(hpa, METRICS)).unwrap_or_default();
    let behavior = take_annotation(hpa, BEHAVIOR).map(uncapitalised);
    let current = list(take_annotation(hpa, CURRENT_METRICS));
    let conditions = list(take_annotation(hpa, CONDITIONS));
    let mut metrics: Vec<Value> = others.iter().map(|metric| metric_from_v1(metric, "target")).collect();
    if let Some(spec) = present(hpa, "spec") {
        if let Some(percent) = spec.get("targetCPUUtilizationPercentage").filter(|p| !p.is_null()).cloned() {
            metrics.push(cpu_metric(&percent));
        }
        remove(spec, "targetCPUUtilizationPercentage");
        if metrics.is_empty() {
            metrics.push(cpu_metric(&json!(80)));
        }
        set(spec, "metrics", metrics);
        if let Some(behavior) = behavior.filter(|b| b.as_object().is_some_and(|b| !b.is_empty())) {
            set(spec, "behavior", behavior);
        }
    }
    if let Some(status) = present(hpa, "status") {
        if let Some(percent) = int(status, "currentCPUUtilizationPercentage") {
            let resource = json!({"name": "cpu", "current": {"averageUtilization": percent}});
            set(status, "currentMetrics", vec![json!({"type": "Resource", "resource": resource})]);
        }
        remove(status, "currentCPUUtilizationPercentage");
        // v2 leaves it out where it is none.
        if int(status, "currentReplicas") == Some(0) {
            remove(status, "currentReplicas");
        }
    }
    if current.is_none() && conditions.is_none() {
        return;
    }
    if let Some(status) = child(hpa, "status") {
        if let Some(current) = current {
            let current: Vec<Value> =
                current.iter().map(|metric| metric_from_v1(metric, "current")).collect();
            set(status, "currentMetrics", current);
        }
        if let Some(conditions) = conditions {
            set(status, "conditions", conditions);
        }
    }
}

/// v2 → v1.
pub(super) fn from_storage(hpa: &mut Value) {
    set(hpa, "apiVersion", "autoscaling/v1");
    for name in [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS] {
        take_annotation(hpa, name);
    }
    let mut kept: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = present(hpa, "spec") {
        let metrics = items(spec, "metrics").to_vec();
        let percents: Vec<i64> = metrics.iter().filter_map(|m| cpu_utilization(m, "target")).collect();
        let others = metrics.iter().filter(|m| cpu_utilization(m, "target").is_none());
        let others: Vec<Value> = others.map(|metric| metric_to_v1(metric, "target")).collect();
        if let Some(percent) = percents.first() {
            set(spec, "targetCPUUtilizationPercentage", *percent);
        }
        if !others.is_empty() {
            kept.push((METRICS, others.into()));
        }
        remove(spec, "metrics");
        if let Some(behavior) = spec.get("behavior").filter(|behavior| behavior.is_object()) {
            kept.push((BEHAVIOR, internal_behavior(behavior)));
        }
        remove(spec, "behavior");
    }
    if let Some(status) = present(hpa, "status") {
        set_default(status, "currentReplicas", 0);
        let current = items(status, "currentMetrics").to_vec();
        if let Some(percent) = current.iter().filter_map(|m| cpu_utilization(m, "current")).next_back() {
            set(status, "currentCPUUtilizationPercentage", percent);
        }
        let current: Vec<Value> = current.iter().map(|metric| metric_to_v1(metric, "current")).collect();
        for (name, values) in [(CURRENT_METRICS, current), (CONDITIONS, items(status, "conditions").to_vec())]
        {
            if !values.is_empty() {
                kept.push((name, values.into()));
            }
        }
        remove(status, "currentMetrics");
        remove(status, "conditions");
    }
    for (name, value) in kept {
        if let Some(annotations) = child(hpa, "metadata").and_then(|metadata| child(metadata, "annotations"))
        {
            set(annotations, name, ordered(&value));
        }
    }
}

/// The percentage of a metric that v1 has a field for.
fn cpu_utilization(metric: &Value, side: &str) -> Option<i64> {
    let resource = &metric["resource"];
    let is_cpu = text(metric, "type") == "Resource" && text(resource, "name") == "cpu";
    is_cpu.then(|| int(&resource[side], "averageUtilization"))?
}

/// Takes an annotation out; none where it was not there, or says nothing.
pub(super) fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let taken = annotations.remove(key)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(taken.as_str()?).ok()
}

/// What the members of a source are called in v1: its value, its average.
fn names(source: &str, side: &str) -> (String, String) {
    let average = if source == "object" { "averageValue".to_owned() } else { format!("{side}AverageValue") };
    (format!("{side}Value"), average)
}

fn selector_name(source: &str) -> &'static str {
    if source == "external" { "metricSelector" } else { "selector" }
}

/// A metric as v1's annotations say it; `side` is what is told of it, `target` or `current`.
fn metric_to_v1(metric: &Value, side: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(from) = metric.get(source).filter(|from| from.is_object()) else { continue };
        let (amount, (value, average)) = (&from[side], names(source, side));
        let mut to = Map::new();
        let mut put = |name: &str, value: &Value, zero: bool| {
            if !value.is_null() {
                to.insert(name, value.clone());
            } else if zero {
                to.insert(name, "0".into());
            }
        };
        let of_status = side == "current";
        match source {
            "resource" | "containerResource" => {
                put("name", &from["name"], false);
                put("container", &from["container"], false);
                put(&format!("{side}AverageUtilization"), &amount["averageUtilization"], false);
                put(&average, &amount["averageValue"], of_status);
            }
            _ => {
                put("metricName", &from["metric"]["name"], false);
                put(selector_name(source), &from["metric"]["selector"], false);
                put("target", &from["describedObject"], false);
                if source != "pods" {
                    put(&value, &amount["value"], of_status || source == "object");
                }
                put(&average, &amount["averageValue"], source == "pods");
            }
        }
        out[source] = to.into();
    }
    out
}

/// A metric of v1's annotations as it is in v2.
fn metric_from_v1(metric: &Value, side: &str) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(from) = metric.get(source).filter(|from| from.is_object()) else { continue };
        let (value, average) = names(source, side);
        let (value, average) = (&from[value.as_str()], &from[average.as_str()]);
        let percent = &from[format!("{side}AverageUtilization").as_str()];
        let (mut to, mut amount) = (Map::new(), Map::new());
        let put = |to: &mut Map, name: &str, value: &Value| {
            if !value.is_null() {
                to.insert(name, value.clone());
            }
        };
        let is_resource = matches!(source, "resource" | "containerResource");
        if is_resource {
            put(&mut to, "name", &from["name"]);
            put(&mut to, "container", &from["container"]);
        } else {
            let mut identifier = json!({"name": from["metricName"]});
            if let Some(selector) = from.get(selector_name(source)).filter(|selector| !selector.is_null()) {
                identifier["selector"] = selector.clone();
            }
            to.insert("metric", identifier);
            put(&mut to, "describedObject", &from["target"]);
        }
        if side == "target" {
            let kind = match (source, percent.is_null(), value.is_null(), average.is_null()) {
                ("resource" | "containerResource", false, ..) => "Utilization",
                ("object", _, _, true) | ("external", _, false, _) => "Value",
                _ => "AverageValue",
            };
            amount.insert("type", kind.into());
        }
        // An average has no value beside it, though v1 writes one.
        if !(side == "target" && source == "object" && !average.is_null() && value == "0") {
            put(&mut amount, "value", value);
        }
        put(&mut amount, "averageValue", average);
        put(&mut amount, "averageUtilization", percent);
        to.insert(side, amount.into());
        out[source] = to.into();
    }
    out
}

/// The behaviour as it is annotated: every member is there, under the name of upstream's internal type.
fn internal_behavior(behavior: &Value) -> Value {
    let rules = |rules: &Value| {
        if rules.is_null() {
            return Value::Null;
        }
        let policy = |policy: &Value| json!({"Type": policy["type"], "Value": policy["value"], "PeriodSeconds": policy["periodSeconds"]});
        let policies = rules["policies"].as_array().map(|list| list.iter().map(policy).collect::<Value>());
        json!({"StabilizationWindowSeconds": rules["stabilizationWindowSeconds"],
            "SelectPolicy": rules["selectPolicy"], "Policies": policies, "Tolerance": rules["tolerance"]})
    };
    json!({"ScaleUp": rules(&behavior["scaleUp"]), "ScaleDown": rules(&behavior["scaleDown"])})
}

/// A document with its names in small letters at the beginning, and without nulls.
fn uncapitalised(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(uncapitalised).collect(),
        Value::Object(members) => {
            let small = |name: &str| name[..1].to_lowercase() + &name[1..];
            let said = members
                .into_iter()
                .filter(|(name, value)| name.is_ascii() && !name.is_empty() && !value.is_null());
            said.map(|(name, value)| (small(&name), uncapitalised(value))).collect()
        }
        other => other,
    }
}

/// The text of a document, its members in the order of their types.
fn ordered(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(ordered).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut members: Vec<(&str, &Value)> = members.iter().collect();
            members.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name));
            let member = |(name, value): (&str, &Value)| {
                // Labels are free names.
                let value = if name == "matchLabels" { value.to_string() } else { ordered(value) };
                format!("\"{name}\":{value}")
            };
            format!("{{{}}}", members.into_iter().map(member).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_convert_without_loss() {
        let target = |kind: &str, name: &str, value: Value| json!({"type": kind, name: value});
        let others = json!([
            {"type": "Pods", "pods": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}},
                "target": target("AverageValue", "averageValue", json!("3"))}},
            {"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "Ingress", "name": "i"},
                "target": target("Value", "value", json!("10k"))}},
            {"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "Ingress", "name": "i"},
                "target": target("AverageValue", "averageValue", json!("1"))}},
            {"type": "External", "external": {"metric": {"name": "e"}, "target": target("Value", "value", json!("7"))}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                "target": target("Utilization", "averageUtilization", json!(5))}},
            cpu_metric(&json!(50))]);
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "metrics": others,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 10, "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}},
            "status": {"currentReplicas": 1, "desiredReplicas": 1,
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageValue": "1", "averageUtilization": 12}}}]}});
        let mut hpa = stored.clone();
        from_storage(&mut hpa);
        assert_eq!(hpa["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(hpa["status"]["currentCPUUtilizationPercentage"], 12);
        let annotations = &hpa["metadata"]["annotations"];
        let behavior = concat!(
            "{\"ScaleUp\":null,\"ScaleDown\":{\"StabilizationWindowSeconds\":10,\"SelectPolicy\":\"Max\",",
            "\"Policies\":[{\"Type\":\"Percent\",\"Value\":100,\"PeriodSeconds\":15}],\"Tolerance\":null}}"
        );
        assert_eq!(annotations[BEHAVIOR], behavior);
        let pods = "[{\"type\":\"Pods\",\"pods\":{\"metricName\":\"q\",\"targetAverageValue\":\"3\",\"selector\":{\"matchLabels\":{\"a\":\"b\"}}}},";
        assert!(annotations[METRICS].as_str().is_some_and(|text| text.starts_with(pods)), "{annotations}");
        to_storage(&mut hpa);
        assert_eq!(hpa, stored);
    }
}
