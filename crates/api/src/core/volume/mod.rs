//! PersistentVolume and PersistentVolumeClaim.

mod validate;

use coxswain_meta::json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod::sources;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, int_or_string, name, or, wide};
use crate::value::{child, has, items, present, set, set_default, text};

pub(crate) use validate::claim_spec;

pub(crate) const VOLUME: Kind = Kind {
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::status("", "v1", "PersistentVolume")],
    status: true,
    columns: VOLUME_COLUMNS,
    hooks: Hooks {
        default: default_volume,
        prepare_create: |v| {
            let created = v["metadata"]["creationTimestamp"].clone();
            set(v, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": created}));
            protect(v, "kubernetes.io/pv-protection");
        },
        validate: validate::volume,
        validate_update: validate::volume_update,
        row: volume_row,
        ..Hooks::STATUS
    },
    ..kind!("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume")
};
const VOLUME_COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "Size of the volume."),
    column("Access Modes", "How it can be mounted."),
    column("Reclaim Policy", "What happens when its claim goes."),
    column("Status", "Phase of the volume."),
    column("Claim", "Claim it is bound to."),
    column("StorageClass", "Storage class of the volume."),
    column("VolumeAttributesClass", "Attributes class of the volume."),
    column("Reason", "Why it is in its phase."),
    AGE,
    wide("VolumeMode", "Filesystem or block device."),
];

pub(crate) const CLAIM: Kind = Kind {
    short_names: &["pvc"],
    subresources: &[Subresource::status("", "v1", "PersistentVolumeClaim")],
    status: true,
    columns: CLAIM_COLUMNS,
    hooks: Hooks {
        default: default_claim,
        prepare_create: |v| {
            set(v, "status", json!({"phase": "Pending"}));
            protect(v, "kubernetes.io/pvc-protection");
            present(v, "spec").into_iter().for_each(|spec| data_sources(spec, false));
        },
        prepare_update: |new, old| {
            prepare::update_status(new, old);
            let keeps = has(&old["spec"], "dataSource") || has(&old["spec"], "dataSourceRef");
            present(new, "spec").into_iter().for_each(|spec| data_sources(spec, keeps));
        },
        validate: validate::claim,
        validate_update: validate::claim_update,
        row: claim_row,
        ..Hooks::STATUS
    },
    ..kind!("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim")
};
const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    column("Status", "Phase of the claim."),
    column("Volume", "Volume it is bound to."),
    column("Capacity", "Size of the volume."),
    column("Access Modes", "How it can be mounted."),
    column("StorageClass", "Storage class of the claim."),
    column("VolumeAttributesClass", "Attributes class of the claim."),
    AGE,
    wide("VolumeMode", "Filesystem or block device."),
];

fn default_volume(volume: &mut Value) {
    if let Some(status) = child(volume, "status") {
        set_default(status, "phase", "Pending");
    }
    let Some(spec) = child(volume, "spec") else { return };
    set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
    default_mode(spec);
    for kind in ["hostPath", "iscsi", "rbd", "azureDisk", "scaleIO"] {
        if let Some(source) = present(spec, kind) {
            sources::default(kind, source);
        }
    }
}

fn default_mode(spec: &mut Value) {
    if !has(spec, "volumeMode") {
        set(spec, "volumeMode", "Filesystem");
    }
}

/// What is in use is not removed: a finalizer that a controller takes away.
pub(crate) fn protect(object: &mut Value, finalizer: &str) {
    let Some(metadata) = child(object, "metadata") else { return };
    let mut finalizers = items(metadata, "finalizers").to_vec();
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(finalizer.into());
    }
    set(metadata, "finalizers", finalizers);
}

/// The two fields for a claim's data are one: what only the older names is named by both, and what it cannot hold is dropped,
/// unless the claim had data before.
fn data_sources(spec: &mut Value, keeps: bool) {
    let known = |source: &Value| {
        (text(source, "apiGroup").is_empty() && text(source, "kind") == "PersistentVolumeClaim")
            || (text(source, "apiGroup") == "snapshot.storage.k8s.io"
                && text(source, "kind") == "VolumeSnapshot")
    };
    if !keeps && has(spec, "dataSource") && !known(&spec["dataSource"]) {
        crate::value::remove(spec, "dataSource");
    }
    let named = has(&spec["dataSourceRef"], "namespace");
    match (has(spec, "dataSource"), has(spec, "dataSourceRef")) {
        (true, false) => {
            let source = spec["dataSource"].clone();
            set(spec, "dataSourceRef", source);
        }
        (false, true) if !named => {
            let source = spec["dataSourceRef"].clone();
            if known(&source) {
                set(spec, "dataSource", source);
            }
        }
        _ => {}
    }
}

fn default_claim(claim: &mut Value) {
    if let Some(status) = child(claim, "status") {
        set_default(status, "phase", "Pending");
    }
    if let Some(spec) = child(claim, "spec") {
        default_claim_spec(spec);
    }
}

/// Defaults of a claim's spec, also in claim templates.
pub(crate) fn default_claim_spec(spec: &mut Value) {
    default_mode(spec);
}

/// `RWO,ROX,RWX,RWOP`
fn short_modes(object: &Value) -> String {
    let modes = items(object, "accessModes");
    let all = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    all.iter()
        .filter(|(mode, _)| modes.iter().any(|m| m == mode))
        .map(|(_, s)| *s)
        .collect::<Vec<_>>()
        .join(",")
}

fn class(object: &Value) -> &str {
    let beta = text(&object["metadata"]["annotations"], "volume.beta.kubernetes.io/storage-class");
    or(beta, text(&object["spec"], "storageClassName"))
}

fn phase(object: &Value) -> &str {
    if has(&object["metadata"], "deletionTimestamp") {
        "Terminating"
    } else {
        text(&object["status"], "phase")
    }
}

fn volume_row(volume: &Value, now: i64) -> Vec<Value> {
    let spec = &volume["spec"];
    let claim = &spec["claimRef"];
    let claim = match claim.is_object() {
        true => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
        false => String::new(),
    };
    vec![
        name(volume),
        int_or_string(&spec["capacity"]["storage"], "0").into(),
        short_modes(spec).into(),
        text(spec, "persistentVolumeReclaimPolicy").into(),
        phase(volume).into(),
        claim.into(),
        class(volume).into(),
        or(text(spec, "volumeAttributesClassName"), "<unset>").into(),
        text(&volume["status"], "reason").into(),
        age(volume, now),
        or(text(spec, "volumeMode"), "<unset>").into(),
    ]
}

fn claim_row(claim: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let bound = !text(spec, "volumeName").is_empty();
    let capacity = if bound { int_or_string(&status["capacity"]["storage"], "0") } else { String::new() };
    vec![
        name(claim),
        phase(claim).into(),
        text(spec, "volumeName").into(),
        capacity.into(),
        if bound { short_modes(status) } else { String::new() }.into(),
        class(claim).into(),
        or(text(spec, "volumeAttributesClassName"), "<unset>").into(),
        age(claim, now),
        or(text(spec, "volumeMode"), "<unset>").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_keeps_the_source_of_its_data() {
        let other = json!({"spec": {"dataSource": {"kind": "Other", "name": "x"}}});
        let mut new = other.clone();
        (CLAIM.hooks.prepare_update)(&mut new, &json!({"spec": {}}));
        assert_eq!(new["spec"], json!({}));
        let mut new = other.clone();
        (CLAIM.hooks.prepare_update)(&mut new, &other);
        assert_eq!(new["spec"]["dataSource"], other["spec"]["dataSource"]);
    }
}
