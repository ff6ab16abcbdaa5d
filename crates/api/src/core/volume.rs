//! PersistentVolume and PersistentVolumeClaim.

use coxswain_meta::{ErrorList, FieldError, Path, Quantity};
use serde_json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::prepare;
use crate::table::{AGE, NAME, age, column, int_or_string, name, or, wide};
use crate::value::{child, has, items, present, set, set_default, text};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(crate) const VOLUME: Kind = Kind {
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::status("", "v1", "PersistentVolume")],
    status: true,
    columns: VOLUME_COLUMNS,
    hooks: Hooks {
        default: default_volume,
        prepare_create: |v| set(v, "status", json!({"phase": "Pending"})),
        validate: validate_volume,
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
        prepare_create: |v| set(v, "status", json!({"phase": "Pending"})),
        prepare_update: prepare::update_status,
        validate: validate_claim,
        validate_update: validate_claim_update,
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
    set_default(spec, "volumeMode", "Filesystem");
    if let Some(path) = present(spec, "hostPath") {
        set_default(path, "type", "");
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
    set_default(spec, "volumeMode", "Filesystem");
}

fn access_modes(errors: &mut ErrorList, spec: &Value, rule: &str, path: &Path) {
    let modes = items(spec, "accessModes");
    let at = path.child("accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(&at, rule));
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|m| !ACCESS_MODES.contains(m)) {
        errors.push(FieldError::not_supported(&at, mode, ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let rule = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&at, rule));
    }
}

fn volume_mode(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (mode, known) = (text(spec, "volumeMode"), &["Block", "Filesystem"]);
    if !mode.is_empty() && !known.contains(&mode) {
        errors.push(FieldError::not_supported(&path.child("volumeMode"), mode, known));
    }
}

fn validate_volume(volume: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    access_modes(&mut errors, spec, "", &path);
    if !has(&spec["capacity"], "storage") {
        errors.push(FieldError::required(&path.child("capacity"), ""));
    }
    let (policy, known) = (text(spec, "persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
    if !known.contains(&policy) {
        errors.push(FieldError::not_supported(&path.child("persistentVolumeReclaimPolicy"), policy, known));
    }
    volume_mode(&mut errors, spec, &path);
    errors
}

fn validate_claim(claim: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&claim["spec"], Path::new("spec"));
    access_modes(&mut errors, spec, "at least 1 access mode is required", &path);
    crate::objectmeta::label_selector(&mut errors, &spec["selector"], &path.child("selector"));
    let storage = &spec["resources"]["requests"]["storage"];
    match Quantity::from_json(storage) {
        Err(_) => errors.push(FieldError::required(&path.child("resources").key("storage"), "")),
        Ok(size) if size.is_negative() || size.is_zero() => {
            let at = path.child("resources").key("storage");
            errors.push(FieldError::invalid(&at, size.to_string(), "must be greater than zero"));
        }
        Ok(_) => {}
    }
    volume_mode(&mut errors, spec, &path);
    errors
}

fn validate_claim_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old) = (&new["spec"], &old["spec"]);
    let size = |spec: &Value| {
        Quantity::from_json(&spec["resources"]["requests"]["storage"]).unwrap_or(Quantity::ZERO)
    };
    let mut masked = new.clone();
    for key in ["resources", "volumeAttributesClassName"] {
        set(&mut masked, key, old[key].clone());
    }
    if !has(old, "volumeName") {
        set(&mut masked, "volumeName", old["volumeName"].clone());
    }
    let plain = |v: &Value| {
        let fields = v.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
        fields.map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    if plain(&masked) != plain(old) {
        let rule = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden(&Path::new("spec"), rule));
    }
    if size(new) < size(old) {
        let at = Path::new("spec").child("resources.requests.storage");
        errors.push(FieldError::forbidden(&at, "field can not be less than previous value"));
    }
    errors
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
