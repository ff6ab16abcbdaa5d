//! StatefulSet.

use coxswain_meta::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::{not_negative, selector_and_template};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::{pod, volume};
use crate::table::{AGE, CONTAINERS, IMAGES, NAME, age, column, containers, name, number};
use crate::value::{child, has, items_mut, set, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::SCALE, Subresource::status("apps", "v1", "StatefulSet")],
    status: true,
    columns: &[NAME, READY, AGE, CONTAINERS, IMAGES],
    hooks: Hooks { default, validate, validate_update, row, ..Hooks::COUNTED },
    ..kind!("apps", "v1", "StatefulSet", "statefulsets", "statefulset")
};
const READY: Column = column("Ready", "Pods that are ready, of those wanted.");

fn default(set: &mut Value) {
    let Some(spec) = child(set, "spec") else { return };
    set_default(spec, "podManagementPolicy", "OrderedReady");
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        if text(strategy, "type").is_empty() {
            set_default(strategy, "type", "RollingUpdate");
            child(strategy, "rollingUpdate");
        }
        if text(strategy, "type") == "RollingUpdate"
            && has(strategy, "rollingUpdate")
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set_default(rolling, "partition", 0);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        set_default(policy, "whenDeleted", "Retain");
        set_default(policy, "whenScaled", "Retain");
    }
    for claim in items_mut(spec, "volumeClaimTemplates") {
        set_default(claim, "kind", "PersistentVolumeClaim");
        set_default(claim, "apiVersion", "v1");
        if let Some(spec) = child(claim, "spec") {
            volume::default_claim_spec(spec);
        }
        if let Some(status) = child(claim, "status") {
            set_default(status, "phase", "Pending");
        }
    }
    if let Some(template) = child(spec, "template") {
        pod::default_template(template);
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&set["spec"], Path::new("spec"));
    match text(spec, "podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        other => {
            let rule = "must be 'OrderedReady' or 'Parallel'";
            errors.push(FieldError::invalid(&path.child("podManagementPolicy"), other, rule));
        }
    }
    match text(&spec["updateStrategy"], "type") {
        "OnDelete" | "RollingUpdate" => {}
        other => {
            let rule = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(&path.child("updateStrategy"), other, rule));
        }
    }
    not_negative(
        &mut errors,
        &spec["updateStrategy"]["rollingUpdate"],
        "partition",
        &path.child("updateStrategy.rollingUpdate"),
    );
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        not_negative(&mut errors, spec, key, &path);
    }
    selector_and_template(&mut errors, spec, "empty selector is invalid for statefulset", &path);
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut masked = new["spec"].clone();
    let changeable = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    for key in changeable {
        match old["spec"].get(key) {
            Some(value) => set(&mut masked, key, value.clone()),
            None => crate::value::remove(&mut masked, key),
        }
    }
    if masked != old["spec"] {
        let rule = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden(&Path::new("spec"), rule));
    }
    errors
}

fn row(set: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&set["spec"], &set["status"]);
    let [names, images] = containers(&spec["template"]);
    let ready = format!("{}/{}", number(status, "readyReplicas"), number(spec, "replicas"));
    vec![name(set), ready.into(), age(set, now), names, images]
}
