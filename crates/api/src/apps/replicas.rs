//! ReplicaSet and ReplicationController.

use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path};

use super::{counts, fixed_selector, not_negative, selector_and_template};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::table::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, containers, count, labels, name, number, selector,
};
use crate::value::{child, filled, has, set, set_default};

pub(crate) const REPLICA_SET: Kind = Kind {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::SCALE, Subresource::status("apps", "v1", "ReplicaSet")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| {
            if let Some(spec) = child(v, "spec") {
                set_default(spec, "replicas", 1);
                if let Some(template) = child(spec, "template") {
                    pod::default_template(template);
                }
            }
        },
        prepare_create,
        validate,
        validate_update: fixed_selector,
        validate_status,
        row: |v, now| row(v, selector(&v["spec"]["selector"]), now),
        ..Hooks::COUNTED
    },
    ..kind!("apps", "v1", "ReplicaSet", "replicasets", "replicaset")
};

pub(crate) const CONTROLLER: Kind = Kind {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::SCALE, Subresource::status("", "v1", "ReplicationController")],
    status: true,
    columns: COLUMNS,
    selectable: &["status.replicas"],
    hooks: Hooks {
        default: default_controller,
        prepare_create,
        validate: validate_controller,
        validate_status,
        selectable: |v| vec![("status.replicas", number(&v["status"], "replicas").to_string())],
        row: |v, now| row(v, labels(&v["spec"], "selector"), now),
        ..Hooks::COUNTED
    },
    ..kind!("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller")
};

const COLUMNS: &[Column] = &[
    NAME,
    count("Desired", "Pods wanted."),
    count("Current", "Pods there are."),
    count("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn prepare_create(object: &mut Value) {
    crate::prepare::create_counted(object);
    set(object, "status", json!({"replicas": 0}));
}

fn row(object: &Value, selector: String, now: i64) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        number(spec, "replicas"),
        number(status, "replicas"),
        number(status, "readyReplicas"),
        age(object, now),
        names,
        images,
        selector.into(),
    ]
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&set["spec"], Path::new("spec"));
    not_negative(&mut errors, spec, "replicas", &path);
    not_negative(&mut errors, spec, "minReadySeconds", &path);
    selector_and_template(&mut errors, spec, &path);
    errors
}

fn validate_status(new: &Value, _old: &Value) -> ErrorList {
    let mut errors = counts(new, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"]);
    let path = Path::new("status");
    let of = |key: &str| crate::value::int(&new["status"], key).unwrap_or(0);
    for (part, whole) in [
        ("fullyLabeledReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if of(part) > of(whole) {
            let whole = if whole == "replicas" { "status.replicas" } else { whole };
            errors.push(FieldError::invalid(
                &path.child(part),
                of(part),
                format!("cannot be greater than {whole}"),
            ));
        }
    }
    errors
}

/// The template's labels select, and label the controller, where nothing else does.
fn default_controller(controller: &mut Value) {
    let template_labels = controller["spec"]["template"]["metadata"].get("labels").cloned();
    if let Some(labels) = template_labels.filter(Value::is_object) {
        if let Some(spec) = child(controller, "spec").filter(|s| !filled(s, "selector")) {
            set(spec, "selector", labels.clone());
        }
        if let Some(metadata) = child(controller, "metadata").filter(|m| !filled(m, "labels")) {
            set(metadata, "labels", labels);
        }
    }
    let Some(spec) = child(controller, "spec") else { return };
    set_default(spec, "replicas", 1);
    if let Some(template) = spec.get_mut("template").filter(|t| t.is_object()) {
        pod::default_template(template);
    }
}

fn validate_controller(controller: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&controller["spec"], Path::new("spec"));
    not_negative(&mut errors, spec, "minReadySeconds", &path);
    if !filled(spec, "selector") {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    if has(spec, "replicas") {
        not_negative(&mut errors, spec, "replicas", &path);
    } else {
        errors.push(FieldError::required(&path.child("replicas"), ""));
    }
    let (template, path) = (&spec["template"], path.child("template"));
    if !has(spec, "template") {
        errors.push(FieldError::required(&path, ""));
        return errors;
    }
    let selector = Selector::from_map(&spec["selector"]);
    if !selector.is_everything() {
        pod::validate_selected(&mut errors, template, &selector, &path);
    }
    pod::validate_template(&mut errors, template, &path);
    pod::validate_lasting(&mut errors, template, "ReplicationController", &path);
    errors
}
