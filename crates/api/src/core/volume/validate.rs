//! Validation of PersistentVolumes and their claims.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use crate::check::{one_of, optional_name, texts};
use crate::core::pod::{self, sources};
use crate::objectmeta::{self, IMMUTABLE};
use crate::schema;
use crate::value::{entries, filled, has, set, text};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const SEVERAL: &str = "may not specify more than 1 volume type";

fn access_modes(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (modes, at) = (texts(spec, "accessModes"), path.child("accessModes"));
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(m)) {
        errors.push(FieldError::not_supported(&at, *mode, ACCESS_MODES));
    }
    let other = modes.iter().any(|m| *m != "ReadWriteOncePod" && ACCESS_MODES.contains(m));
    if other && modes.contains(&"ReadWriteOncePod") {
        let rule = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(&at, rule));
    }
}

pub(super) fn volume(volume: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    if !filled(spec, "accessModes") {
        errors.push(FieldError::required(&path.child("accessModes"), ""));
    }
    access_modes(&mut errors, spec, &path);
    capacity(&mut errors, spec, &path.child("capacity"));
    if !text(spec, "persistentVolumeReclaimPolicy").is_empty() {
        let known = &["Delete", "Recycle", "Retain"];
        one_of(&mut errors, spec, "persistentVolumeReclaimPolicy", known, &path);
    }
    if has(spec, "nodeAffinity") {
        let at = path.child("nodeAffinity.required");
        match has(&spec["nodeAffinity"], "required") {
            true => pod::node_selector(&mut errors, &spec["nodeAffinity"]["required"], &at),
            false => errors.push(FieldError::required(&at, "must specify required node constraints")),
        }
    }
    volume_source(&mut errors, spec, &path);
    optional_name(&mut errors, spec, "storageClassName", names::dns1123_subdomain, &path);
    one_of(&mut errors, spec, "volumeMode", VOLUME_MODES, &path);
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        let at = path.child("volumeAttributesClassName");
        match class {
            "" => errors.push(FieldError::required(&at, "an empty string is disallowed")),
            class => errors.invalid_each(&at, class, names::dns1123_subdomain(class)),
        }
        if !has(spec, "csi") {
            let rule = "has to be specified when using volumeAttributesClassName";
            errors.push(FieldError::required(&path.child("csi"), rule));
        }
    }
    errors
}

fn capacity(errors: &mut ErrorList, spec: &Value, at: &Path) {
    if !filled(spec, "capacity") {
        errors.push(FieldError::required(at, ""));
    }
    if !has(&spec["capacity"], "storage") || entries(spec, "capacity").count() > 1 {
        errors.push(FieldError::not_supported(at, spec["capacity"].clone(), &["storage"]));
    }
    for (name, amount) in entries(spec, "capacity") {
        let Ok(amount) = Quantity::from_json(amount) else { continue };
        if amount.is_negative() {
            let rule = "must be a valid resource quantity";
            errors.push(FieldError::invalid(&at.key(name), amount.value(), rule));
        }
        positive(errors, amount, &at.key(name));
    }
}

fn positive(errors: &mut ErrorList, amount: Quantity, at: &Path) {
    if amount.is_negative() || amount.is_zero() {
        errors.push(FieldError::invalid(at, amount.to_string(), "must be greater than zero"));
    }
}

fn volume_source(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let kinds = sources::present(spec, sources::PERSISTENT);
    for (i, kind) in kinds.iter().enumerate() {
        let shown = match (*kind, i) {
            ("gcePersistentDisk", 0) => "persistentDisk",
            ("cephfs", 1..) => "cephFS",
            (kind, _) => kind,
        };
        let at = path.child(shown);
        // Upstream does not count it.
        if i > 0 && *kind != "flexVolume" {
            errors.push(FieldError::forbidden(&at, SEVERAL));
            continue;
        }
        sources::source(errors, kind, &spec[*kind], &at, true);
        if *kind == "local" && !has(spec, "nodeAffinity") {
            let rule = "Local volume requires node affinity";
            errors.push(FieldError::required(&path.child("nodeAffinity"), rule));
        }
    }
    if kinds.is_empty() {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    if text(&spec["hostPath"], "path") == "/" && text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        let rule = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden(&path.child("persistentVolumeReclaimPolicy"), rule));
    }
}

pub(super) fn volume_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old) = (&new["spec"], &old["spec"]);
    let changed = sources::PERSISTENT.iter().any(|kind| new.get(*kind) != old.get(*kind));
    if changed {
        let at = Path::new("spec").child("persistentvolumesource");
        let diff =
            schema::changes(old, new, "io.k8s.api.core.v1.PersistentVolumeSpec", "PersistentVolumeSource");
        let rule = format!("spec.persistentvolumesource is immutable after creation\n{diff}");
        errors.push(FieldError::forbidden(&at, rule));
    }
    objectmeta::immutable(&mut errors, new, old, "volumeMode", &Path::root());
    if has(old, "nodeAffinity") && new["nodeAffinity"] != old["nodeAffinity"] {
        let shown = match &new["nodeAffinity"] {
            Value::Null => "null".to_owned(),
            affinity => schema::internal(affinity, "io.k8s.api.core.v1.VolumeNodeAffinity"),
        };
        let rule = format!("{shown}: {IMMUTABLE}, except for updating from beta label to GA");
        errors.push(FieldError::invalid_without_value(&Path::new("nodeAffinity"), rule));
    }
    errors
}

