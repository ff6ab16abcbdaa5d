//! Pod, and the pod templates of everything that makes pods.

mod claims;
mod containers;
mod defaults;
mod env;
mod placement;
mod probes;
mod resources;
mod security;
pub(crate) mod sources;
mod spec;
mod table;
mod update;
mod volumes;

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Hooks, Kind, Subresource, kind};
use crate::objectmeta;
use crate::prepare;
use crate::value::{child, entries, filled, flag, has, items, present, set, text};

pub(crate) use defaults::template as default_template;
pub(crate) use placement::{node_selector, taint_effect, tolerations};
pub use update::{QosClass, qos_class, validate_ephemeral_containers};

const CONNECT: &[&str] = &["create", "get"];

const fn connect(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, group: "", version: "v1", kind, verbs: CONNECT }
}

pub(crate) const KIND: Kind = Kind {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        connect("attach", "PodAttachOptions"),
        Subresource { name: "binding", group: "", version: "v1", kind: "Binding", verbs: &["create"] },
        Subresource {
            name: "ephemeralcontainers",
            group: "",
            version: "v1",
            kind: "Pod",
            verbs: &["get", "patch", "update"],
        },
        Subresource {
            name: "eviction",
            group: "policy",
            version: "v1",
            kind: "Eviction",
            verbs: &["create"],
        },
        connect("exec", "PodExecOptions"),
        Subresource { name: "log", group: "", version: "v1", kind: "Pod", verbs: &["get"] },
        connect("portforward", "PodPortForwardOptions"),
        Subresource {
            name: "proxy",
            group: "",
            version: "v1",
            kind: "PodProxyOptions",
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        Subresource {
            name: "resize",
            group: "",
            version: "v1",
            kind: "Pod",
            verbs: &["get", "patch", "update"],
        },
        Subresource::status("", "v1", "Pod"),
    ],
    status: true,
    graceful: true,
    columns: table::COLUMNS,
    selectable: SELECTABLE,
    hooks: Hooks {
        default: defaults::pod,
        prepare_create,
        prepare_update: |new, old| {
            keep_priority(new, old);
            prepare::update_counted(new, old);
        },
        validate,
        validate_new: |pod| validate_spec(&pod["spec"]),
        validate_update: update::validate_update,
        validate_status: update::validate_status,
        selectable,
        row: table::row,
        ..Hooks::COUNTED
    },
    ..kind!("", "v1", "Pod", "pods", "pod")
};

/// What a pod's class came to stays where a change leaves it out.
fn keep_priority(new: &mut Value, old: &Value) {
    let Some(spec) = present(new, "spec") else { return };
    for key in ["priority", "preemptionPolicy"] {
        if let Some(value) = old["spec"].get(key).filter(|_| !has(spec, key)) {
            set(spec, key, value.clone());
        }
    }
}

const SELECTABLE: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

fn selectable(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let ips: Vec<&str> = items(status, "podIPs").iter().map(|ip| text(ip, "ip")).collect();
    SELECTABLE
        .iter()
        .map(|field| {
            let value = match *field {
                "spec.hostNetwork" => flag(spec, "hostNetwork").to_string(),
                "status.podIPs" => ips.join(","),
                other => match other.split_once('.') {
                    Some(("spec", key)) => text(spec, key).to_owned(),
                    Some((_, key)) => text(status, key).to_owned(),
                    None => String::new(),
                },
            };
            (*field, value)
        })
        .collect()
}

/// A new pod is pending; its quality of service follows from its resources.
fn prepare_create(pod: &mut Value) {
    let qos = qos_class(pod).as_str();
    let gates = filled(&pod["spec"], "schedulingGates");
    let created = pod["metadata"]["creationTimestamp"].clone();
    set(pod, "status", json!({"phase": "Pending", "qosClass": qos}));
    if gates && let Some(status) = child(pod, "status") {
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": message, "lastProbeTime": null,
            "lastTransitionTime": created});
        set(status, "conditions", vec![condition]);
    }
    prepare::first_generation(pod);
}

