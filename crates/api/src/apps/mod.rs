//! The apps group, and the older ReplicationController that works alike.

mod daemonset;
mod deployment;
mod replicas;
mod statefulset;

use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::core::pod;
use crate::objectmeta;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{entries, int, items, text};

pub(crate) use daemonset::KIND as DAEMON_SET;
pub(crate) use deployment::KIND as DEPLOYMENT;
pub(crate) use replicas::{CONTROLLER, REPLICA_SET};
pub(crate) use statefulset::KIND as STATEFUL_SET;

pub(crate) const CONTROLLER_REVISION: Kind = Kind {
    columns: REVISION_COLUMNS,
    hooks: Hooks {
        validate: |v| {
            let mut errors = ErrorList::new();
            not_negative(&mut errors, v, "revision", &Path::root());
            errors
        },
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            objectmeta::immutable(&mut errors, new, old, "data", &Path::root());
            errors
        },
        row: revision_row,
        ..Hooks::PLAIN
    },
    ..kind!("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision")
};
const REVISION_COLUMNS: &[Column] =
    &[NAME, column("Controller", "What the revision belongs to."), column("Revision", "Its number."), AGE];

fn revision_row(revision: &Value, now: i64) -> Vec<Value> {
    let owner = items(&revision["metadata"], "ownerReferences").iter().find(|o| o["controller"] == true);
    let owner = owner.map_or_else(
        || "<none>".to_owned(),
        |owner| {
            let group = text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
            let kind = text(owner, "kind").to_lowercase();
            format!("{}/{}", coxswain_meta::status::qualified(group, &kind), text(owner, "name"))
        },
    );
    vec![name(revision), owner.into(), revision["revision"].clone(), age(revision, now)]
}

/// A number that is absent or at least 0.
pub(crate) fn not_negative(errors: &mut ErrorList, object: &Value, key: &str, path: &Path) {
    if let Some(n) = int(object, key).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(&path.child(key), n, "must be greater than or equal to 0"));
    }
}

/// A count or percentage that is at least 0 and, in percent, at most 100 unless `unbounded`.
fn count_or_percent(errors: &mut ErrorList, object: &Value, key: &str, unbounded: bool, path: &Path) {
    let at = path.child(key);
    match &object[key] {
        Value::String(text) => {
            let broken = names::percent(text);
            if broken.is_empty() {
                let percent = text.trim_end_matches('%').parse::<u64>().unwrap_or(u64::MAX);
                if percent > 100 && !unbounded {
                    errors.push(FieldError::invalid(&at, text.as_str(), "must not be greater than 100%"));
                }
            }
            errors.invalid_each(&at, text, broken);
        }
        _ => not_negative(errors, object, key, path),
    }
}

/// Whether a count or percentage is zero.
fn is_none(value: &Value) -> bool {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse::<u64>() == Ok(0),
        other => other.as_i64().unwrap_or(0) == 0,
    }
}

/// Checks a required label selector and the pod template it must match; `empty_rule` is the message for an empty selector.
fn selector_and_template(errors: &mut ErrorList, spec: &Value, empty_rule: &str, path: &Path) {
    let at = path.child("selector");
    let selector = &spec["selector"];
    if selector.is_object() {
        objectmeta::label_selector(errors, selector, &at);
        let empty = entries(selector, "matchLabels").next().is_none()
            && items(selector, "matchExpressions").is_empty();
        if empty {
            errors.push(FieldError::invalid(&at, selector.clone(), empty_rule));
        }
    } else {
        errors.push(FieldError::required(&at, ""));
    }
    match Selector::from_label_selector(selector) {
        Ok(parsed) if selector.is_object() => {
            pod::validate_controlled_template(errors, &spec["template"], &parsed, &path.child("template"));
        }
        Ok(_) => pod::validate_template(errors, &spec["template"], &path.child("template")),
        Err(_) => {
            let rule = "invalid label selector";
            errors.push(FieldError::invalid(&at, selector.clone(), rule));
        }
    }
}

/// The selector may not change.
fn fixed_selector(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    objectmeta::immutable(&mut errors, &new["spec"], &old["spec"], "selector", &Path::new("spec"));
    errors
}

/// Status counts are at least 0.
fn counts(new: &Value, keys: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    for key in keys {
        not_negative(&mut errors, &new["status"], key, &Path::new("status"));
    }
    errors
}

#[cfg(test)]
mod tests;
