//! Validation of containers, init containers and ephemeral containers.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::{env, names_of, probes, resources, security};
use crate::net;
use crate::value::{has, int, items, text};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: &[&str] = &["File", "FallbackToLogsOnError"];

/// What containers may refer to.
pub(super) struct Scope<'a> {
    volumes: Vec<&'a str>,
    /// Those of them that may be block devices.
    claimed: Vec<&'a str>,
    claims: Vec<&'a str>,
    grace_seconds: Option<i64>,
    host_users: bool,
    is_pod: bool,
}

impl<'a> Scope<'a> {
    /// `volumes` are the names of those that may be mounted.
    pub(super) fn new(spec: &'a Value, volumes: Vec<&'a str>, is_pod: bool) -> Self {
        // Volumes that are not the spec's own come from claims.
        let files = |name: &str| {
            let own = items(spec, "volumes").iter().find(|volume| text(volume, "name") == name);
            own.is_some_and(|volume| {
                !volume["persistentVolumeClaim"].is_object() && !volume["ephemeral"].is_object()
            })
        };
        Scope {
            claimed: volumes.iter().copied().filter(|name| !files(name)).collect(),
            volumes,
            claims: names_of(spec, "resourceClaims"),
            grace_seconds: int(spec, "terminationGracePeriodSeconds"),
            host_users: spec["hostUsers"].as_bool().unwrap_or(true),
            is_pod,
        }
    }
}

/// Checks all containers of a spec at `path`.
pub(super) fn validate_all(errors: &mut ErrorList, spec: &Value, path: &Path, scope: &Scope<'_>) {
    let containers = items(spec, "containers");
    let at = path.child("containers");
    if containers.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    let mut taken: Vec<&str> = Vec::new();
    for (i, container) in containers.iter().enumerate() {
        let at = at.index(i);
        common(errors, container, &at, scope);
        unique(errors, container, &at, &mut taken);
        probes::validate(errors, container, &at, scope.grace_seconds);
        restart_policy(errors, container, &at, &["Always", "Never", "OnFailure"]);
    }
    for (i, container) in items(spec, "initContainers").iter().enumerate() {
        let at = path.child("initContainers").index(i);
        common(errors, container, &at, scope);
        unique(errors, container, &at, &mut taken);
        init(errors, container, &at, scope);
    }
    ephemeral(errors, spec, path, scope, &mut taken);
}

fn unique<'a>(errors: &mut ErrorList, container: &'a Value, at: &Path, taken: &mut Vec<&'a str>) {
    let name = text(container, "name");
    if taken.contains(&name) {
        errors.push(FieldError::duplicate(&at.child("name"), name));
    }
    taken.push(name);
}

fn restart_policy(errors: &mut ErrorList, container: &Value, at: &Path, supported: &[&str]) {
    match text(container, "restartPolicy") {
        "" if has(container, "restartPolicyRules") => {
            let rule = "must specify restartPolicy when restart rules are used";
            errors.push(FieldError::required(&at.child("restartPolicy"), rule));
        }
        "" => {}
        value if !supported.contains(&value) => {
            errors.push(FieldError::not_supported(&at.child("restartPolicy"), value, supported));
        }
        _ => {}
    }
}

/// Only sidecars (init containers that restart always) have a life to probe.
fn init(errors: &mut ErrorList, container: &Value, at: &Path, scope: &Scope<'_>) {
    restart_policy(errors, container, at, &["Always", "Never", "OnFailure"]);
    if text(container, "restartPolicy") == "Always" {
        probes::validate(errors, container, at, scope.grace_seconds);
        return;
    }
    for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, key) {
            let rule = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(&at.child(key), rule));
        }
    }
}

fn ephemeral<'a>(
    errors: &mut ErrorList,
    spec: &'a Value,
    path: &Path,
    scope: &Scope<'_>,
    taken: &mut Vec<&'a str>,
) {
    let others = taken.clone();
    for (i, container) in items(spec, "ephemeralContainers").iter().enumerate() {
        let at = path.child("ephemeralContainers").index(i);
        common(errors, container, &at, scope);
        unique(errors, container, &at, taken);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.push(FieldError::not_found(&at.child("targetContainerName"), target));
        }
        for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if has(container, key) {
                errors
                    .push(FieldError::forbidden(&at.child(key), "cannot be set for an Ephemeral Container"));
            }
        }
    }
}

