//! Rules of metadata that all kinds share.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::value::{entries, int, items, text};

/// Checks a name; `true` when it is the prefix of a generated one.
pub type NameFn = fn(&str, bool) -> Vec<String>;

/// Size limit of all annotations together.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// The message of a changed immutable field.
pub const IMMUTABLE: &str = "field is immutable";

/// Names that are DNS subdomains: most kinds.
pub fn subdomain(name: &str, prefix: bool) -> Vec<String> {
    names::dns1123_subdomain(&masked(name, prefix))
}

/// Names that are DNS labels: namespaces, services (v1.34 relaxed creation to RFC 1123), …
pub fn label(name: &str, prefix: bool) -> Vec<String> {
    names::dns1123_label(&masked(name, prefix))
}

/// Names that are RFC 1035 labels: services.
pub fn label_1035(name: &str, prefix: bool) -> Vec<String> {
    names::dns1035_label(&masked(name, prefix))
}

/// Names that are any path segment: RBAC objects.
pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if prefix { names::path_segment_prefix(name) } else { names::path_segment_name(name) }
}

fn masked(name: &str, prefix: bool) -> String {
    if prefix { names::mask_trailing_dash(name) } else { name.to_owned() }
}

/// Checks the metadata of a new object.
pub fn validate_object_meta(metadata: &Value, namespaced: bool, name_fn: NameFn) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let (name, generate) = (text(metadata, "name"), text(metadata, "generateName"));
    if !generate.is_empty() {
        errors.invalid_each(&path.child("generateName"), generate, name_fn(generate, true));
    }
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
    } else {
        errors.invalid_each(&path.child("name"), name, name_fn(name, false));
    }
    let namespace = text(metadata, "namespace");
    let at = path.child("namespace");
    match (namespaced, namespace) {
        (true, "") => errors.push(FieldError::required(&at, "")),
        (true, _) => errors.invalid_each(&at, namespace, names::dns1123_label(namespace)),
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(&at, "not allowed on this type")),
    }
    common(&mut errors, metadata, &path);
    errors
}

/// What both new and changed metadata must satisfy.
fn common(errors: &mut ErrorList, metadata: &Value, path: &Path) {
    if let Some(generation) = int(metadata, "generation").filter(|g| *g < 0) {
        let rule = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(&path.child("generation"), generation, rule));
    }
    labels(errors, metadata, "labels", path);
    annotations(errors, metadata, path);
    owner_references(errors, items(metadata, "ownerReferences"), &path.child("ownerReferences"));
    finalizers(errors, items(metadata, "finalizers"), &path.child("finalizers"));
}

/// Checks a map of labels in field `key` of `object`.
pub fn labels(errors: &mut ErrorList, object: &Value, key: &str, path: &Path) {
    let at = path.child(key);
    for (name, value) in entries(object, key) {
        let value = value.as_str().unwrap_or_default();
        errors.invalid_each(&at, name, names::qualified_name(name));
        errors.invalid_each(&at, value, names::label_value(value));
    }
}

/// Checks annotations: qualified keys, bounded size.
pub fn annotations(errors: &mut ErrorList, metadata: &Value, path: &Path) {
    let at = path.child("annotations");
    let mut size = 0;
    for (key, value) in entries(metadata, "annotations") {
        errors.invalid_each(&at, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(FieldError::too_long(&at, ANNOTATIONS_MAX_BYTES));
    }
}

fn owner_references(errors: &mut ErrorList, owners: &[Value], path: &Path) {
    let mut controller: Option<&Value> = None;
    for owner in owners {
        let rules = [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ];
        for (key, rule) in rules {
            if text(owner, key).is_empty() {
                errors.push(FieldError::invalid(&path.child(key), "", rule));
            }
        }
        if text(owner, "apiVersion") == "v1" && text(owner, "kind") == "Event" {
            let rule = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, owner.clone(), rule));
        }
        if owner["controller"] == true {
            if let Some(first) = controller {
                let name = |o: &Value| format!("{}/{}", text(o, "kind"), text(o, "name"));
                let rule = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                    name(first),
                    name(owner)
                );
                errors.push(FieldError::invalid(path, owners.to_vec(), rule));
            }
            controller = controller.or(Some(owner));
        }
    }
}

fn finalizers(errors: &mut ErrorList, finalizers: &[Value], path: &Path) {
    for finalizer in finalizers {
        let name = finalizer.as_str().unwrap_or_default();
        errors.invalid_each(path, name, names::qualified_name(name));
    }
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        let rule = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, finalizers.to_vec(), rule));
    }
}

/// Finalizers without a domain are Kubernetes' own; most kinds check that too.
pub fn known_finalizers(metadata: &Value) -> ErrorList {
    let path = Path::new("metadata").child("finalizers");
    let mut errors = ErrorList::new();
    for (i, finalizer) in items(metadata, "finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let at = path.index(i);
        if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name) {
            let rule = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(&at, name, rule));
        }
    }
    errors
}

/// Checks changed metadata against the old.
pub fn validate_object_meta_update(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let deleting = old.get("deletionTimestamp").is_some_and(Value::is_string);
    if deleting {
        let before = items(old, "finalizers");
        let added: Vec<String> = items(new, "finalizers")
            .iter()
            .filter(|f| !before.contains(f))
            .filter_map(|f| f.as_str().map(|f| format!("{f:?}")))
            .collect();
        if !added.is_empty() {
            let rule = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(FieldError::forbidden(&path.child("finalizers"), rule));
        }
    }
    for key in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        immutable(&mut errors, new, old, key, &path);
    }
    if let (Some(now), Some(before)) = (int(new, "generation"), int(old, "generation"))
        && now < before
    {
        errors.push(FieldError::invalid(&path.child("generation"), now, "must not be decremented"));
    }
    common(&mut errors, new, &path);
    errors
}

/// Field `key` must not differ between the two objects at `path`.
pub fn immutable(errors: &mut ErrorList, new: &Value, old: &Value, key: &str, path: &Path) {
    let (now, before) = (new.get(key).unwrap_or(&Value::Null), old.get(key).unwrap_or(&Value::Null));
    if now != before {
        // A text that is gone is empty in Go.
        let mut shown = if now.is_null() && before.is_string() { "".into() } else { now.clone() };
        // So are lists and maps of selectors, and then they are not shown.
        if let Value::Object(map) = &mut shown {
            map.retain(|_, value| !matches!(value, Value::Object(map) if map.is_empty()));
        }
        errors.push(FieldError::invalid(&path.child(key), shown, IMMUTABLE));
    }
}

/// The same for a struct, which upstream shows in its internal form.
pub fn immutable_struct(
    errors: &mut ErrorList,
    new: &Value,
    old: &Value,
    key: &str,
    definition: &str,
    path: &Path,
) {
    if new.get(key) != old.get(key) {
        let shown = match new.get(key) {
            Some(value) => crate::schema::internal(value, definition),
            None => "null".to_owned(),
        };
        errors.push(FieldError::invalid_without_value(&path.child(key), format!("{shown}: {IMMUTABLE}")));
    }
}

/// Checks a `LabelSelector`.
pub fn label_selector(errors: &mut ErrorList, selector: &Value, path: &Path) {
    labels(errors, selector, "matchLabels", path);
    for (i, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                &at.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(
                    &at.child("operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        let key = text(expression, "key");
        errors.invalid_each(&at.child("key"), key, names::qualified_name(key));
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.invalid_each(&at.child("values").index(j), value, names::label_value(value));
        }
    }
}
