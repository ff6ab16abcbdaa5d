//! Wrong types and unknown members of an applied configuration, in the words of what reads it as typed values.

use crate::json::Value;

use super::{ListType, Structural};
use crate::golang::{expected_list, expected_map, expected_scalar};

/// What a whole object has that its schema does not allow, its type members and metadata aside.
pub fn typed_errors(object: &Value, schema: &Structural) -> Vec<String> {
    let mut out = Vec::new();
    value_errors(object, schema, true, "", &mut out);
    out
}

fn value_errors(value: &Value, schema: &Structural, whole: bool, at: &str, out: &mut Vec<String>) {
    let wrong = match (schema.type_.as_str(), value) {
        (_, Value::Null) => None,
        _ if schema.int_or_string => expected_scalar("any scalar", value),
        ("object", Value::Object(map)) => {
            for (name, inner) in map {
                let at = format!("{at}.{name}");
                match schema.member(name) {
                    _ if whole && ["apiVersion", "kind", "metadata"].contains(&name) => {}
                    Some(member) => value_errors(inner, member, member.embedded, &at, out),
                    None if schema.preserves_unknown => {}
                    // Nobody looks any further.
                    None => {
                        out.push(format!("{at}: field not declared in schema"));
                        break;
                    }
                }
            }
            None
        }
        ("array", Value::Array(items)) => {
            items_errors(items, schema, at, out);
            None
        }
        ("object", _) if schema.preserves_unknown => None,
        ("object", other) => Some(expected_map(other)),
        ("array", other) => Some(expected_list(other)),
        (kind, scalar) => expected_scalar(kind, scalar),
    };
    out.extend(wrong.map(|wrong| format!("{at}: {wrong}")));
}

fn items_errors(items: &[Value], schema: &Structural, at: &str, out: &mut Vec<String>) {
    let Some(inner) = &schema.items else { return };
    let mut seen: Vec<String> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let place = match schema.list_type {
            ListType::Map if !item.is_object() => {
                let why = "associative list with keys may not have non-map elements";
                out.push(format!("{at}: element {i}: {why}"));
                return;
            }
            ListType::Map => {
                let default = |key: &String| inner.properties.get(key)?.default.as_ref();
                let key = |key: &String| Some(format!("{key}={}", item.get(key).or_else(|| default(key))?));
                format!("[{}]", schema.map_keys.iter().filter_map(key).collect::<Vec<_>>().join(","))
            }
            ListType::Set => format!("[={item}]"),
            ListType::Atomic => format!("[{i}]"),
        };
        if schema.list_type != ListType::Atomic && seen.contains(&place) {
            out.push(format!("{at}: duplicate entries for key {place}"));
        }
        value_errors(item, inner, inner.embedded, &format!("{at}{place}"), out);
        seen.push(place);
    }
}
