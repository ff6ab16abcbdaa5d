//! HorizontalPodAutoscaler, stored as autoscaling/v2 and served as v1 too.

mod validate;

use serde_json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::table::{AGE, NAME, age, column, int_or_string, name};
use crate::value::{child, filled, has, int, items, present, remove, set, set_default, text};

/// Where v1 keeps the metrics it has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// Where v1 keeps the conditions.
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// Where v1 keeps the current values of metrics.
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
/// Where v1 keeps the scaling behaviour.
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

pub(crate) const HPA_V2: Kind = Kind {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::status("autoscaling", "v2", "HorizontalPodAutoscaler")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks { default, validate: validate::validate, row, ..Hooks::STATUS },
    ..kind!(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler"
    )
};

pub(crate) const HPA_V1: Kind = Kind {
    version: "v1",
    subresources: &[Subresource::status("autoscaling", "v1", "HorizontalPodAutoscaler")],
    own_annotations: &[METRICS, BEHAVIOR, CONDITIONS, CURRENT_METRICS],
    hooks: Hooks {
        // What stands for status is as new as that.
        prepare_create: |v| {
            (HPA_V2.hooks.prepare_create)(v);
            [CONDITIONS, CURRENT_METRICS].iter().for_each(|name| drop(take_annotation(v, name)));
            let metadata = v.get_mut("metadata").and_then(Value::as_object_mut);
            if let Some(metadata) = metadata.filter(|m| m.get("annotations").is_some_and(|a| *a == json!({})))
            {
                metadata.remove("annotations");
            }
        },
        default: |v| {
            if let Some(spec) = child(v, "spec") {
                set_default(spec, "minReplicas", 1);
            }
        },
        // Rules are told in terms of v2.
        validate: |v| {
            let mut v2 = v.clone();
            to_storage(&mut v2);
            validate::validate(&v2)
        },
        row: |v, now| {
            let mut v2 = v.clone();
            to_storage(&mut v2);
            row(&v2, now)
        },
        to_storage,
        from_storage,
        ..HPA_V2.hooks
    },
    ..HPA_V2
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Reference", "What is scaled."),
    column("Targets", "Metrics: current and wanted."),
    column("MinPods", "Lower limit."),
    column("MaxPods", "Upper limit."),
    column("Replicas", "Pods there are."),
    AGE,
];

