//! Validation of what volumes are made of: the sources that pods and PersistentVolumes share.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::volumes;
use crate::check::{one_of, optional_name, required_name};
use crate::storage::driver_name;
use crate::value::{entries, filled, flag, has, int, text};

/// Checks a source by its field name, except those that only pods have; `persistent` is true in a PersistentVolume.
pub(crate) fn source(errors: &mut ErrorList, kind: &str, source: &Value, at: &Path, persistent: bool) {
    match kind {
        "hostPath" => volumes::host_path(errors, source, at),
        "nfs" => {
            require(errors, source, &["server", "path"], at);
            if !text(source, "path").starts_with('/') {
                let rule = "must be an absolute path";
                errors.push(FieldError::invalid(&at.child("path"), text(source, "path"), rule));
            }
        }
        "csi" => csi(errors, source, at, persistent),
        "iscsi" => iscsi(errors, source, at, persistent),
        "fc" => fibre_channel(errors, source, at),
        "azureDisk" => azure_disk(errors, source, at),
        "flexVolume" => flex(errors, source, at),
        "gcePersistentDisk" => disk(errors, source, "pdName", at),
        "awsElasticBlockStore" => disk(errors, source, "volumeID", at),
        "rbd" => {
            monitors(errors, source, at);
            require(errors, source, &["image"], at);
        }
        "image" => {
            require(errors, source, &["reference"], at);
            one_of(errors, source, "pullPolicy", &["Always", "IfNotPresent", "Never"], at);
        }
        "cephfs" => monitors(errors, source, at),
        "glusterfs" => require(errors, source, &["endpoints", "path"], at),
        "azureFile" => require(errors, source, &["secretName", "shareName"], at),
        "cinder" => {
            require(errors, source, &["volumeID"], at);
            if has(source, "secretRef") {
                require(errors, &source["secretRef"], &["name"], &at.child("secretRef"));
            }
        }
        "vsphereVolume" => require(errors, source, &["volumePath"], at),
        "photonPersistentDisk" => require(errors, source, &["pdID"], at),
        "portworxVolume" => require(errors, source, &["volumeID"], at),
        "scaleIO" => require(errors, source, &["gateway", "system", "volumeName"], at),
        "storageos" => {
            require(errors, source, &["volumeName"], at);
            errors.invalid_each(
                &at.child("volumeName"),
                text(source, "volumeName"),
                match text(source, "volumeName") {
                    "" => Vec::new(),
                    name => names::dns1123_label(name),
                },
            );
        }
        "local" => match text(source, "path") {
            "" => require(errors, source, &["path"], at),
            path => volumes::no_backsteps(errors, path, &at.child("path")),
        },
        _ => {}
    }
}

/// Fields that must not be empty.
pub(super) fn require(errors: &mut ErrorList, object: &Value, keys: &[&str], at: &Path) {
    for key in keys.iter().filter(|key| text(object, key).is_empty()) {
        errors.push(FieldError::required(&at.child(key), ""));
    }
}

fn monitors(errors: &mut ErrorList, source: &Value, at: &Path) {
    if !filled(source, "monitors") {
        errors.push(FieldError::required(&at.child("monitors"), ""));
    }
}

fn disk(errors: &mut ErrorList, source: &Value, id: &str, at: &Path) {
    require(errors, source, &[id], at);
    if let Some(n) = int(source, "partition").filter(|n| !(0..=255).contains(n)) {
        errors.push(FieldError::invalid(&at.child("partition"), n, names::range_error(1, 255)));
    }
}

fn csi(errors: &mut ErrorList, source: &Value, at: &Path, persistent: bool) {
    driver_name(errors, text(source, "driver"), &at.child("driver"));
    if !persistent {
        let secret = &source["nodePublishSecretRef"];
        if secret.is_object() {
            require(errors, secret, &["name"], &at.child("nodePublishSecretRef"));
            optional_name(errors, secret, "name", names::dns1123_subdomain, at);
        }
        return;
    }
    require(errors, source, &["volumeHandle"], at);
    let references = [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ];
    for key in references.into_iter().filter(|key| has(source, key)) {
        let at = at.child(key);
        required_name(errors, &source[key], "name", names::dns1123_subdomain, &at);
        required_name(errors, &source[key], "namespace", names::dns1123_label, &at);
    }
}

fn iscsi(errors: &mut ErrorList, source: &Value, at: &Path, persistent: bool) {
    require(errors, source, &["targetPortal", "iqn"], at);
    if !text(source, "iqn").is_empty() {
        qualified(errors, text(source, "iqn"), &at.child("iqn"), persistent);
    }
    lun(errors, source, at);
    let chap = flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession");
    if chap && !has(source, "secretRef") {
        errors.push(FieldError::required(&at.child("secretRef"), ""));
    }
    if let Some(name) = source["initiatorName"].as_str() {
        qualified(errors, name, &at.child("initiatorname"), persistent);
    }
}

fn qualified(errors: &mut ErrorList, name: &str, at: &Path, persistent: bool) {
    if is_qualified(name) {
        return;
    }
    let prefixed = ["iqn", "eui", "naa"].iter().any(|prefix| name.starts_with(prefix));
    let rule = match prefixed || persistent {
        true => "must be valid format",
        false => "must be valid format starting with iqn, eui, or naa",
    };
    errors.push(FieldError::invalid(at, name, rule));
}

