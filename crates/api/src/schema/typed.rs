//! Wrong types in the words of what reads a document that is no text any more: apply's typed values, and the conversion of a
//! document that a strategic merge patch has changed.

use coxswain_meta::golang::{expected_list, expected_map, expected_scalar, type_of as go_type};
use coxswain_meta::json::Value;

use super::{Field, ListType, Type, TypeRef};

/// Errors of types in one message, as apply says them; none where there are none.
pub fn in_one(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [only] => Some(only.clone()),
        many => Some(format!("errors:\n  {}", many.join("\n  "))),
    }
}

/// What apply finds in a configuration that its schema does not allow, such as `.spec.replicas: expected numeric …`.
pub fn typed_errors(configuration: &Value, type_ref: TypeRef) -> Vec<String> {
    let mut out = Vec::new();
    typed(configuration, &Type::Ref(type_ref), None, "", &mut out);
    out
}

fn typed(value: &Value, ty: &Type, field: Option<&Field>, at: &str, out: &mut Vec<String>) {
    let mut wrong = |what: String| out.push(format!("{at}: {what}"));
    match (ty, value) {
        (_, Value::Null) | (Type::Any | Type::Either(..), _) => {}
        (Type::Ref(target), Value::Object(map)) => {
            for (name, inner) in map {
                let at = format!("{at}.{name}");
                match target.get(name) {
                    Some(field) => typed(inner, &field.ty, Some(field), &at, out),
                    // Nobody looks any further.
                    None => {
                        out.push(format!("{at}: field not declared in schema"));
                        break;
                    }
                }
            }
        }
        (Type::Map(inner), Value::Object(map)) => {
            map.iter().for_each(|(key, item)| typed(item, inner, None, &format!("{at}.{key}"), out));
        }
        (Type::List(inner), Value::Array(items)) => typed_items(items, inner, field, at, out),
        (Type::Ref(_) | Type::Map(_), _) => wrong(expected_map(value)),
        (Type::List(_), _) => wrong(expected_list(value)),
        (ty, _) => {
            let kind = match ty {
                Type::String | Type::Bytes => "string",
                Type::Int32 | Type::Int64 | Type::Number => "number",
                Type::Bool => "boolean",
                _ => "any scalar",
            };
            expected_scalar(kind, value).into_iter().for_each(wrong);
        }
    }
}

fn typed_items(items: &[Value], inner: &Type, field: Option<&Field>, at: &str, out: &mut Vec<String>) {
    let list = field.map_or(ListType::Atomic, |field| field.list_type);
    let keys = || field.map_or("", |field| field.map_keys).split(',').filter(|key| !key.is_empty());
    let mut seen: Vec<String> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let place = match list {
            ListType::Map if item.is_object() => {
                let key = |key: &str| {
                    Some(format!("{key}={}", item.get(key).cloned().or_else(|| unset(inner, key))?))
                };
                format!("[{}]", keys().filter_map(key).collect::<Vec<_>>().join(","))
            }
            ListType::Map => {
                out.push(format!(
                    "{at}: element {i}: associative list with keys may not have non-map elements"
                ));
                return;
            }
            ListType::Set => format!("[={item}]"),
            ListType::Atomic => format!("[{i}]"),
        };
        if list != ListType::Atomic && place != "[]" && seen.contains(&place) {
            out.push(format!("{at}: duplicate entries for key {place}"));
        }
        typed(item, inner, None, &format!("{at}{place}"), out);
        seen.push(place);
    }
}

/// What an item has as its key where it says nothing.
fn unset(ty: &Type, key: &str) -> Option<Value> {
    let Type::Ref(target) = ty else { return None };
    match target.get(key)?.ty {
        _ if key == "protocol" => Some("TCP".into()),
        Type::String => Some("".into()),
        Type::Int32 | Type::Int64 => Some(0.into()),
        _ => None,
    }
}

/// What is wrong with a value that decodes itself, said of the type in it alone: a schema begins anew below every alternative.
pub fn in_own_words(message: &str) -> String {
    let Some((head, place)) = message.split_once(" into Go struct field ") else { return message.to_owned() };
    let Some((place, ty)) = place.split_once(" of type ") else { return message.to_owned() };
    let Some(path) = place.strip_prefix("JSONSchemaProps.") else {
        return format!("{head} into Go value of type {ty}");
    };
    let path = path.strip_prefix("spec.versions.schema.openAPIV3Schema.").unwrap_or(path);
    let alternatives = [".items.", ".additionalProperties.", ".additionalItems.", ".dependencies."];
    let start = alternatives.iter().filter_map(|name| path.rfind(name).map(|at| at + name.len())).max();
    format!("{head} into Go struct field JSONSchemaProps.{} of type {ty}", &path[start.unwrap_or(0)..])
}

