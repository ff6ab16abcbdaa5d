//! PriorityClass.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::check::required_one_of;
use crate::prepare;
use crate::table::{AGE, NAME, age, boolean, column, count, name, number};
use crate::value::{flag, has, int, set, text};

/// Priorities above are the system's own.
const MAX_USER_PRIORITY: i64 = 1_000_000_000;

pub(crate) const PRIORITY_CLASS: Kind = Kind {
    short_names: &["pc"],
    namespaced: false,
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| {
            if !has(v, "preemptionPolicy") {
                set(v, "preemptionPolicy", "PreemptLowerPriority");
            }
        },
        prepare_create: prepare::first_generation,
        validate,
        validate_new,
        validate_update,
        row: |v, now| {
            vec![
                name(v),
                number(v, "value"),
                flag(v, "globalDefault").into(),
                age(v, now),
                text(v, "preemptionPolicy").into(),
            ]
        },
        ..Hooks::PLAIN
    },
    ..kind!("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass")
};

const COLUMNS: &[Column] = &[
    NAME,
    count("Value", "The priority."),
    boolean("Global-Default", "Whether pods without a class get it."),
    AGE,
    column("PreemptionPolicy", "Whether its pods push others out."),
];

fn validate(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (own, value) = (crate::value::name(class), int(class, "value").unwrap_or(0));
    let system = match own {
        "system-node-critical" => Some(2_000_001_000),
        "system-cluster-critical" => Some(2_000_000_000),
        _ => None,
    };
    if own.starts_with("system-") && system != Some(value) {
        let rule = "priority class names with 'system-' prefix are reserved for system use only";
        errors.push(FieldError::forbidden(&Path::new("metadata").child("name"), rule));
    } else if system.is_none() && value > MAX_USER_PRIORITY {
        let rule = format!("maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}");
        errors.push(FieldError::forbidden(&Path::new("value"), rule));
    }
    errors
}

fn validate_new(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    required_one_of(
        &mut errors,
        class,
        "preemptionPolicy",
        &["PreemptLowerPriority", "Never"],
        &Path::root(),
    );
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if int(new, "value").unwrap_or(0) != int(old, "value").unwrap_or(0) {
        errors.push(FieldError::forbidden(&Path::new("value"), "may not be changed in an update."));
    }
    if text(new, "preemptionPolicy") != text(old, "preemptionPolicy") {
        let rule = crate::objectmeta::IMMUTABLE;
        let at = Path::new("preemptionPolicy");
        errors.push(FieldError::invalid(&at, text(new, "preemptionPolicy"), rule));
    }
    errors
}
