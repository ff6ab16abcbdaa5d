//! PodDisruptionBudget.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::{conditions, not_negative};
use crate::objectmeta;
use crate::table::{AGE, NAME, age, column, count, int_or_string, name, number};
use crate::value::has;

pub(crate) const BUDGET: Kind = Kind {
    short_names: &["pdb"],
    subresources: &[Subresource::status("policy", "v1", "PodDisruptionBudget")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks { validate, validate_status, row, ..Hooks::COUNTED },
    ..kind!("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget")
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Min Available", "Pods that must stay available."),
    column("Max Unavailable", "Pods that may be unavailable."),
    count("Allowed Disruptions", "Pods that may be disrupted now."),
    AGE,
];

fn validate(budget: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&budget["spec"], Path::new("spec"));
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let rule = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(&path, spec.clone(), rule));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        match &spec[key] {
            Value::String(text) => {
                errors.invalid_each(&path.child(key), text, coxswain_meta::names::percent(text));
            }
            _ => crate::apps::not_negative(&mut errors, spec, key, &path),
        }
    }
    objectmeta::label_selector(&mut errors, &spec["selector"], &path.child("selector"));
    let known = &["AlwaysAllow", "IfHealthyBudget"];
    if let Some(policy) = spec["unhealthyPodEvictionPolicy"].as_str().filter(|said| !known.contains(said)) {
        errors.push(FieldError::not_supported(&path.child("unhealthyPodEvictionPolicy"), policy, known));
    }
    errors
}

fn validate_status(budget: &Value, _old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (status, path) = (&budget["status"], Path::new("status"));
    conditions(&mut errors, status, &path);
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        not_negative(&mut errors, status, field, &path);
    }
    errors
}

fn row(budget: &Value, now: i64) -> Vec<Value> {
    let spec = &budget["spec"];
    vec![
        name(budget),
        int_or_string(&spec["minAvailable"], "N/A").into(),
        int_or_string(&spec["maxUnavailable"], "N/A").into(),
        number(&budget["status"], "disruptionsAllowed"),
        age(budget, now),
    ]
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn conditions_have_a_status_a_time_and_a_reason() {
        let of = |condition: Value| json!({"status": {"disruptionsAllowed": 0, "conditions": [condition]}});
        let whole = json!({"type": "A", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        assert!(validate_status(&of(whole), &Value::Null).is_empty());
        assert_eq!(
            validate_status(&of(json!({"type": "A"})), &Value::Null).to_string(),
            "[status.conditions[0].status: Unsupported value: \"\": supported values: \"False\", \"True\", \"Unknown\", status.conditions[0].lastTransitionTime: Required value, status.conditions[0].reason: Required value]"
        );
    }
}
