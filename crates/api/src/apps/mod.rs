//! The apps group, and the older ReplicationController that works alike.

mod daemonset;
mod deployment;
mod replicas;
mod statefulset;

use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path, names};

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
        validate_new: |v| {
            let mut errors = ErrorList::new();
            let at = Path::new("data");
            match &v["data"] {
                Value::Null => errors.push(FieldError::required(&at, "data is mandatory")),
                Value::Object(_) => {}
                _ => errors.push(FieldError::required(&at, "data must be a valid JSON object")),
            }
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

/// A count or percentage that is at least 0.
fn count_or_percent(errors: &mut ErrorList, object: &Value, key: &str, path: &Path) {
    match &object[key] {
        Value::String(text) => errors.invalid_each(&path.child(key), text, names::percent(text)),
        _ => not_negative(errors, object, key, path),
    }
}

/// A percentage is at most 100.
fn at_most_all(errors: &mut ErrorList, object: &Value, key: &str, path: &Path) {
    let percent = object[key].as_str().filter(|text| names::percent(text).is_empty());
    if percent.is_some_and(|text| text.trim_end_matches('%').parse::<u64>().unwrap_or(u64::MAX) > 100) {
        errors.push(FieldError::invalid(
            &path.child(key),
            object[key].clone(),
            "must not be greater than 100%",
        ));
    }
}

/// Whether a count or percentage is zero.
fn is_none(value: &Value) -> bool {
    match value {
        // What is no percentage counts as none.
        Value::String(text) if !names::percent(text).is_empty() => text.parse::<i64>().unwrap_or(0) == 0,
        Value::String(text) => text.trim_end_matches('%').parse::<u64>() == Ok(0),
        other => other.as_i64().unwrap_or(0) == 0,
    }
}

/// The selector of a controller: none where it is broken, nothing where there is none.
fn selector_of(selector: &Value) -> Option<Selector> {
    let mut broken = ErrorList::new();
    objectmeta::label_selector(&mut broken, selector, &Path::root());
    match selector.is_object() {
        true if !broken.is_empty() => None,
        true => Selector::from_label_selector(selector).ok(),
        false => Some(Selector::nothing()),
    }
}

fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && items(selector, "matchExpressions").is_empty()
}

/// Checks a label selector, which must be there and select something.
fn required_selector(errors: &mut ErrorList, selector: &Value, empty_rule: &str, at: &Path) {
    if !selector.is_object() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    objectmeta::label_selector(errors, selector, at);
    if is_empty(selector) {
        errors.push(FieldError::invalid(at, json!({}), empty_rule));
    }
}

/// Checks a required label selector and the pod template it must match, as for Deployments and ReplicaSets.
fn selector_and_template(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (selector, at) = (&spec["selector"], path.child("selector"));
    required_selector(errors, selector, "empty selector is invalid for deployment", &at);
    let (template, path) = (&spec["template"], path.child("template"));
    match selector_of(selector) {
        Some(parsed) => {
            if !parsed.is_everything() {
                pod::validate_selected(errors, template, &parsed, &path);
            }
            pod::validate_template(errors, template, &path);
            pod::validate_lasting(errors, template, "ReplicaSet", &path);
        }
        None => errors.push(FieldError::invalid(&at, selector.clone(), "invalid label selector")),
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
