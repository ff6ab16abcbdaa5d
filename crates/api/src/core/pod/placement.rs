//! Validation of what decides where a pod may run: affinity, spreading, tolerations.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::objectmeta;
use crate::value::{has, int, items, text};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks a taint effect.
pub(crate) fn taint_effect(errors: &mut ErrorList, effect: &str, allow_empty: bool, at: &Path) {
    if effect.is_empty() {
        if !allow_empty {
            errors.push(FieldError::required(at, ""));
        }
    } else if !EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(at, effect, EFFECTS));
    }
}

/// Checks tolerations.
pub(crate) fn tolerations(errors: &mut ErrorList, tolerations: &[Value], path: &Path) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator, value) =
            (text(toleration, "key"), text(toleration, "operator"), text(toleration, "value"));
        let effect = text(toleration, "effect");
        if !key.is_empty() {
            errors.invalid_each(&at.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let rule =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&at.child("operator"), operator, rule));
        }
        if has(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let rule = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(&at.child("effect"), effect, rule));
        }
        match operator {
            "Equal" | "" => {
                let broken = names::label_value(value);
                if !broken.is_empty() {
                    errors.push(FieldError::invalid(&at.child("operator"), value, broken.join(";")));
                }
            }
            "Exists" if !value.is_empty() => {
                let rule = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&at.child("operator"), value, rule));
            }
            "Exists" => {}
            "Lt" | "Gt" if value.parse::<i64>().is_ok() => {}
            "Lt" | "Gt" => {
                let rule = "must be a valid decimal integer in canonical form";
                errors.push(FieldError::invalid(&at.child("value"), value, rule));
            }
            other => {
                errors.push(FieldError::not_supported(&at.child("operator"), other, &["Equal", "Exists"]))
            }
        }
        taint_effect(errors, effect, true, &at.child("effect"));
    }
}

pub(super) fn affinity(errors: &mut ErrorList, affinity: &Value, path: &Path) {
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let (node, at) = (&affinity["nodeAffinity"], path.child("nodeAffinity"));
    if has(node, required) {
        node_selector(errors, &node[required], &at.child(required));
    }
    for (i, term) in items(node, preferred).iter().enumerate() {
        let at = at.child(preferred).index(i);
        weight(errors, term, &at);
        node_term(errors, &term["preference"], &at.child("preference"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pods, at) = (&affinity[kind], path.child(kind));
        for (i, term) in items(pods, required).iter().enumerate() {
            pod_term(errors, term, &at.child(required).index(i));
        }
        for (i, term) in items(pods, preferred).iter().enumerate() {
            let at = at.child(preferred).index(i);
            weight(errors, term, &at);
            pod_term(errors, &term["podAffinityTerm"], &at.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut ErrorList, term: &Value, at: &Path) {
    let weight = int(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(&at.child("weight"), weight, "must be in the range 1-100"));
    }
}

/// Checks a node selector.
pub(crate) fn node_selector(errors: &mut ErrorList, selector: &Value, path: &Path) {
    let terms = items(selector, "nodeSelectorTerms");
    let at = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(&at, "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        node_term(errors, term, &at.index(i));
    }
}

fn node_term(errors: &mut ErrorList, term: &Value, path: &Path) {
    for (i, expression) in items(term, "matchExpressions").iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &at.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if values.len() != 1 => errors.push(FieldError::required(
                &at.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(
                &at.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(expression, "key");
        errors.invalid_each(&at.child("key"), key, names::qualified_name(key));
    }
    for (i, field) in items(term, "matchFields").iter().enumerate() {
        let at = path.child("matchFields").index(i);
        match text(field, "operator") {
            "In" | "NotIn" if items(field, "values").len() != 1 => errors.push(FieldError::required(
                &at.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => errors.push(FieldError::invalid(
                &at.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        if text(field, "key") != "metadata.name" {
            let rule = "not a valid field selector key";
            errors.push(FieldError::invalid(&at.child("key"), text(field, "key"), rule));
        }
    }
}

fn pod_term(errors: &mut ErrorList, term: &Value, path: &Path) {
    objectmeta::label_selector(errors, &term["labelSelector"], &path.child("labelSelector"));
    objectmeta::label_selector(errors, &term["namespaceSelector"], &path.child("namespaceSelector"));
    for namespace in items(term, "namespaces").iter().filter_map(Value::as_str) {
        errors.invalid_each(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(&path.child("topologyKey"), "can not be empty"));
    }
    errors.invalid_each(&path.child("topologyKey"), key, names::qualified_name(key));
}

pub(super) fn topology_spread(errors: &mut ErrorList, constraints: &[Value], path: &Path) {
    let supported = &["DoNotSchedule", "ScheduleAnyway"];
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.child("topologySpreadConstraints").index(i);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(&at.child("maxSkew"), skew, "must be greater than zero"));
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            errors.push(FieldError::required(&at.child("topologyKey"), "can not be empty"));
        }
        let action = text(constraint, "whenUnsatisfiable");
        if !supported.contains(&action) {
            errors.push(FieldError::not_supported(&at.child("whenUnsatisfiable"), action, supported));
        }
        let same = |c: &Value| text(c, "topologyKey") == key && text(c, "whenUnsatisfiable") == action;
        if constraints[..i].iter().any(same) {
            let shown = format!("{{{key}, {action}}}");
            errors.push(FieldError::duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), shown));
        }
        if let Some(domains) = int(constraint, "minDomains") {
            if domains <= 0 {
                errors.push(FieldError::invalid(
                    &at.child("minDomains"),
                    domains,
                    "must be greater than zero",
                ));
            }
            if action != "DoNotSchedule" {
                let rule = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                errors.push(FieldError::invalid(&at.child("minDomains"), domains, rule));
            }
        }
        objectmeta::label_selector(errors, &constraint["labelSelector"], &at.child("labelSelector"));
    }
}
