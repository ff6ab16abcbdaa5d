//! Objects as documents and as bytes: metadata accessors, the stored encoding and what the store sees of it.
//!
//! Encoded objects start with `apiVersion`, `kind` and `metadata` in that order, and the resourceVersion is the first
//! member of the metadata: it is written into the bytes without parsing them, and lists cut the type members off.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use coxswain_api::catalogue::KINDS;
use coxswain_store::{Key, Revision, View};
use serde_json::{Map, Value};

use crate::resource::Resource;

const METADATA: &[u8] = b"\"metadata\":{";
const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";

/// What selectors read of an object.
#[derive(Debug, Default)]
pub struct Attributes {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The kind's selectable fields.
    pub fields: Vec<(&'static str, String)>,
    /// The object as a protobuf message, once somebody asked for it, and the revision that is written in it: the last state of
    /// a deleted object shares these attributes, not its revision.
    pub message: OnceLock<(Revision, Bytes)>,
}

/// How the store sees objects.
pub struct ObjectView;

impl View for ObjectView {
    type Attributes = Attributes;

    fn attributes(&self, key: &Key, stored: &[u8]) -> Attributes {
        let object = serde_json::from_slice(stored).unwrap_or_default();
        match storage_kind(&key.collection) {
            Some(kind) => attributes(&kind, &object),
            None => Attributes { labels: labels(&object), ..Attributes::default() },
        }
    }

    fn stamp(&self, stored: &[u8], revision: Revision) -> Bytes {
        let Some(start) = find(stored, METADATA).map(|at| at + METADATA.len()) else {
            return Bytes::copy_from_slice(stored);
        };
        let mut rest = &stored[start..];
        if rest.starts_with(RESOURCE_VERSION) {
            rest = &rest[find(rest, b"\",").map_or(0, |end| end + 2)..];
        }
        let version = revision.to_string();
        let mut bytes =
            BytesMut::with_capacity(start + RESOURCE_VERSION.len() + version.len() + 2 + rest.len());
        bytes.extend_from_slice(&stored[..start]);
        bytes.extend_from_slice(RESOURCE_VERSION);
        bytes.extend_from_slice(version.as_bytes());
        bytes.extend_from_slice(b"\",");
        bytes.extend_from_slice(rest);
        bytes.freeze()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The bytes of an encoded object without `apiVersion` and `kind`, in two parts, as items of a typed list.
pub fn list_item(bytes: &[u8]) -> (&'static [u8], &[u8]) {
    match find(bytes, METADATA) {
        Some(at) => (b"{", &bytes[at..]),
        None => (b"", bytes),
    }
}

/// The collection that keeps the objects of a storage kind.
pub fn collection(storage: (&str, &str)) -> String {
    coxswain_meta::status::qualified(storage.0, storage.1)
}

fn storage_kind(name: &str) -> Option<Resource> {
    let (plural, group) = name.split_once('.').unwrap_or((name, ""));
    KINDS.iter().find(|kind| kind.plural == plural && kind.group == group).map(Resource::BuiltIn)
}

/// The attributes of an object in its storage form.
pub fn attributes(kind: &Resource, object: &Value) -> Attributes {
    Attributes { labels: labels(object), fields: kind.selectable_fields(object), ..Attributes::default() }
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// Encodes an object for the store: without resourceVersion, the type members first.
pub fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let mut bytes = Vec::with_capacity(1024);
    for name in ["apiVersion", "kind"] {
        bytes.extend_from_slice(if bytes.is_empty() { b"{\"" } else { b",\"" });
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b"\":");
        write(&mut bytes, object.get(name).unwrap_or(&Value::Null));
    }
    bytes.extend_from_slice(b",\"metadata\":{");
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    members(&mut bytes, metadata.iter().filter(|(name, _)| *name != "resourceVersion"), true);
    bytes.push(b'}');
    let rest = object.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
    members(&mut bytes, rest, false);
    bytes.push(b'}');
    bytes.into()
}

fn members<'a>(bytes: &mut Vec<u8>, members: impl Iterator<Item = (&'a String, &'a Value)>, mut first: bool) {
    for (name, value) in members {
        if !std::mem::take(&mut first) {
            bytes.push(b',');
        }
        write(bytes, &Value::from(name.as_str()));
        bytes.push(b':');
        write(bytes, value);
    }
}

fn write(bytes: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(bytes, value).expect("a JSON value always encodes to memory");
}

/// Reading and writing the metadata of a document.
pub trait Meta {
    /// `metadata`, or null.
    fn meta(&self) -> &Value;
    /// `metadata`, made where it is missing.
    fn meta_mut(&mut self) -> &mut Map<String, Value>;
    /// A text of the metadata; empty where it is missing.
    fn meta_str(&self, field: &str) -> &str {
        self.meta()[field].as_str().unwrap_or_default()
    }
    /// `metadata.name`.
    fn name(&self) -> &str {
        self.meta_str("name")
    }
    /// `metadata.namespace`.
    fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    /// Whether `metadata.deletionTimestamp` is set.
    fn is_deleting(&self) -> bool {
        self.meta()["deletionTimestamp"].is_string()
    }
    /// `metadata.finalizers`.
    fn finalizers(&self) -> Vec<String> {
        let list = self.meta()["finalizers"].as_array();
        list.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    }
}

impl Meta for Value {
    fn meta(&self) -> &Value {
        &self["metadata"]
    }

    fn meta_mut(&mut self) -> &mut Map<String, Value> {
        if !self.is_object() {
            *self = Value::Object(Map::new());
        }
        let object = self.as_object_mut().expect("made an object above");
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        metadata.as_object_mut().expect("made an object above")
    }
}

/// Now, as metadata writes times.
pub fn now() -> String {
    time_after(0)
}

/// The time in some seconds, as metadata writes times.
pub fn time_after(seconds: i64) -> String {
    let at = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_secs(seconds));
    at.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revision_is_written_into_the_bytes_and_replaced() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "\"metadata\":{"},
            "metadata": {"resourceVersion": "9", "name": "x"}});
        let stored = encode(&object);
        assert_eq!(
            &stored[..],
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"\"metadata\":{"}}"#
        );
        let first = ObjectView.stamp(&stored, Revision(7));
        assert!(first.starts_with(
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"7","name":"x"}"#
        ));
        let second = ObjectView.stamp(&first, Revision(1234));
        assert_eq!(serde_json::from_slice::<Value>(&second).unwrap()["metadata"]["resourceVersion"], "1234");
        assert_eq!(list_item(&stored).1, &stored[38..]);
    }
}
