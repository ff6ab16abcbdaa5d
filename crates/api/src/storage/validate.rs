//! Validation of the storage.k8s.io group.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use crate::check::{not_negative, one_of, texts};
use crate::objectmeta;
use crate::value::{entries, has, int, items, text};

const MOST_PARAMETERS: usize = 512;
const MOST_PARAMETER_BYTES: usize = 256 * 1024;
const LONGEST_DRIVER_NAME: usize = 63;
const LONGEST_NODE_ID: usize = 256;

/// The name of a CSI driver.
pub(crate) fn driver_name(errors: &mut ErrorList, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > LONGEST_DRIVER_NAME {
        errors.push(FieldError::too_long(path, LONGEST_DRIVER_NAME));
    }
    errors.invalid_each(path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

pub(super) fn provisioner(errors: &mut ErrorList, class: &Value, key: &str) {
    let (name, path) = (text(class, key), Path::new(key));
    if name.is_empty() {
        errors.push(FieldError::required(&path, ""));
    } else {
        let name = name.to_lowercase();
        errors.invalid_each(&path, &name, names::qualified_name(&name));
    }
}

pub(super) fn parameters(errors: &mut ErrorList, class: &Value, may_be_empty: bool) {
    let path = Path::new("parameters");
    let count = entries(class, "parameters").count();
    if count > MOST_PARAMETERS {
        errors.push(FieldError::too_long(&path, MOST_PARAMETERS));
        return;
    }
    let mut size = 0;
    for (key, value) in entries(class, "parameters") {
        if key.is_empty() {
            errors.push(FieldError::invalid(&path, key, "field can not be empty."));
        }
        size += key.len() + value.as_str().unwrap_or_default().len();
    }
    if size > MOST_PARAMETER_BYTES {
        errors.push(FieldError::too_long(&path, MOST_PARAMETER_BYTES));
    }
    if !may_be_empty && count == 0 {
        errors.push(FieldError::required(&path, "must contain at least one key/value pair"));
    }
}

pub(super) fn validate_class(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    provisioner(&mut errors, class, "provisioner");
    parameters(&mut errors, class, true);
    if !text(class, "reclaimPolicy").is_empty() {
        one_of(&mut errors, class, "reclaimPolicy", &["Delete", "Retain"], &Path::root());
    }
    one_of(&mut errors, class, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &Path::root());
    let terms = items(class, "allowedTopologies");
    for (i, term) in terms.iter().enumerate() {
        let path = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
        let expressions = items(term, "matchLabelExpressions");
        for (j, expression) in expressions.iter().enumerate() {
            let (at, key) = (path.index(j), text(expression, "key"));
            let values = texts(expression, "values");
            if values.is_empty() {
                errors.push(FieldError::required(&at.child("values"), ""));
            }
            for (k, value) in values.iter().enumerate() {
                if values[..k].contains(value) {
                    errors.push(FieldError::duplicate(&at.child("values").index(k), *value));
                }
            }
            errors.invalid_each(&at.child("key"), key, names::qualified_name(key));
            if expressions[..j].iter().any(|other| text(other, "key") == key) {
                errors.push(FieldError::duplicate(&at.child("key"), key));
            }
        }
        // Upstream compares with as many empty terms as there are terms, besides those before.
        let empty = if expressions.is_empty() { terms.len() } else { 0 };
        let same = terms[..i].iter().filter(|other| *other == term).count();
        for _ in 0..empty + same {
            errors.push(FieldError::duplicate(&path, ""));
        }
    }
    errors
}

pub(super) fn validate_driver(errors: &mut ErrorList, spec: &Value, path: &Path) {
    one_of(errors, spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"], path);
    let requests = items(spec, "tokenRequests");
    for (i, request) in requests.iter().enumerate() {
        let at = path.child("tokenRequests").index(i);
        let audience = text(request, "audience");
        if requests[..i].iter().any(|other| text(other, "audience") == audience) {
            errors.push(FieldError::duplicate(&at.child("audience"), audience));
            continue;
        }
        let Some(seconds) = int(request, "expirationSeconds") else { continue };
        let rule = match seconds {
            ..600 => "may not specify a duration less than 10 minutes",
            4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
            _ => continue,
        };
        errors.push(FieldError::invalid(&at.child("expirationSeconds"), seconds, rule));
    }
    for mode in texts(spec, "volumeLifecycleModes") {
        if !["Persistent", "Ephemeral"].contains(&mode) {
            let at = path.child("volumeLifecycleModes");
            errors.push(FieldError::not_supported(&at, mode, &["Persistent", "Ephemeral"]));
        }
    }
    if let Some(seconds) = int(spec, "nodeAllocatableUpdatePeriodSeconds").filter(|s| *s < 10) {
        let at = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.push(FieldError::invalid(&at, seconds, "must be greater than or equal to 10 seconds"));
    }
    if has(spec, "serviceAccountTokenInSecrets") && requests.is_empty() {
        let rule = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        let value = spec["serviceAccountTokenInSecrets"].clone();
        errors.push(FieldError::invalid(&path.child("serviceAccountTokenInSecrets"), value, rule));
    }
}

pub(super) fn validate_node(node: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let drivers = items(&node["spec"], "drivers");
    for (i, driver) in drivers.iter().enumerate() {
        let at = Path::new("spec").child("drivers").index(i);
        driver_name(&mut errors, text(driver, "name"), &at.child("name"));
        let id = text(driver, "nodeID");
        if id.is_empty() {
            errors.push(FieldError::required(&at.child("nodeID"), ""));
        }
        if id.len() > LONGEST_NODE_ID {
            let rule = format!("must be {LONGEST_NODE_ID} characters or less");
            errors.push(FieldError::invalid(&at.child("nodeID"), id, rule));
        }
        not_negative(&mut errors, &driver["allocatable"], "count", &at.child("allocatable"));
        if drivers[..i].iter().any(|other| other["name"] == driver["name"]) {
            errors.push(FieldError::duplicate(&at.child("name"), driver["name"].clone()));
        }
        let keys = texts(driver, "topologyKeys");
        for (j, key) in keys.iter().enumerate() {
            if key.is_empty() {
                errors.push(FieldError::required(&at, ""));
            }
            if keys[..j].contains(key) {
                errors.push(FieldError::duplicate(&at, *key));
            }
            errors.invalid_each(&at, key, names::qualified_name(key));
        }
    }
    errors
}

pub(super) fn validate_node_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let bare = |driver: &Value| {
        let mut driver = driver.clone();
        crate::value::remove(&mut driver, "allocatable");
        driver
    };
    for before in items(&old["spec"], "drivers") {
        for now in items(&new["spec"], "drivers").iter().filter(|d| d["name"] == before["name"]) {
            if bare(now) != bare(before) {
                let path = Path::new("spec").child("drivers");
                errors.push(FieldError::invalid(&path, bare(now), objectmeta::IMMUTABLE));
            }
        }
    }
    errors
}

pub(super) fn validate_attachment(attachment: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&attachment["spec"], Path::new("spec"));
    driver_name(&mut errors, text(spec, "attacher"), &path.child("attacher"));
    let (source, at) = (&spec["source"], path.child("source"));
    let rule = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let volume = source["persistentVolumeName"].as_str();
    match (has(source, "inlineVolumeSpec"), volume) {
        (false, None) => errors.push(FieldError::required(&at, rule)),
        (true, Some(_)) => errors.push(FieldError::forbidden(&at, rule)),
        (false, Some("")) => {
            let rule = "must specify non empty persistentVolumeName";
            errors.push(FieldError::required(&at.child("persistentVolumeName"), rule));
        }
        _ => {}
    }
    let node = text(spec, "nodeName");
    errors.invalid_each(&path.child("nodeName"), node, names::dns1123_subdomain(node));
    if let Some(volume) = volume {
        let at = Path::new("spec.source.persistentVolumeName");
        errors.invalid_each(&at, volume, names::dns1123_subdomain(volume));
    }
    errors
}

pub(super) fn validate_capacity(capacity: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    objectmeta::label_selector(&mut errors, &capacity["nodeTopology"], &Path::new("nodeTopology"));
    let class = text(capacity, "storageClassName");
    errors.invalid_each(&Path::new("storageClassName"), class, names::dns1123_subdomain(class));
    if Quantity::from_json(&capacity["capacity"]).is_ok_and(Quantity::is_negative) {
        let rule = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(&Path::new("capacity"), capacity["capacity"].clone(), rule));
    }
    errors
}