fn validate(pod: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let annotations = &pod["metadata"]["annotations"];
    let deletion_cost = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = annotations.get(deletion_cost).and_then(Value::as_str)
        && cost.parse::<i32>().is_err()
    {
        let at = Path::new("metadata").child("annotations").key(deletion_cost);
        errors.push(FieldError::invalid(&at, cost, "must be a 32bit integer"));
    }
    apparmor_annotations(&mut errors, annotations, &pod["spec"], &Path::new("metadata").child("annotations"));
    errors
}

/// The profiles that annotations named before pods had a field for them.
fn apparmor_annotations(errors: &mut ErrorList, annotations: &Value, spec: &Value, path: &Path) {
    for (key, profile) in annotations.as_object().into_iter().flatten() {
        let Some(container) = key.strip_prefix("container.apparmor.security.beta.kubernetes.io/") else {
            continue;
        };
        let lists = ["containers", "initContainers", "ephemeralContainers"];
        let mut containers = lists.iter().flat_map(|list| items(spec, list));
        if !containers.any(|known| text(known, "name") == container) {
            errors.push(FieldError::invalid(&path.key(key), container, "container not found"));
        }
        let profile = profile.as_str().unwrap_or_default();
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let rule = format!("invalid AppArmor profile name: {profile:?}");
            errors.push(FieldError::invalid(&path.key(key), profile, rule));
        }
    }
}

fn validate_spec(spec: &Value) -> ErrorList {
    let (mut errors, path) = (ErrorList::new(), Path::new("spec"));
    spec::validate(&mut errors, spec, &path, true);
    if filled(spec, "schedulingGates") && !text(spec, "nodeName").is_empty() {
        let rule = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), rule));
    }
    errors
}

/// Checks a `PodTemplateSpec`.
pub(crate) fn validate_template(errors: &mut ErrorList, template: &Value, path: &Path) {
    // Upstream names the parts of the template's metadata without it.
    objectmeta::labels(errors, &template["metadata"], "labels", path);
    objectmeta::annotations(errors, &template["metadata"], path);
    let annotations = &template["metadata"]["annotations"];
    apparmor_annotations(errors, annotations, &template["spec"], &path.child("annotations"));
    spec::validate(errors, &template["spec"], &path.child("spec"), false);
    if filled(&template["spec"], "ephemeralContainers") {
        let rule = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(&path.child("spec.ephemeralContainers"), rule));
    }
}

/// Checks that a pod template has the labels that its controller selects.
pub(crate) fn validate_selected(
    errors: &mut ErrorList,
    template: &Value,
    selector: &coxswain_meta::labels::Selector,
    path: &Path,
) {
    let labels = template["metadata"].get("labels").cloned().unwrap_or_default();
    if !selector.matches_json(&labels) {
        let rule = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(&path.child("metadata.labels"), labels, rule));
    }
}

/// Checks that a controller's pods restart always and have no deadline.
pub(crate) fn validate_lasting(errors: &mut ErrorList, template: &Value, controller: &str, path: &Path) {
    let spec = &template["spec"];
    let policy = text(spec, "restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(&path.child("spec.restartPolicy"), policy, &["Always"]));
    }
    if has(spec, "activeDeadlineSeconds") {
        let rule = format!("activeDeadlineSeconds in {controller} is not Supported");
        errors.push(FieldError::forbidden(&path.child("spec.activeDeadlineSeconds"), rule));
    }
}

/// Keys of the labels, for messages and matches.
fn names_of<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    items(list, key).iter().map(|item| text(item, "name")).collect()
}

/// The volume kind of a volume: its only field besides the name.
fn volume_kinds(volume: &Value) -> Vec<&str> {
    volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "name" && !value.is_null())
        .map(|(key, _)| key)
        .collect()
}

/// Resource names of a requirement list.
/// Checks the `limits` and `requests` of an object that is no container.
pub(crate) fn container_resources(errors: &mut ErrorList, resources: &Value, path: &Path) {
    resources::validate(errors, resources, path, &[]);
}

fn resource_names<'a>(container: &'a Value, list: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    entries(&container["resources"], list)
}

#[cfg(test)]
mod tests;
