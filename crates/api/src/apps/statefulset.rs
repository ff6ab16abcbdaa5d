//! StatefulSet.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::{not_negative, required_selector, selector_of};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::optional_name;
use crate::core::{pod, volume};
use crate::schema;
use crate::table::{AGE, CONTAINERS, IMAGES, NAME, age, column, containers, name, number};
use crate::value::{child, has, int, items, items_mut, set, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::SCALE, Subresource::status("apps", "v1", "StatefulSet")],
    status: true,
    columns: &[NAME, READY, AGE, CONTAINERS, IMAGES],
    hooks: Hooks { default, validate, validate_new, validate_update, row, ..Hooks::COUNTED },
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
    let at = path.child("podManagementPolicy");
    match text(spec, "podManagementPolicy") {
        "" => errors.push(FieldError::required(&at, "")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(FieldError::invalid(&at, other, "must be 'OrderedReady' or 'Parallel'")),
    }
    update_strategy(&mut errors, &spec["updateStrategy"], &path.child("updateStrategy"));
    let (policy, at) =
        (&spec["persistentVolumeClaimRetentionPolicy"], path.child("persistentVolumeClaimRetentionPolicy"));
    for key in ["whenDeleted", "whenScaled"] {
        if policy.is_object() && !["Delete", "Retain"].contains(&text(policy, key)) {
            let known = &["Retain", "Delete"];
            errors.push(FieldError::not_supported(&at.child(key), text(policy, key), known));
        }
    }
    for key in ["replicas", "minReadySeconds"] {
        not_negative(&mut errors, spec, key, &path);
    }
    if let Some(start) = int(&spec["ordinals"], "start").filter(|start| *start < 0) {
        let rule = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(&path.child("ordinals.start"), start, rule));
    }
    let (selector, at) = (&spec["selector"], path.child("selector"));
    required_selector(&mut errors, selector, "empty selector is invalid for statefulset", &at);
    match selector_of(selector) {
        Some(parsed) => {
            let (template, path) = (pods_template(spec), path.child("template"));
            if !parsed.is_everything() {
                pod::validate_selected(&mut errors, &template, &parsed, &path);
            }
            pod::validate_template(&mut errors, &template, &path);
        }
        None => errors.push(FieldError::invalid(&at, selector.clone(), "")),
    }
    pod::validate_lasting(&mut errors, &spec["template"], "StatefulSet", &path.child("template"));
    errors
}

/// What may not change is judged only when it is new.
fn validate_new(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&set["spec"], Path::new("spec"));
    for (i, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
        volume::claim_spec(
            &mut errors,
            &claim["spec"],
            &path.child("volumeClaimTemplates").index(i).child("spec"),
        );
    }
    optional_name(&mut errors, spec, "serviceName", names::dns1123_label, &path);
    errors
}

fn update_strategy(errors: &mut ErrorList, strategy: &Value, at: &Path) {
    let (rolling, path) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
    match text(strategy, "type") {
        "" => errors.push(FieldError::required(at, "")),
        "OnDelete" if rolling.is_object() => {
            let shown = schema::internal(rolling, "io.k8s.api.apps.v1.RollingUpdateStatefulSetStrategy");
            let rule = format!("{shown}: only allowed for updateStrategy 'RollingUpdate'");
            errors.push(FieldError::invalid_without_value(&path, rule));
        }
        "OnDelete" => {}
        "RollingUpdate" => not_negative(errors, rolling, "partition", &path),
        _ => {
            let shown = schema::internal(strategy, "io.k8s.api.apps.v1.StatefulSetUpdateStrategy");
            let rule = format!("{shown}: must be 'RollingUpdate' or 'OnDelete'");
            errors.push(FieldError::invalid_without_value(at, rule));
        }
    }
}

/// The template as its pods will have it: with the claims as volumes, and names that the controller gives.
fn pods_template(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims = items(spec, "volumeClaimTemplates");
    let Some(pod) = child(&mut template, "spec") else { return template };
    for key in ["hostname", "subdomain"] {
        crate::value::remove(pod, key);
    }
    if claims.is_empty() {
        return template;
    }
    let called = |claim: &Value| claim["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mut volumes: Vec<Value> = claims
        .iter()
        .map(|c| json!({"name": called(c), "persistentVolumeClaim": {"claimName": called(c)}}))
        .collect();
    let others =
        items(pod, "volumes").iter().filter(|v| !claims.iter().any(|c| called(c) == text(v, "name")));
    volumes.extend(others.cloned().collect::<Vec<_>>());
    set(pod, "volumes", volumes);
    template
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
