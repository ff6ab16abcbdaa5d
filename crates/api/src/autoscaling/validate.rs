//! Validation of HorizontalPodAutoscalers.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use crate::check::{one_of, required_name};
use crate::core::limits::container_resource_name;
use crate::value::{filled, has, int, items, text};

const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
const LONGEST_WINDOW_SECONDS: i64 = 3600;
const LONGEST_PERIOD_SECONDS: i64 = 1800;

pub(super) fn validate(hpa: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&hpa["spec"], Path::new("spec"));
    let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or(0));
    if let Some(min) = min.filter(|min| *min < 1) {
        let rule = "must be greater than or equal to 1";
        errors.push(FieldError::invalid(&path.child("minReplicas"), min, rule));
    }
    let at = path.child("maxReplicas");
    match max {
        0 => errors.push(FieldError::required(&at, "must be set and greater than 0")),
        ..0 => errors.push(FieldError::invalid(&at, max, "must be greater than or equal to 1")),
        _ => {}
    }
    if min.is_some_and(|min| max < min) {
        errors.push(FieldError::invalid(&at, max, "must be greater than or equal to `minReplicas`"));
    }
    target_reference(&mut errors, &spec["scaleTargetRef"], false, &path.child("scaleTargetRef"));
    let metrics = items(spec, "metrics");
    for (i, metric) in metrics.iter().enumerate() {
        validate_metric(&mut errors, metric, &path.child("metrics").index(i));
    }
    let wakes = metrics.iter().any(|m| matches!(text(m, "type"), "Object" | "External"));
    if min == Some(0) && !wakes {
        let rule = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden(&path.child("metrics"), rule));
    }
    for key in ["scaleUp", "scaleDown"] {
        if has(&spec["behavior"], key) {
            rules(&mut errors, &spec["behavior"][key], &path.child("behavior").child(key));
        }
    }
    errors
}

fn target_reference(errors: &mut ErrorList, reference: &Value, any_group: bool, at: &Path) {
    for key in ["kind", "name"] {
        required_name(errors, reference, key, names::path_segment_name, at);
    }
    let (version, at) = (text(reference, "apiVersion"), at.child("apiVersion"));
    if version.matches('/').count() > 1 {
        let rule = format!("unexpected GroupVersion string: {version}");
        errors.push(FieldError::invalid(&at, version, rule));
    } else if !any_group && version.split_once('/').is_none_or(|(group, _)| group.is_empty()) {
        errors.push(FieldError::invalid(&at, version, "apiVersion must specify API group"));
    }
}

fn rules(errors: &mut ErrorList, rules: &Value, path: &Path) {
    if let Some(seconds) = int(rules, "stabilizationWindowSeconds") {
        let at = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.push(FieldError::invalid(&at, seconds, "must be greater than or equal to zero"));
        } else if seconds > LONGEST_WINDOW_SECONDS {
            let rule = format!("must be less than or equal to {LONGEST_WINDOW_SECONDS}");
            errors.push(FieldError::invalid(&at, seconds, rule));
        }
    }
    one_of(errors, rules, "selectPolicy", &["Disabled", "Max", "Min"], path);
    if !filled(rules, "policies") {
        errors.push(FieldError::required(&path.child("policies"), "must specify at least one Policy"));
    }
    for (i, policy) in items(rules, "policies").iter().enumerate() {
        let at = path.child("policies").index(i);
        if !["Percent", "Pods"].contains(&text(policy, "type")) {
            let known = &["Percent", "Pods"];
            errors.push(FieldError::not_supported(&at.child("type"), text(policy, "type"), known));
        }
        for key in ["value", "periodSeconds"] {
            let n = int(policy, key).unwrap_or(0);
            if n <= 0 {
                errors.push(FieldError::invalid(&at.child(key), n, "must be greater than zero"));
            }
        }
        if let Some(seconds) = int(policy, "periodSeconds").filter(|s| *s > LONGEST_PERIOD_SECONDS) {
            let rule = format!("must be less than or equal to {LONGEST_PERIOD_SECONDS}");
            errors.push(FieldError::invalid(&at.child("periodSeconds"), seconds, rule));
        }
    }
    if Quantity::from_json(&rules["tolerance"]).is_ok_and(Quantity::is_negative) {
        let rule = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(&path.child("tolerance"), rules["tolerance"].clone(), rule));
    }
}

/// The field of a metric's type.
fn source_of(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => return None,
    })
}