fn lun(errors: &mut ErrorList, source: &Value, at: &Path) {
    if let Some(n) = int(source, "lun").filter(|n| !(0..=255).contains(n)) {
        errors.push(FieldError::invalid(&at.child("lun"), n, names::range_error(0, 255)));
    }
}

/// `iqn.YYYY-MM.reversed.domain:name`, `eui.` with 16 or `naa.` with 32 characters.
fn is_qualified(name: &str) -> bool {
    let alphanumeric = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(rest) = name.strip_prefix("iqn.") {
        let Some((head, tail)) = rest.split_once(':') else { return false };
        let Some((date, domain)) = head.split_once('.') else { return false };
        let digits = |range: std::ops::Range<usize>| {
            date.get(range).is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()))
        };
        return date.len() == 7
            && digits(0..4)
            && date.as_bytes()[4] == b'-'
            && digits(5..7)
            && !domain.is_empty()
            && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
            && !tail.is_empty()
            && !tail.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace());
    }
    name.strip_prefix("eui").is_some_and(|rest| alphanumeric(rest.get(1..).unwrap_or_default(), 16))
        || name.strip_prefix("naa").is_some_and(|rest| alphanumeric(rest.get(1..).unwrap_or_default(), 32))
}

fn fibre_channel(errors: &mut ErrorList, source: &Value, at: &Path) {
    let (targets, ids) = (filled(source, "targetWWNs"), filled(source, "wwids"));
    let path = at.child("targetWWNs");
    if !targets && !ids {
        let rule = "must specify either targetWWNs or wwids, but not both";
        errors.push(FieldError::required(&path, rule));
    }
    if targets && ids {
        let rule = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(FieldError::invalid(&path, source["targetWWNs"].clone(), rule));
    }
    if targets && !has(source, "lun") {
        errors.push(FieldError::required(&at.child("lun"), "lun is required if targetWWNs is specified"));
    } else if targets {
        lun(errors, source, at);
    }
}

fn azure_disk(errors: &mut ErrorList, source: &Value, at: &Path) {
    require(errors, source, &["diskName", "diskURI"], at);
    one_of(errors, source, "cachingMode", &["None", "ReadOnly", "ReadWrite"], at);
    one_of(errors, source, "kind", &["Dedicated", "Managed", "Shared"], at);
    let (kind, uri) = (text(source, "kind"), text(source, "diskURI"));
    let at = at.child("diskURI");
    if kind == "Managed" && !uri.starts_with("/subscriptions/") {
        let form =
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        errors.push(FieldError::not_supported(&at, uri, &[form]));
    }
    if has(source, "kind") && kind != "Managed" && !uri.starts_with("https://") {
        let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        errors.push(FieldError::not_supported(&at, uri, &[form]));
    }
}

fn flex(errors: &mut ErrorList, source: &Value, at: &Path) {
    require(errors, source, &["driver"], at);
    for (key, _) in entries(source, "options") {
        let domain = format!(".{}", key.split_once('/').map_or(key, |(domain, _)| domain).to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let rule = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(FieldError::invalid(&at.child("options").key(key), key, rule));
        }
    }
}

/// The source of an ephemeral volume: a claim's spec.
pub(super) fn ephemeral(errors: &mut ErrorList, source: &Value, at: &Path) {
    let at = at.child("volumeClaimTemplate");
    if !has(source, "volumeClaimTemplate") {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    let template = &source["volumeClaimTemplate"];
    crate::objectmeta::labels(errors, &template["metadata"], "labels", &at.child("metadata"));
    crate::objectmeta::annotations(errors, &template["metadata"], &at.child("metadata"));
    crate::core::volume::claim_spec(errors, &template["spec"], &at.child("spec"));
}

/// The source of a volume that is a git repository.
pub(super) fn git(errors: &mut ErrorList, source: &Value, at: &Path) {
    require(errors, source, &["repository"], at);
    volumes::descending_path(errors, text(source, "directory"), &at.child("directory"));
}

/// Whether a PersistentVolume names a source of this kind.
pub(crate) const PERSISTENT: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// Defaults of sources.
pub(crate) fn default(kind: &str, source: &mut Value) {
    let values: &[(&str, &str)] = match kind {
        "hostPath" => &[("type", "")],
        "iscsi" => &[("iscsiInterface", "default")],
        "rbd" => &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")],
        "azureDisk" => &[("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("kind", "Shared")],
        "scaleIO" => &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")],
        _ => &[],
    };
    for (key, value) in values.iter().filter(|(key, _)| !filled(source, key)).copied().collect::<Vec<_>>() {
        crate::value::set(source, key, value);
    }
    if kind == "azureDisk" && !has(source, "readOnly") {
        crate::value::set(source, "readOnly", false);
    }
}

/// Which of several sources of a volume come after the first.
pub(crate) fn present<'a>(object: &'a Value, kinds: &[&'a str]) -> Vec<&'a str> {
    kinds.iter().copied().filter(|kind| has(object, kind)).collect()
}
