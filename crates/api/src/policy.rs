//! PodDisruptionBudget.

use coxswain_meta::{ErrorList, FieldError, Path};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::objectmeta;
use crate::table::{AGE, NAME, age, column, count, int_or_string, name, number};
use crate::value::has;

pub(crate) const BUDGET: Kind = Kind {
    short_names: &["pdb"],
    subresources: &[Subresource::status("policy", "v1", "PodDisruptionBudget")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks { validate, row, ..Hooks::COUNTED },
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
