//! HorizontalPodAutoscaler, stored as autoscaling/v2 and served as v1 too.

mod v1;
mod validate;

use coxswain_meta::json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::table::{AGE, NAME, age, column, int_or_string, name};
use crate::value::{child, filled, has, int, items, present, set, set_default, text};
use v1::{BEHAVIOR, CONDITIONS, CURRENT_METRICS, METRICS, from_storage, take_annotation, to_storage};

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
            if !has(rules, "policies") {
                set(rules, "policies", policies);
            }
        }
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
    fn targets_are_shown() {
        let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
            "metrics": [cpu_metric(&json!(50)), {"type": "Pods", "pods": {"metric": {"name": "q"}}}]}});
        assert_eq!(row(&hpa, 0)[2], "cpu: <unknown>/50%, <unknown>/<unknown>");
    }
}
