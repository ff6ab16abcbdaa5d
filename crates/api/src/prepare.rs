//! What happens to an object between decoding and validation: fields clients may not set are kept or reset.

use coxswain_meta::json::{Value, json};

use crate::value::{child, int, remove, set};

/// Nothing to prepare at creation.
pub(crate) fn create_plain(_object: &mut Value) {}

/// Nothing to prepare at update.
pub(crate) fn update_plain(_new: &mut Value, _old: &Value) {}

/// A new object has no status.
pub(crate) fn create_status(object: &mut Value) {
    set(object, "status", json!({}));
}

/// A new object has no status and is of generation 1.
pub(crate) fn create_counted(object: &mut Value) {
    create_status(object);
    first_generation(object);
}

/// A new object is of generation 1.
pub(crate) fn first_generation(object: &mut Value) {
    if let Some(metadata) = child(object, "metadata") {
        set(metadata, "generation", 1);
    }
}

/// Status stays.
pub(crate) fn update_status(new: &mut Value, old: &Value) {
    match old.get("status") {
        Some(status) => set(new, "status", status.clone()),
        None => remove(new, "status"),
    }
}

/// Status stays and a changed spec raises the generation.
pub(crate) fn update_counted(new: &mut Value, old: &Value) {
    update_status(new, old);
    raise_generation(new, old);
}

/// The members of an object outside metadata and status.
fn content(object: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let members = object.as_object().into_iter().flatten();
    members.filter(|(key, _)| !matches!(*key, "metadata" | "status" | "kind" | "apiVersion"))
}

/// A change outside metadata and status raises the generation.
pub(crate) fn raise_generation(new: &mut Value, old: &Value) {
    let deleted = |v: &Value| v["metadata"]["deletionTimestamp"].is_string();
    if content(new).ne(content(old)) || (deleted(new) && !deleted(old)) {
        let generation = int(&old["metadata"], "generation").unwrap_or(0) + 1;
        if let Some(metadata) = child(new, "metadata") {
            set(metadata, "generation", generation);
        }
    }
}

/// Metadata the server owns is the old object's where the new one leaves it out, and always for the generation.
pub(crate) fn keep_system_metadata(new: &mut Value, old: &Value) {
    let Some(metadata) = child(new, "metadata") else { return };
    remove(metadata, "selfLink");
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if metadata.get(key).is_none_or(Value::is_null)
            && let Some(value) = old["metadata"].get(key)
        {
            set(metadata, key, value.clone());
        }
    }
    match old["metadata"].get("generation") {
        Some(generation) => set(metadata, "generation", generation.clone()),
        None => remove(metadata, "generation"),
    }
}

/// In a status update only status and metadata (without the system's part) come from the client.
pub(crate) fn status_only(new: &mut Value, old: &Value) {
    let (Value::Object(fresh), Value::Object(stored)) = (&mut *new, old) else { return };
    let ours = |key: &str| !matches!(key, "metadata" | "status" | "kind" | "apiVersion");
    fresh.retain(|key, _| !ours(key));
    fresh.extend(stored.iter().filter(|(key, _)| ours(key)).map(|(k, v)| (k, v.clone())));
    keep_system_metadata(new, old);
    if let Some(metadata) = child(new, "metadata") {
        for key in ["ownerReferences", "finalizers"] {
            match old["metadata"].get(key) {
                Some(value) => set(metadata, key, value.clone()),
                None => remove(metadata, key),
            }
        }
    }
}

/// Identity, for kinds stored as they are served.
pub(crate) fn as_is(_object: &mut Value) {}
