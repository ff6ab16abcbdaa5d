//! Validation of environment variables and the references they and downward files make.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use crate::value::{entries, has, items, text};

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks `env` and `envFrom` of a container.
pub(super) fn validate(errors: &mut ErrorList, container: &Value, at: &Path) {
    for (i, variable) in items(container, "env").iter().enumerate() {
        let at = at.child("env").index(i);
        match text(variable, "name") {
            "" => errors.push(FieldError::required(&at.child("name"), "")),
            name => errors.invalid_each(&at.child("name"), name, names::env_var_name(name)),
        }
        if has(variable, "valueFrom") {
            value_from(errors, variable, &at.child("valueFrom"));
        }
    }
    for (i, source) in items(container, "envFrom").iter().enumerate() {
        let (all, at) = (at.child("envFrom"), at.child("envFrom").index(i));
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.invalid_each(&at.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let given: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|key| has(source, key)).collect();
        for key in &given {
            named(errors, &source[*key], &at.child(key));
        }
        match given.len() {
            0 => errors.push(FieldError::invalid(
                &all,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                &all,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

/// A reference by name: there, and a valid object name.
fn named(errors: &mut ErrorList, reference: &Value, at: &Path) {
    match text(reference, "name") {
        "" => errors.push(FieldError::required(&at.child("name"), "")),
        name => errors.invalid_each(&at.child("name"), name, names::dns1123_subdomain(name)),
    }
}

fn value_from(errors: &mut ErrorList, variable: &Value, at: &Path) {
    let source = &variable["valueFrom"];
    let mut count = 0;
    for key in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let (reference, at) = (&source[key], at.child(key));
        if !reference.is_object() {
            continue;
        }
        count += 1;
        match key {
            "fieldRef" => field_reference(errors, reference, &at, ENV_FIELDS),
            "resourceFieldRef" => resource_reference(errors, reference, &at, false),
            "configMapKeyRef" | "secretKeyRef" => key_reference(errors, reference, &at),
            _ => {}
        }
    }
    if count == 0 {
        let rule = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(FieldError::invalid(at, "", rule));
    } else if !text(variable, "value").is_empty() {
        errors.push(FieldError::invalid(at, "", "may not be specified when `value` is not empty"));
    }
    if count > 1 {
        errors.push(FieldError::invalid(at, "", "may not have more than one field specified at a time"));
    }
}

fn key_reference(errors: &mut ErrorList, reference: &Value, at: &Path) {
    let (name, key) = (text(reference, "name"), text(reference, "key"));
    errors.invalid_each(&at.child("name"), name, names::dns1123_subdomain(name));
    if key.is_empty() {
        errors.push(FieldError::required(&at.child("key"), ""));
    } else {
        errors.invalid_each(&at.child("key"), key, names::config_map_key(key));
    }
}

fn field_reference(errors: &mut ErrorList, reference: &Value, at: &Path, supported: &[&str]) {
    let path = text(reference, "fieldPath");
    if text(reference, "apiVersion").is_empty() {
        errors.push(FieldError::required(&at.child("apiVersion"), ""));
        return;
    }
    if path.is_empty() {
        errors.push(FieldError::required(&at.child("fieldPath"), ""));
        return;
    }
    let at = at.child("fieldPath");
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        match map {
            "metadata.annotations" => {
                errors.invalid_each(&at, key, names::qualified_name(&key.to_lowercase()))
            }
            "metadata.labels" => errors.invalid_each(&at, key, names::qualified_name(key)),
            _ => errors.push(FieldError::invalid(&at, path, "does not support subscript")),
        }
        return;
    }
    let known = ENV_FIELDS.contains(&path)
        || FILE_FIELDS.contains(&path)
        || matches!(path, "spec.hostname" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase");
    if !known {
        let rule = format!("error converting fieldPath: field label not supported: {path}");
        errors.push(FieldError::invalid(&at, path, rule));
    } else if !supported.contains(&path) {
        errors.push(FieldError::not_supported(&at, path, supported));
    }
}

fn resource_reference(errors: &mut ErrorList, reference: &Value, at: &Path, volume: bool) {
    let resource = text(reference, "resource");
    if volume && text(reference, "containerName").is_empty() {
        errors.push(FieldError::required(&at.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&at.child("resource"), ""));
    } else if !RESOURCES.contains(&resource)
        && !["limits.hugepages-", "requests.hugepages-"].iter().any(|p| resource.starts_with(p))
    {
        errors.push(FieldError::not_supported(&at.child("resource"), resource, RESOURCES));
    }
    divisor(errors, resource, &reference["divisor"], at);
}

fn divisor(errors: &mut ErrorList, resource: &str, divisor: &Value, at: &Path) {
    let Ok(amount) = Quantity::from_json(divisor) else { return };
    let shown = amount.to_string();
    if shown == "0" {
        return;
    }
    let sizes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (supported, what): (&[&str], &str) = match resource.split_once('.').map_or("", |(_, name)| name) {
        "cpu" => (&["1m", "1"], "1m and 1 are supported with the cpu resource"),
        "memory" => (
            &sizes,
            "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        _ => return,
    };
    if !supported.contains(&shown.as_str()) {
        let rule = format!("only divisor's values {what}");
        errors.push(FieldError::invalid(&at.child("divisor"), resource, rule));
    }
}

/// Checks the files of a downward API volume.
pub(super) fn downward_files(errors: &mut ErrorList, source: &Value, at: &Path) {
    // Upstream says nothing about which item it is.
    for file in items(source, "items") {
        super::volumes::file_path(errors, text(file, "path"), &at.child("path"));
        super::volumes::mode(errors, file, "mode", at);
        match (has(file, "fieldRef"), has(file, "resourceFieldRef")) {
            (true, both) => {
                field_reference(errors, &file["fieldRef"], &at.child("fieldRef"), FILE_FIELDS);
                if both {
                    let rule = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    errors.push(FieldError::invalid(at, "resource", rule));
                }
            }
            (false, true) => {
                resource_reference(errors, &file["resourceFieldRef"], &at.child("resourceFieldRef"), true);
            }
            (false, false) => {
                errors.push(FieldError::required(at, "one of fieldRef and resourceFieldRef is required"));
            }
        }
    }
}

/// How many sources a projection names.
pub(super) fn projection_sources(projection: &Value) -> Vec<&str> {
    let known =
        ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    known.into_iter().filter(|key| entries(projection, key).next().is_some()).collect()
}
