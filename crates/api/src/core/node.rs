//! Node.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::texts;
use crate::net;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name, or, wide};
use crate::value::{entries, flag, has, items, present, set, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["no"],
    namespaced: false,
    subresources: &[
        Subresource {
            name: "proxy",
            group: "",
            version: "v1",
            kind: "NodeProxyOptions",
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        Subresource::status("", "v1", "Node"),
    ],
    status: true,
    columns: COLUMNS,
    selectable: &["spec.unschedulable"],
    hooks: Hooks {
        default,
        // A node is created by its kubelet, status included.
        prepare_create: prepare::create_plain,
        validate,
        validate_new,
        validate_update,
        selectable: |v| vec![("spec.unschedulable", flag(&v["spec"], "unschedulable").to_string())],
        row,
        ..Hooks::STATUS
    },
    ..kind!("", "v1", "Node", "nodes", "node")
};
const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "Whether the node is ready and may be scheduled to."),
    column("Roles", "The roles of the node."),
    AGE,
    column("Version", "Version of the kubelet."),
    wide("Internal-IP", "Address within the cluster."),
    wide("External-IP", "Address for the outside."),
    wide("OS-Image", "The operating system."),
    wide("Kernel-Version", "The kernel."),
    wide("Container-Runtime", "The container runtime."),
];

fn default(node: &mut Value) {
    if let Some(spec) = present(node, "spec") {
        // The first block is named in both ways.
        let (one, many) = (text(spec, "podCIDR").to_owned(), items(spec, "podCIDRs").to_vec());
        match many.first() {
            Some(first) if one.is_empty() => set(spec, "podCIDR", first.clone()),
            first if !one.is_empty() && first.is_none_or(|f| *f != one) => set(spec, "podCIDRs", vec![one]),
            _ => {}
        }
    }
    let Some(status) = present(node, "status") else { return };
    if !has(status, "allocatable") && has(status, "capacity") {
        let capacity = status["capacity"].clone();
        set(status, "allocatable", capacity);
    }
}

fn validate(node: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in items(&node["spec"], "taints").iter().enumerate() {
        // Upstream reports taints under the metadata.
        let at = Path::new("metadata").child("taints").index(i);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        errors.invalid_each(&at.child("key"), key, names::qualified_name(key));
        let broken = names::label_value(value);
        if !broken.is_empty() {
            errors.push(FieldError::invalid(&at.child("value"), value, broken.join(";")));
        }
        crate::core::pod::taint_effect(&mut errors, effect, false, &at.child("effect"));
        if seen.contains(&(key, effect)) {
            let shown = crate::schema::internal(taint, "io.k8s.api.core.v1.Taint");
            let rule = "taints must be unique by key and effect pair";
            errors.push(FieldError::duplicate_shown(&at, &format!("{shown}: {rule}")));
        }
        seen.push((key, effect));
    }
    errors
}

fn validate_new(node: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (blocks, at) = (texts(&node["spec"], "podCIDRs"), Path::new("spec").child("podCIDRs"));
    for (i, block) in blocks.iter().enumerate() {
        net::valid_masked_cidr(&mut errors, block, &at.index(i));
    }
    if blocks.len() > 1 && (blocks.len() > 2 || blocks[0].contains(':') == blocks[1].contains(':')) {
        let rule = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(&at, node["spec"]["podCIDRs"].clone(), rule));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old, path) = (&new["spec"], &old["spec"], Path::new("spec"));
    if !items(old, "podCIDRs").is_empty() && items(new, "podCIDRs") != items(old, "podCIDRs") {
        let rule = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("podCIDRs"), rule));
    }
    if !text(old, "providerID").is_empty() && text(new, "providerID") != text(old, "providerID") {
        let rule = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("providerID"), rule));
    }
    errors
}

fn row(node: &Value, now: i64) -> Vec<Value> {
    let ready = items(&node["status"], "conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if flag(&node["spec"], "unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let info = &node["status"]["nodeInfo"];
    let mut kernel = or(text(info, "kernelVersion"), "<unknown>").to_owned();
    if !text(info, "architecture").is_empty() {
        kernel.push_str(&format!(" ({})", text(info, "architecture")));
    }
    vec![
        name(node),
        status.into(),
        or(&roles(node), "<none>").into(),
        age(node, now),
        text(info, "kubeletVersion").into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        or(text(info, "osImage"), "<unknown>").into(),
        kernel.into(),
        or(text(info, "containerRuntimeVersion"), "<unknown>").into(),
    ]
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(&node["metadata"], "labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = items(&node["status"], "addresses").iter().find(|a| a["type"] == kind);
    found.map_or("<none>", |a| text(a, "address"))
}
