//! Namespace.

use coxswain_meta::ErrorList;
use coxswain_meta::json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::objectmeta;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{child, filled, set, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[
        Subresource { name: "finalize", group: "", version: "v1", kind: "Namespace", verbs: &["update"] },
        Subresource::status("", "v1", "Namespace"),
    ],
    status: true,
    columns: COLUMNS,
    selectable: &["status.phase"],
    hooks: Hooks {
        name: objectmeta::label,
        default,
        prepare_create,
        prepare_update,
        selectable: |v| vec![("status.phase", text(&v["status"], "phase").to_owned())],
        row: |v, now| vec![name(v), text(&v["status"], "phase").into(), age(v, now)],
        validate: |_| ErrorList::new(),
        ..Hooks::STATUS
    },
    ..kind!("", "v1", "Namespace", "namespaces", "namespace")
};
const COLUMNS: &[Column] = &[NAME, column("Status", "The status of the namespace."), AGE];

fn default(namespace: &mut Value) {
    let own = crate::value::name(namespace).to_owned();
    if !own.is_empty()
        && let Some(labels) = child(namespace, "metadata").and_then(|m| child(m, "labels"))
    {
        set(labels, "kubernetes.io/metadata.name", own);
    }
    if let Some(status) = child(namespace, "status") {
        set_default(status, "phase", "Active");
    }
}

/// The `kubernetes` finalizer holds the namespace until its content is gone.
fn prepare_create(namespace: &mut Value) {
    set(namespace, "status", json!({"phase": "Active"}));
    if let Some(spec) = child(namespace, "spec") {
        let mut finalizers = spec["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        set(spec, "finalizers", finalizers);
    }
}

/// Finalizers change through the finalize subresource only.
fn prepare_update(new: &mut Value, old: &Value) {
    prepare::update_status(new, old);
    if let Some(spec) = child(new, "spec") {
        if filled(&old["spec"], "finalizers") {
            set(spec, "finalizers", old["spec"]["finalizers"].clone());
        } else {
            crate::value::remove(spec, "finalizers");
        }
    }
}
