//! Short accessors for JSON objects; a missing or wrongly typed field reads as its zero value, as in Go.

use coxswain_meta::json::{Map, Value};

/// The text of a field, empty when absent.
pub(crate) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list field.
pub(crate) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The items of a list field, to change.
pub(crate) fn items_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut [Value] {
    match object.get_mut(key) {
        Some(Value::Array(items)) => items.as_mut_slice(),
        _ => &mut [],
    }
}

/// The entries of a map field, in key order.
pub(crate) fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    object.get(key).and_then(Value::as_object).into_iter().flatten()
}

/// An integer field.
pub(crate) fn int(object: &Value, key: &str) -> Option<i64> {
    object.get(key).and_then(Value::as_i64)
}

/// A boolean field, false when absent.
pub(crate) fn flag(object: &Value, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a field is present and not null.
pub(crate) fn has(object: &Value, key: &str) -> bool {
    object.get(key).is_some_and(|v| !v.is_null())
}

/// Whether a list or map field has something in it.
pub(crate) fn filled(object: &Value, key: &str) -> bool {
    match object.get(key) {
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        _ => false,
    }
}

/// Sets a field that is absent, null or an empty string.
pub(crate) fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        let unset = match map.get(key) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if unset {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// Sets a field.
pub(crate) fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        map.insert(key.to_owned(), value.into());
    }
}

/// Removes a field.
pub(crate) fn remove(object: &mut Value, key: &str) {
    if let Value::Object(map) = object {
        map.remove(key);
    }
}

/// An object field, made when absent; `None` only if the parent or the field is no object.
pub(crate) fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let Value::Object(map) = object else { return None };
    let value = map.entry(key.to_owned()).or_insert_with(|| Value::Object(Map::new()));
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.is_object().then_some(value)
}

/// An object field, when present.
pub(crate) fn present<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|v| v.is_object())
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    text(&object["metadata"], "name")
}