pub(super) fn claim(claim: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    claim_spec(&mut errors, &claim["spec"], &Path::new("spec"));
    errors
}

/// Checks a claim's spec, also in templates.
pub(crate) fn claim_spec(errors: &mut ErrorList, spec: &Value, path: &Path) {
    if !filled(spec, "accessModes") {
        let rule = "at least 1 access mode is required";
        errors.push(FieldError::required(&path.child("accessModes"), rule));
    }
    objectmeta::label_selector(errors, &spec["selector"], &path.child("selector"));
    access_modes(errors, spec, path);
    let at = path.child("resources").key("storage");
    match Quantity::from_json(&spec["resources"]["requests"]["storage"]) {
        Ok(amount) => positive(errors, amount, &at),
        Err(_) => errors.push(FieldError::required(&at, "")),
    }
    optional_name(errors, spec, "storageClassName", names::dns1123_subdomain, path);
    one_of(errors, spec, "volumeMode", VOLUME_MODES, path);
    for key in ["dataSource", "dataSourceRef"] {
        if has(spec, key) {
            data_source(errors, &spec[key], &path.child(key));
        }
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    let differ = ["apiGroup", "kind", "name"].iter().any(|key| text(source, key) != text(reference, key));
    let named = !text(reference, "namespace").is_empty();
    if source.is_object() && reference.is_object() && (named || differ) {
        let rule = match named {
            true => "may not be specified when dataSourceRef.namespace is specified",
            false => "must match dataSourceRef",
        };
        errors.push(FieldError::invalid(path, json!({}), rule));
    }
    optional_name(errors, spec, "volumeAttributesClassName", names::dns1123_subdomain, path);
}

fn data_source(errors: &mut ErrorList, source: &Value, at: &Path) {
    for key in ["name", "kind"] {
        if text(source, key).is_empty() {
            errors.push(FieldError::required(&at.child(key), ""));
        }
    }
    let (group, kind) = (text(source, "apiGroup"), text(source, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let rule = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(FieldError::invalid(at, kind, rule));
    }
    optional_name(errors, source, "apiGroup", names::dns1123_subdomain, at);
    optional_name(errors, source, "namespace", names::dns1123_label, at);
}

/// The annotation that named a claim's class before the field did may only move into the field.
fn beta_class(errors: &mut ErrorList, new: &Value, old: &Value) {
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    let annotated = |claim: &Value| claim["metadata"]["annotations"][CLASS].as_str().map(str::to_owned);
    let (now, before) = (annotated(new), annotated(old));
    let (field, field_before) =
        (new["spec"]["storageClassName"].as_str(), old["spec"]["storageClassName"].as_str());
    let moves = before.is_some()
        && field_before.is_none()
        && field == before.as_deref()
        && (now.is_none() || now == before);
    if !moves && now.as_deref().unwrap_or_default() != before.as_deref().unwrap_or_default() {
        let at = Path::new("metadata").child("annotations").child(CLASS);
        errors.push(FieldError::invalid(&at, now.unwrap_or_default(), "field is immutable"));
    }
}

pub(super) fn claim_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let bound = text(&new["status"], "phase") == "Bound";
    beta_class(&mut errors, new, old);
    let status = &old["status"];
    let (new, old) = (&new["spec"], &old["spec"]);
    let size = |object: &Value| Quantity::from_json(object).unwrap_or(Quantity::ZERO);
    let storage = |spec: &Value| size(&spec["resources"]["requests"]["storage"]);
    let mut masked = new.clone();
    if bound {
        if let Some(requests) = masked.pointer_mut("/resources/requests") {
            set(requests, "storage", old["resources"]["requests"]["storage"].clone());
        }
        set(&mut masked, "volumeAttributesClassName", old["volumeAttributesClassName"].clone());
    }
    if text(old, "volumeName").is_empty() {
        set(&mut masked, "volumeName", old["volumeName"].clone());
    }
    fn plain(v: &Value) -> impl Iterator<Item = (&str, &Value)> {
        v.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null())
    }
    let path = Path::new("spec");
    if plain(&masked).ne(plain(old)) {
        let mut before = old.clone();
        if text(old, "volumeName").is_empty() {
            set(&mut before, "volumeName", new["volumeName"].clone());
            set(&mut masked, "volumeName", new["volumeName"].clone());
        }
        let diff = schema::changes(&before, &masked, "io.k8s.api.core.v1.PersistentVolumeClaimSpec", "");
        let rule = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{diff}"
        );
        errors.push(FieldError::forbidden(&path, rule));
    }
    if storage(new) < storage(old) && storage(new) <= size(&status["capacity"]["storage"]) {
        let at = path.child("resources.requests.storage");
        errors.push(FieldError::forbidden(&at, "field can not be less than status.capacity"));
    }
    objectmeta::immutable(&mut errors, new, old, "volumeMode", &Path::root());
    errors
}