/// What every kind of container must satisfy.
fn common(errors: &mut ErrorList, container: &Value, at: &Path, scope: &Scope<'_>) {
    let (name, image) = (text(container, "name"), text(container, "image"));
    if name.is_empty() {
        errors.push(FieldError::required(&at.child("name"), ""));
    } else {
        errors.invalid_each(&at.child("name"), name, names::dns1123_label(name));
    }
    if image.is_empty() {
        errors.push(FieldError::required(&at.child("image"), ""));
    }
    let messages = &at.child("terminationMessagePolicy");
    match text(container, "terminationMessagePolicy") {
        "" => errors.push(FieldError::required(messages, "")),
        value if !MESSAGE_POLICIES.contains(&value) => {
            errors.push(FieldError::not_supported(messages, value, MESSAGE_POLICIES));
        }
        _ => {}
    }
    ports(errors, items(container, "ports"), &at.child("ports"));
    env::validate(errors, container, at);
    mounts(errors, container, at, scope);
    devices(errors, container, at, scope);
    match text(container, "imagePullPolicy") {
        "" => errors.push(FieldError::required(&at.child("imagePullPolicy"), "")),
        value if !PULL_POLICIES.contains(&value) => {
            errors.push(FieldError::not_supported(&at.child("imagePullPolicy"), value, PULL_POLICIES));
        }
        _ => {}
    }
    resources::validate(errors, &container["resources"], &at.child("resources"), &scope.claims);
    let security_at = at.child("securityContext");
    security::validate_container(errors, &container["securityContext"], &security_at, scope.host_users);
    if scope.is_pod && image.trim() != image {
        let rule = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&at.child("image"), image, rule));
    }
}

fn ports(errors: &mut ErrorList, ports: &[Value], path: &Path) {
    let mut taken: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let broken = names::port_name(name);
            if broken.is_empty() {
                if taken.contains(&name) {
                    errors.push(FieldError::duplicate(&at.child("name"), name));
                }
                taken.push(name);
            }
            errors.invalid_each(&at.child("name"), name, broken);
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.push(FieldError::required(&at.child("containerPort"), "")),
            number => net::valid_port(errors, number, &at.child("containerPort")),
        }
        if let Some(number) = int(port, "hostPort").filter(|n| *n != 0) {
            net::valid_port(errors, number, &at.child("hostPort"));
        }
        net::valid_protocol(errors, text(port, "protocol"), &at.child("protocol"));
    }
}

fn mounts(errors: &mut ErrorList, container: &Value, at: &Path, scope: &Scope<'_>) {
    let mut taken: Vec<&str> = Vec::new();
    let list_at = at.child("volumeMounts");
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let at = list_at.index(i);
        let (name, path) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        }
        if !scope.volumes.contains(&name) {
            errors.push(FieldError::not_found(&at.child("name"), name));
        }
        if path.is_empty() {
            errors.push(FieldError::required(&at.child("mountPath"), ""));
        }
        if taken.contains(&path) {
            errors.push(FieldError::invalid(&at.child("mountPath"), path, "must be unique"));
        }
        taken.push(path);
        for key in ["subPath", "subPathExpr"] {
            super::volumes::descending_path(errors, text(mount, key), &at.child(key));
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let rule = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&at.child("subPathExpr"), text(mount, "subPathExpr"), rule));
        }
        propagation(errors, container, mount, &list_at.child("mountPropagation"));
    }
}

fn devices(errors: &mut ErrorList, container: &Value, at: &Path, scope: &Scope<'_>) {
    let mounted =
        |key: &str, said: &str| items(container, "volumeMounts").iter().any(|mount| text(mount, key) == said);
    let list = items(container, "volumeDevices");
    for (i, device) in list.iter().enumerate() {
        let at = at.child("volumeDevices").index(i);
        let (name, path) = (text(device, "name"), text(device, "devicePath"));
        let (name_at, path_at) = (at.child("name"), at.child("devicePath"));
        let earlier =
            |key: &str, said: &str| !said.is_empty() && list[..i].iter().any(|d| text(d, key) == said);
        if name.is_empty() {
            errors.push(FieldError::required(&name_at, ""));
        }
        if earlier("name", name) {
            errors.push(FieldError::invalid(&name_at, name, "must be unique"));
        }
        if !scope.volumes.contains(&name) {
            errors.push(FieldError::not_found(&name_at, name));
        } else if !scope.claimed.contains(&name) {
            let rule = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
            errors.push(FieldError::invalid(&name_at, name, rule));
        }
        if path.is_empty() {
            errors.push(FieldError::required(&path_at, ""));
        }
        if earlier("devicePath", path) {
            errors.push(FieldError::invalid(&path_at, path, "must be unique"));
        }
        if path.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(&path_at, path, "can not contain backsteps ('..')"));
        }
        if mounted("name", name) {
            errors.push(FieldError::invalid(&name_at, name, "must not already exist in volumeMounts"));
        }
        if mounted("mountPath", path) {
            let rule = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(&path_at, path, rule));
        }
    }
}

fn propagation(errors: &mut ErrorList, container: &Value, mount: &Value, at: &Path) {
    const SUPPORTED: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    match text(mount, "mountPropagation") {
        _ if !has(mount, "mountPropagation") => {}
        "Bidirectional" if container["securityContext"]["privileged"] != true => {
            let rule = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(at, rule));
        }
        value if !SUPPORTED.contains(&value) => errors.push(FieldError::not_supported(at, value, SUPPORTED)),
        _ => {}
    }
}