fn cpu_metric(percent: &Value) -> Value {
    json!({"type": "Resource", "resource":
        {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn default(hpa: &mut Value) {
    let Some(spec) = child(hpa, "spec") else { return };
    set_default(spec, "minReplicas", 1);
    if !filled(spec, "metrics") {
        set(spec, "metrics", vec![cpu_metric(&json!(80))]);
    }
    let Some(behavior) = present(spec, "behavior") else { return };
    let policy = |kind, value| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = vec![policy("Pods", 4), policy("Percent", 100)];
    for (key, window, policies) in
        [("scaleUp", Some(0), up), ("scaleDown", None, vec![policy("Percent", 100)])]
    {
        if let Some(rules) = child(behavior, key) {
            set_default(rules, "selectPolicy", "Max");
            if let Some(seconds) = window {
                set_default(rules, "stabilizationWindowSeconds", seconds);
            }
            if !filled(rules, "policies") {
                set(rules, "policies", policies);
            }
        }
    }
}

/// v1 → v2.
fn to_storage(hpa: &mut Value) {
    set(hpa, "apiVersion", "autoscaling/v2");
    let mut metrics = take_annotation(hpa, METRICS).and_then(|m| m.as_array().cloned()).unwrap_or_default();
    let behavior = take_annotation(hpa, BEHAVIOR);
    if let Some(spec) = present(hpa, "spec") {
        if let Some(percent) = spec.get("targetCPUUtilizationPercentage").filter(|p| !p.is_null()).cloned() {
            metrics.insert(0, cpu_metric(&percent));
        }
        remove(spec, "targetCPUUtilizationPercentage");
        if metrics.is_empty() {
            metrics.push(cpu_metric(&json!(80)));
        }
        set(spec, "metrics", metrics);
        if let Some(behavior) = behavior {
            set(spec, "behavior", behavior);
        }
    }
    if let Some(status) = present(hpa, "status") {
        if let Some(percent) = int(status, "currentCPUUtilizationPercentage") {
            let current = json!({"type": "Resource", "resource":
                {"name": "cpu", "current": {"averageUtilization": percent}}});
            set(status, "currentMetrics", vec![current]);
        }
        remove(status, "currentCPUUtilizationPercentage");
    }
}

/// v2 → v1.
fn from_storage(hpa: &mut Value) {
    set(hpa, "apiVersion", "autoscaling/v1");
    let mut leftover = Vec::new();
    let mut behavior = None;
    if let Some(spec) = present(hpa, "spec") {
        for metric in items(spec, "metrics").to_vec() {
            let percent = cpu_utilization(&metric["resource"], "target");
            match percent.filter(|_| !has(spec, "targetCPUUtilizationPercentage")) {
                Some(percent) => set(spec, "targetCPUUtilizationPercentage", percent),
                None => leftover.push(metric),
            }
        }
        remove(spec, "metrics");
        behavior = spec.get("behavior").cloned();
        remove(spec, "behavior");
    }
    if let Some(status) = present(hpa, "status") {
        let current =
            items(status, "currentMetrics").iter().find_map(|m| cpu_utilization(&m["resource"], "current"));
        remove(status, "currentMetrics");
        remove(status, "conditions");
        if let Some(percent) = current {
            set(status, "currentCPUUtilizationPercentage", percent);
        }
    }
    if !leftover.is_empty() {
        set_annotation(hpa, METRICS, &Value::Array(leftover));
    }
    if let Some(behavior) = behavior {
        set_annotation(hpa, BEHAVIOR, &behavior);
    }
}

fn cpu_utilization(resource: &Value, side: &str) -> Option<i64> {
    (text(resource, "name") == "cpu").then(|| int(&resource[side], "averageUtilization"))?
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    serde_json::from_str(annotations.remove(key)?.as_str()?).ok()
}

fn set_annotation(object: &mut Value, key: &str, value: &Value) {
    if let Some(annotations) = child(object, "metadata").and_then(|m| child(m, "annotations")) {
        set(annotations, key, value.to_string());
    }
}

fn row(hpa: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&hpa["spec"], &hpa["status"]);
    let target = &spec["scaleTargetRef"];
    let current = items(status, "currentMetrics");
    let metrics: Vec<String> = items(spec, "metrics").iter().map(|m| metric(m, current)).collect();
    let targets = match metrics.len() {
        0 => "<none>".to_owned(),
        1 | 2 => metrics.join(", "),
        more => format!("{} + {} more...", metrics[..2].join(", "), more - 2),
    };
    vec![
        name(hpa),
        format!("{}/{}", text(target, "kind"), text(target, "name")).into(),
        targets.into(),
        int_or_string(&spec["minReplicas"], "<unset>").into(),
        int(spec, "maxReplicas").unwrap_or(0).into(),
        int(status, "currentReplicas").unwrap_or(0).into(),
        age(hpa, now),
    ]
}

/// `cpu: 12%/80%`
fn metric(metric: &Value, current: &[Value]) -> String {
    let (source, what) = match text(metric, "type") {
        "Resource" => ("resource", text(&metric["resource"], "name")),
        "ContainerResource" => ("containerResource", text(&metric["containerResource"], "name")),
        "Pods" => ("pods", text(&metric["pods"]["metric"], "name")),
        "Object" => ("object", text(&metric["object"]["metric"], "name")),
        "External" => ("external", text(&metric["external"]["metric"], "name")),
        _ => return "<unknown type>".into(),
    };
    let name_of = |m: &Value| match source {
        "resource" | "containerResource" => text(&m[source], "name").to_owned(),
        _ => text(&m[source]["metric"], "name").to_owned(),
    };
    let found = current.iter().find(|m| m["type"] == metric["type"] && name_of(m) == what);
    let amount = |v: &Value| {
        if let Some(percent) = int(v, "averageUtilization") {
            return format!("{percent}%");
        }
        let average = int_or_string(&v["averageValue"], "");
        if average.is_empty() { int_or_string(&v["value"], "<unknown>") } else { average }
    };
    let now = found.map_or_else(|| "<unknown>".to_owned(), |m| amount(&m[source]["current"]));
    let wanted = amount(&metric[source]["target"]);
    if source == "resource" { format!("{what}: {now}/{wanted}") } else { format!("{now}/{wanted}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_convert_without_loss() {
        let mut hpa = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
            "metrics": [cpu_metric(&json!(50)), {"type": "Pods", "pods": {"metric": {"name": "q"}}}]}});
        let stored = hpa.clone();
        from_storage(&mut hpa);
        assert_eq!(hpa["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(hpa["spec"].get("metrics").is_none());
        to_storage(&mut hpa);
        remove(&mut hpa["metadata"], "annotations");
        assert_eq!(hpa, stored);
        assert_eq!(row(&stored, 0)[2], "cpu: <unknown>/50%, <unknown>/<unknown>");
    }
}
