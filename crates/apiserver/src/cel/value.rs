//! Values of CEL from and to JSON.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use cel_core::{MapKey, OptionalValue, Value as Cel, ValueMap};
use coxswain_meta::json::{Map, Value};
use coxswain_meta::structural::Structural;

/// A value that no schema describes.
pub fn of_json(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(number) => Cel::Int(number),
            None => Cel::Double(number.as_f64().unwrap_or(0.0)),
        },
        Value::String(text) => Cel::String(Arc::from(text.as_str())),
        Value::Array(items) => Cel::List(items.iter().map(of_json).collect()),
        Value::Object(map) => object(map.iter().map(|(name, value)| (name.to_owned(), of_json(value)))),
        Value::Raw(raw) => of_json(&raw.read()),
    }
}

fn object(members: impl Iterator<Item = (String, Cel)>) -> Cel {
    Cel::Map(Arc::new(ValueMap::from_entries(
        members.map(|(name, value)| (MapKey::String(name.into()), value)),
    )))
}

/// A value of a structural schema: numbers and times by their types, members by names that are CEL's.
pub fn typed(value: &Value, schema: &Structural, whole: bool) -> Cel {
    match value {
        Value::Number(number) if schema.type_ == "number" => Cel::Double(number.as_f64().unwrap_or(0.0)),
        Value::String(text) => match schema.format() {
            "date" => time(&format!("{text}T00:00:00Z")),
            "date-time" => time(text),
            "duration" => cel_core::time::parse_duration(text).map_or_else(|_| of_json(value), Cel::Duration),
            "byte" => match BASE64_STANDARD.decode(text) {
                Ok(bytes) => Cel::Bytes(bytes.into()),
                Err(_) => of_json(value),
            },
            _ => of_json(value),
        },
        Value::Array(items) => match schema.items.as_deref() {
            Some(inner) => Cel::List(items.iter().map(|item| typed(item, inner, false)).collect()),
            None => of_json(value),
        },
        Value::Object(map) => object(map.iter().filter_map(|(name, value)| {
            if whole && matches!(name, "apiVersion" | "kind") {
                return Some((name.to_owned(), of_json(value)));
            }
            if whole && name == "metadata" {
                let names = ["name", "generateName"].into_iter();
                let shown = names.filter_map(|name| Some((name.to_owned(), of_json(value.get(name)?))));
                return Some((name.to_owned(), object(shown)));
            }
            match (schema.properties.get(name), &schema.additional) {
                (Some(inner), _) => Some((escape(name), typed(value, inner, inner.embedded))),
                (None, Some(inner)) => Some((name.to_owned(), typed(value, inner, inner.embedded))),
                // What the schema does not know is not seen.
                (None, None) if schema.properties.is_empty() && schema.preserves_unknown => {
                    Some((name.to_owned(), of_json(value)))
                }
                (None, None) => None,
            }
        })),
        _ => of_json(value),
    }
}

fn time(text: &str) -> Cel {
    cel_core::time::parse_timestamp(text).map_or_else(|_| Cel::String(text.into()), Cel::Timestamp)
}

const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A member's name as expressions write it.
pub fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (taken, written) = match c {
            '_' if rest.starts_with("__") => (2, "__underscores__"),
            '.' => (1, "__dot__"),
            '-' => (1, "__dash__"),
            '/' => (1, "__slash__"),
            _ => (c.len_utf8(), &rest[..c.len_utf8()]),
        };
        out.push_str(written);
        rest = &rest[taken..];
    }
    out
}

/// A value as JSON; none for what JSON cannot hold.
pub fn to_json(value: &Cel) -> Option<Value> {
    Some(match value {
        Cel::Null => Value::Null,
        Cel::Bool(flag) => (*flag).into(),
        Cel::Int(number) => (*number).into(),
        Cel::UInt(number) => (*number).into(),
        Cel::Double(number) => (*number).into(),
        Cel::String(text) => Value::from(&**text),
        Cel::List(items) => Value::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Cel::Map(map) => {
            let members = map.iter().filter_map(|(key, value)| match key {
                MapKey::String(name) => Some((name.to_string(), value)),
                _ => None,
            });
            let members: Map =
                members.map(|(name, value)| Some((name, to_json(value)?))).collect::<Option<_>>()?;
            members.into()
        }
        Cel::Timestamp(time) => cel_core::time::format_timestamp(time).into(),
        Cel::Duration(duration) => cel_core::time::format_duration(duration).into(),
        Cel::Optional(OptionalValue::Some(inner)) => to_json(inner)?,
        _ => return None,
    })
}