fn validate_metric(errors: &mut ErrorList, metric: &Value, path: &Path) {
    let kind = text(metric, "type");
    let at = path.child("type");
    if kind.is_empty() {
        errors.push(FieldError::required(&at, "must specify a metric source type"));
    }
    if !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(&at, kind, TYPES));
    }
    let present: Vec<&str> = ["object", "external", "pods", "resource", "containerResource"]
        .into_iter()
        .filter(|key| has(metric, key))
        .collect();
    if let Some(first) = present.first() {
        source(errors, first, &metric[*first], &path.child(first));
    }
    let expected = source_of(kind);
    match expected {
        Some(key) if !has(metric, key) => {
            let rule = "must populate information for the given metric source";
            errors.push(FieldError::required(&path.child(key), rule));
        }
        Some(_) => {}
        None => errors.push(FieldError::not_supported(&at, kind, TYPES)),
    }
    if present.len() != 1 {
        for other in present.iter().filter(|key| Some(**key) != expected) {
            let rule = "must populate the given metric source only";
            errors.push(FieldError::forbidden(&path.child(other), rule));
        }
    }
}

fn source(errors: &mut ErrorList, kind: &str, source: &Value, path: &Path) {
    let (target, at) = (&source["target"], path.child("target"));
    match kind {
        "object" => {
            target_reference(errors, &source["describedObject"], true, &path.child("describedObject"));
            identifier(errors, &source["metric"], &path.child("metric"));
        }
        "external" | "pods" => identifier(errors, &source["metric"], &path.child("metric")),
        _ => {
            if text(source, "name").is_empty() {
                errors.push(FieldError::required(&path.child("name"), "must specify a resource name"));
            }
            if kind == "containerResource" {
                container_resource_name(errors, text(source, "name"), &path.child("name"));
                let (container, at) = (text(source, "container"), path.child("container"));
                match container {
                    "" => errors.push(FieldError::required(&at, "must specify a container")),
                    name => errors.invalid_each(&at, name, names::dns1123_label(name)),
                }
            }
        }
    }
    validate_target(errors, target, &at);
    let (value, average) = (has(target, "value"), has(target, "averageValue"));
    match kind {
        "object" if !value && !average => {
            let rule = "must set either a target value or averageValue";
            errors.push(FieldError::required(&at.child("averageValue"), rule));
        }
        "external" if !value && !average => {
            let rule = "must set either a target value for metric or a per-pod target";
            errors.push(FieldError::required(&at.child("averageValue"), rule));
        }
        "external" if value && average => {
            let rule = "may not set both a target value for metric and a per-pod target";
            errors.push(FieldError::forbidden(&at.child("value"), rule));
        }
        "pods" if !average => {
            let rule = "must specify a positive target averageValue";
            errors.push(FieldError::required(&at.child("averageValue"), rule));
        }
        "resource" | "containerResource" => {
            let utilization = has(target, "averageUtilization");
            if !utilization && !average {
                let rule = "must set either a target raw value or a target utilization";
                errors.push(FieldError::required(&at.child("averageUtilization"), rule));
            }
            if utilization && average {
                let rule = "may not set both a target raw value and a target utilization";
                errors.push(FieldError::forbidden(&at.child("averageValue"), rule));
            }
        }
        _ => {}
    }
}

fn identifier(errors: &mut ErrorList, metric: &Value, path: &Path) {
    match text(metric, "name") {
        "" => errors.push(FieldError::required(&path.child("name"), "must specify a metric name")),
        name => errors.invalid_each(&path.child("name"), name, names::path_segment_name(name)),
    }
}

fn validate_target(errors: &mut ErrorList, target: &Value, path: &Path) {
    let kind = text(target, "type");
    let at = path.child("type");
    if kind.is_empty() {
        errors.push(FieldError::required(&at, "must specify a metric target type"));
    }
    if !["AverageValue", "Utilization", "Value"].contains(&kind) {
        let rule = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(&at, kind, rule));
    }
    for key in ["value", "averageValue"] {
        if let Ok(amount) = Quantity::from_json(&target[key])
            && (amount.is_negative() || amount.is_zero())
        {
            errors.push(FieldError::invalid(&path.child(key), amount.to_string(), "must be positive"));
        }
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|p| *p < 1) {
        let at = path.child("averageUtilization");
        errors.push(FieldError::invalid(&at, percent, "must be greater than 0"));
    }
}