/// What the conversion of a document into Go's types stumbles over first.
pub fn conversion_error(object: &Value, type_ref: TypeRef) -> Option<String> {
    converted(object, &Type::Ref(type_ref), None)
}

fn converted(value: &Value, ty: &Type, field: Option<&Field>) -> Option<String> {
    let kind = go_kind(value);
    match (ty, value) {
        (_, Value::Null) | (Type::Any | Type::Either(..), _) => None,
        (Type::Ref(target), Value::Object(map)) => target
            .declared()
            .filter_map(|field| map.get(field.name).map(|value| (field, value)))
            .find_map(|(field, value)| converted(value, &field.ty, Some(field))),
        (Type::Ref(_), _) => Some(format!("cannot restore struct from: {kind}")),
        (Type::Map(inner), Value::Object(map)) => map.values().find_map(|item| converted(item, inner, None)),
        (Type::Map(_), _) => Some(format!("cannot restore map from {kind}")),
        (Type::List(inner), Value::Array(items)) => {
            items.iter().find_map(|item| converted(item, inner, None))
        }
        (Type::Bytes, Value::String(text)) => {
            crate::base64::check(text).err().map(|why| format!("error decoding from json: {why}"))
        }
        (Type::List(_) | Type::Bytes, _) => Some(format!("cannot restore slice from {kind}")),
        (Type::String | Type::Int32 | Type::Int64 | Type::Number | Type::Bool, _) => {
            let (want, takes) = match ty {
                Type::String => ("string", value.is_string()),
                Type::Bool => ("bool", value.is_boolean()),
                Type::Number => ("float64", value.is_number()),
                Type::Int32 => ("int32", whole(value)),
                _ => ("int64", whole(value)),
            };
            // Go converts numbers to numbers, and integers to text.
            let converts = match ty {
                Type::String => value.is_i64(),
                Type::Bool => false,
                _ => value.is_number(),
            };
            let named = field.and_then(|field| field.go_type).unwrap_or(want);
            match (takes, converts) {
                (true, _) => None,
                (false, true) => Some(format!("cannot convert {kind} to {named}")),
                (false, false) => Some(format!("unrecognized type: {want}")),
            }
        }
        // What decodes itself says so itself.
        _ => None,
    }
}

/// Makes integers fit as that conversion does: what is too large for 32 bits loses the bits above them.
pub fn narrow(object: &mut Value, type_ref: TypeRef) {
    narrow_value(object, &Type::Ref(type_ref));
}

fn narrow_value(value: &mut Value, ty: &Type) {
    match (ty, value) {
        (Type::Ref(target), Value::Object(map)) => {
            for field in target.declared() {
                if let Some(value) = map.get_mut(field.name) {
                    narrow_value(value, &field.ty);
                }
            }
        }
        (Type::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|item| narrow_value(item, inner));
        }
        (Type::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| narrow_value(item, inner));
        }
        (Type::Int32, value) => {
            if let Some(wide) = value.as_i64().filter(|wide| i32::try_from(*wide).is_err()) {
                *value = (wide as i32).into();
            }
        }
        _ => {}
    }
}

fn whole(value: &Value) -> bool {
    value.is_i64() || value.as_f64().is_some_and(|n| n.trunc() == n)
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "map",
        Value::Array(_) => "slice",
        other => go_type(other),
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::super::by_gvk;
    use super::*;

    #[test]
    fn wrong_types_are_worded_as_upstream_words_them() {
        let deployment = by_gvk("apps", "v1", "Deployment").unwrap();
        let containers = |c: Value| json!({"spec": {"template": {"spec": {"containers": [c]}}}});
        for (configuration, error) in [
            (json!({"spec": {"selector": []}}), ".spec.selector: expected map, got &{[]}"),
            (json!({"spec": {"paused": 7}}), ".spec.paused: expected boolean, got &{7}"),
            (
                json!({"spec": {"replicas": "x"}}),
                ".spec.replicas: expected numeric (int or float), got string",
            ),
            (json!({"metadata": {"bogus": 1}}), ".metadata.bogus: field not declared in schema"),
            (
                containers(json!({"name": "c", "args": ["a", 7]})),
                ".spec.template.spec.containers[name=\"c\"].args[1]: expected string, got &value.valueUnstructured{Value:7}",
            ),
        ] {
            assert_eq!(typed_errors(&configuration, deployment), [error]);
        }
        for (patched, error) in [
            (json!({"metadata": {"annotations": 7}}), "cannot restore map from int64"),
            (json!({"spec": {"selector": "x"}}), "cannot restore struct from: string"),
            (containers(json!({"name": 7})), "cannot convert int64 to string"),
            (containers(json!({"name": {}})), "unrecognized type: string"),
            (json!({"spec": {"replicas": 1.5}}), "cannot convert float64 to int32"),
        ] {
            assert_eq!(conversion_error(&patched, deployment).as_deref(), Some(error));
        }
    }
}
