//! The packed swagger definitions: unpacking, what a document needs of them, and their OpenAPI v3 form.

use std::collections::BTreeMap;
use std::io::Read as _;

use coxswain_meta::json::{Map, Value, json};
use flate2::read::GzDecoder;

/// Written by `cargo xtask schema update`.
pub(super) static PACKED: &[u8] = include_bytes!("../../schema/definitions.json.gz");

/// All definitions by name.
pub(super) fn load() -> Map {
    let mut text = String::new();
    let read = GzDecoder::new(PACKED).read_to_string(&mut text);
    let definitions = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    definitions.expect("the embedded definitions are gzipped JSON, as a test checks")
}

/// The definitions that `roots` name, and all they refer to.
pub(super) fn closure<'a>(all: &Map, roots: impl Iterator<Item = &'a str>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut wanted: Vec<String> = roots.map(str::to_owned).collect();
    while let Some(name) = wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let Some(definition) = all.get(&name) else { continue };
        references(definition, &mut wanted);
        found.insert(name, definition.clone());
    }
    found
}

pub(super) fn references(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| {
                r.strip_prefix("#/definitions/").or_else(|| r.strip_prefix("#/components/schemas/"))
            }) {
                out.push(name.to_owned());
            }
            map.values().for_each(|value| references(value, out));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        _ => {}
    }
}

/// The v3 form of a definition: references wrapped in `allOf` beside their description, unions spelled out.
pub(super) fn to_v3(name: &str, schema: &Value) -> Value {
    if name.ends_with("api.resource.Quantity") {
        return json!({"oneOf": [{"type": "string"}, {"type": "number"}]});
    }
    if name.ends_with("intstr.IntOrString") {
        return json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
    }
    let Value::Object(map) = schema else { return schema.clone() };
    let mut out = Map::new();
    for (key, value) in map {
        match (key, value) {
            ("$ref", Value::String(target)) => {
                let target = target.replace("#/definitions/", "#/components/schemas/");
                out.insert("allOf", json!([{"$ref": target}]));
            }
            ("properties", Value::Object(fields)) => {
                let fields: Map = fields.iter().map(|(k, v)| (k, to_v3("", v))).collect();
                out.insert(key, fields.into());
            }
            ("items" | "additionalProperties", inner) => {
                out.insert(key, to_v3("", inner));
            }
            _ => {
                out.insert(key, value.clone());
            }
        }
    }
    out.into()
}
