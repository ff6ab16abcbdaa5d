//! Validation of volumes.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use super::{env, sources, volume_kinds};
use crate::value::{has, int, items, text};

const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes of a pod spec; the names of those that are fine, which mounts may use.
pub(super) fn validate<'a>(errors: &mut ErrorList, spec: &'a Value, path: &Path) -> Vec<&'a str> {
    let mut valid: Vec<&str> = Vec::new();
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        let at = path.index(i);
        let mut found = ErrorList::new();
        source(&mut found, volume, &at);
        let name = text(volume, "name");
        if name.is_empty() {
            found.push(FieldError::required(&at.child("name"), ""));
        } else {
            found.invalid_each(&at.child("name"), name, names::dns1123_label(name));
        }
        if valid.contains(&name) {
            found.push(FieldError::duplicate(&at.child("name"), name));
        }
        if found.is_empty() {
            valid.push(name);
        }
        errors.extend(found);
    }
    valid
}

fn source(errors: &mut ErrorList, volume: &Value, at: &Path) {
    let kinds = volume_kinds(volume);
    if kinds.is_empty() {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
    for (i, kind) in kinds.into_iter().enumerate() {
        let (value, at) = (&volume[kind], at.child(kind));
        if i > 0 {
            errors.push(FieldError::forbidden(&at, "may not specify more than 1 volume type"));
            continue;
        }
        match kind {
            "emptyDir" => empty_dir(errors, value, &at),
            "secret" => {
                required(errors, value, "secretName", &at);
                files(errors, value, &at);
            }
            "configMap" => {
                required(errors, value, "name", &at);
                files(errors, value, &at);
            }
            "downwardAPI" => {
                mode(errors, value, "defaultMode", &at);
                env::downward_files(errors, value, &at);
            }
            "projected" => projected(errors, value, &at),
            "persistentVolumeClaim" => required(errors, value, "claimName", &at),
            "ephemeral" => sources::ephemeral(errors, value, &at),
            "gitRepo" => sources::git(errors, value, &at),
            other => sources::source(errors, other, value, &at, false),
        }
    }
}

fn required(errors: &mut ErrorList, object: &Value, key: &str, at: &Path) {
    if text(object, key).is_empty() {
        errors.push(FieldError::required(&at.child(key), ""));
    }
}

fn empty_dir(errors: &mut ErrorList, value: &Value, at: &Path) {
    if Quantity::from_json(&value["sizeLimit"]).is_ok_and(Quantity::is_negative) {
        let rule = "SizeLimit field must be a valid resource quantity";
        errors.push(FieldError::forbidden(&at.child("sizeLimit"), rule));
    }
    match text(value, "medium") {
        "" | "Memory" | "HugePages" => {}
        medium if medium.starts_with("HugePages-") => {}
        other => {
            errors.push(FieldError::not_supported(&at.child("medium"), other, &["", "HugePages", "Memory"]));
        }
    }
}

pub(super) fn host_path(errors: &mut ErrorList, value: &Value, at: &Path) {
    let path = text(value, "path");
    if path.is_empty() {
        errors.push(FieldError::required(&at.child("path"), ""));
        return;
    }
    no_backsteps(errors, path, &at.child("path"));
    let kind = text(value, "type");
    if !HOST_PATH_TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(&at.child("type"), kind, HOST_PATH_TYPES));
    }
}

pub(super) fn no_backsteps(errors: &mut ErrorList, path: &str, at: &Path) {
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

/// A path that stays below where it starts; an empty one is fine.
pub(super) fn descending_path(errors: &mut ErrorList, path: &str, at: &Path) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    no_backsteps(errors, path, at);
}

/// The path of a file in a volume: relative, and not one the kubelet keeps for itself.
pub(super) fn file_path(errors: &mut ErrorList, path: &str, at: &Path) {
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
    }
    descending_path(errors, path, at);
    if path.starts_with("..") && !path.starts_with("../") {
        errors.push(FieldError::invalid(at, path, "must not start with '..'"));
    }
}

/// File permissions.
pub(super) fn mode(errors: &mut ErrorList, object: &Value, key: &str, at: &Path) {
    if let Some(mode) = int(object, key).filter(|mode| !(0..=0o777).contains(mode)) {
        let rule = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(&at.child(key), mode, rule));
    }
}

/// `defaultMode` and the keys-to-paths of secrets and config maps.
fn files(errors: &mut ErrorList, value: &Value, at: &Path) {
    mode(errors, value, "defaultMode", at);
    for (i, file) in items(value, "items").iter().enumerate() {
        let at = at.child("items").index(i);
        required(errors, file, "key", &at);
        file_path(errors, text(file, "path"), &at.child("path"));
        mode(errors, file, "mode", &at);
    }
}

fn projected(errors: &mut ErrorList, value: &Value, volume: &Path) {
    mode(errors, value, "defaultMode", volume);
    let mut taken: Vec<&str> = Vec::new();
    for (i, projection) in items(value, "sources").iter().enumerate() {
        let at = volume.child("sources").index(i);
        let kinds = env::projection_sources(projection);
        for kind in &kinds {
            let (source, at) = (&projection[*kind], at.child(kind));
            match *kind {
                "secret" | "configMap" => {
                    required(errors, source, "name", &at);
                    files(errors, source, &at);
                }
                "downwardAPI" => env::downward_files(errors, source, &at),
                "serviceAccountToken" => token(errors, source, &at, volume),
                _ if has(source, "path") => file_path(errors, text(source, "path"), &at.child("path")),
                _ => {}
            }
            for path in items(source, "items").iter().map(|file| text(file, "path")).filter(|p| !p.is_empty())
            {
                if taken.contains(&path) {
                    let shown = if *kind == "downwardAPI" { path } else { text(source, "name") };
                    errors.push(FieldError::invalid(volume, shown, "conflicting duplicate paths"));
                }
                taken.push(path);
            }
        }
        if kinds.len() > 1 {
            let rule = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(&at, rule));
        }
    }
}

/// A token's path is reported at the volume.
fn token(errors: &mut ErrorList, token: &Value, at: &Path, volume: &Path) {
    let seconds = int(token, "expirationSeconds").unwrap_or(3600);
    if seconds < 600 {
        let rule = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid(&at.child("expirationSeconds"), seconds, rule));
    } else if seconds > 1 << 32 {
        let rule = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid(&at.child("expirationSeconds"), seconds, rule));
    }
    file_path(errors, text(token, "path"), &volume.child("path"));
}
