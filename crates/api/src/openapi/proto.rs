//! A swagger document in gnostic's protobuf encoding (`openapi.v2.Document`), which older kubectl asks for.
//!
//! Field numbers are those of gnostic-models' OpenAPIv2.proto; only what our documents contain is encoded.

use coxswain_meta::json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, list: &Value) {
        for item in list.as_array().into_iter().flatten() {
            self.text(field, item);
        }
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value == true {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    fn number(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_u64().filter(|number| *number > 0) {
            self.varint(u64::from(field) << 3);
            self.varint(number);
        }
    }

    fn double(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_f64().filter(|number| *number != 0.0) {
            self.varint(u64::from(field) << 3 | 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }

    /// `NamedAny`s for the extensions of an object; JSON is YAML.
    fn extensions(&mut self, field: u32, object: &Map) {
        for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
            self.message(field, named(name, any(value)));
        }
    }
}

/// A value as YAML, which JSON is.
fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.bytes(2, format!("{value}\n").as_bytes());
    out
}

/// `{name = 1, value = 2}`
fn named(name: &str, value: Message) -> Message {
    let mut out = Message::default();
    out.bytes(1, name.as_bytes());
    out.message(2, value);
    out
}

/// A message with one sub-message, as the `oneof` wrappers are.
fn wrap(field: u32, inner: Message) -> Message {
    let mut out = Message::default();
    out.message(field, inner);
    out
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Encodes a swagger document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.message(2, info);
    let mut paths = Message::default();
    for (path, item) in entries(&document["paths"]) {
        paths.message(2, named(path, path_item(item)));
    }
    out.message(8, paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(&document["definitions"]) {
        definitions.message(1, named(name, schema(definition)));
    }
    out.message(9, definitions);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(Value::Object(value)) = item.get(method) {
            out.message(field, operation(value));
        }
    }
    for value in item["parameters"].as_array().into_iter().flatten() {
        out.message(9, wrap(1, parameter(value)));
    }
    out
}

fn operation(operation: &Map) -> Message {
    let mut out = Message::default();
    let get = |key: &str| operation.get(key).unwrap_or(&Value::Null);
    out.texts(1, get("tags"));
    out.text(3, get("description"));
    out.text(5, get("operationId"));
    out.texts(6, get("produces"));
    out.texts(7, get("consumes"));
    for value in get("parameters").as_array().into_iter().flatten() {
        out.message(8, wrap(1, parameter(value)));
    }
    let mut responses = Message::default();
    for (code, value) in entries(get("responses")) {
        let mut response = Message::default();
        response.text(1, &value["description"]);
        if value["schema"].is_object() {
            response.message(2, wrap(1, schema(&value["schema"])));
        }
        responses.message(1, named(code, wrap(1, response)));
    }
    out.message(9, responses);
    out.extensions(13, operation);
    out
}

/// A `Parameter`: in the body, the query or the path.
fn parameter(value: &Value) -> Message {
    let mut out = Message::default();
    match value["in"].as_str() {
        Some("body") => {
            out.text(2, &value["name"]);
            out.text(3, &value["in"]);
            out.flag(4, &value["required"]);
            out.message(5, schema(&value["schema"]));
            wrap(1, out)
        }
        place => {
            let path = place == Some("path");
            out.flag(1, &value["required"]);
            out.text(2, &value["in"]);
            out.text(3, &value["description"]);
            out.text(4, &value["name"]);
            out.text(if path { 5 } else { 6 }, &value["type"]);
            out.flag(if path { 19 } else { 20 }, &value["uniqueItems"]);
            wrap(2, wrap(if path { 4 } else { 3 }, out))
        }
    }
}

fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(3, &schema["title"]);
    out.text(4, &schema["description"]);
    if let Some(default) = schema.get("default") {
        out.message(5, any(default));
    }
    for (field, name) in [(6, "multipleOf"), (7, "maximum"), (9, "minimum")] {
        out.double(field, &schema[name]);
    }
    out.flag(8, &schema["exclusiveMaximum"]);
    out.flag(10, &schema["exclusiveMinimum"]);
    for (field, name) in [(11, "maxLength"), (12, "minLength"), (14, "maxItems"), (15, "minItems")] {
        out.number(field, &schema[name]);
    }
    out.text(13, &schema["pattern"]);
    for (field, name) in [(17, "maxProperties"), (18, "minProperties")] {
        out.number(field, &schema[name]);
    }
    out.texts(19, &schema["required"]);
    for value in schema["enum"].as_array().into_iter().flatten() {
        out.message(20, any(value));
    }
    if schema["additionalProperties"].is_boolean() {
        let mut open = Message::default();
        open.flag(2, &schema["additionalProperties"]);
        out.message(21, open);
    }
    if schema["additionalProperties"].is_object() {
        out.message(21, wrap(1, self::schema(&schema["additionalProperties"])));
    }
    if schema["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &schema["type"]);
        out.message(22, kind);
    }
    if schema["items"].is_object() {
        out.message(23, wrap(1, self::schema(&schema["items"])));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::default();
        for (name, property) in entries(&schema["properties"]) {
            properties.message(1, named(name, self::schema(property)));
        }
        out.message(25, properties);
    }
    if let Value::Object(map) = schema {
        out.extensions(31, map);
    }
    out
}
