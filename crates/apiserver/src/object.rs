//! Objects as documents and as bytes: metadata accessors, the stored encoding and what the store sees of it.
//!
//! Encoded objects start with `apiVersion`, `kind` and `metadata` in that order, and the resourceVersion is the first
//! member of the metadata: it is written into the bytes without parsing them, and lists cut the type members off.

mod outline;
mod unread;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use coxswain_api::catalogue::KINDS;
use coxswain_meta::json::{Map, Value};
use coxswain_meta::{apply, json};
use coxswain_store::{Key, Object, Revision, Terms, View};

use crate::resource::Resource;
use outline::Outline;
pub use unread::document as unread;

const METADATA: &[u8] = b"\"metadata\":{";
/// The member of the metadata that says who owns what.
pub const MANAGED_FIELDS: &str = "managedFields";
const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";

/// What selectors read of an object, and what its bytes have been derived into.
#[derive(Debug, Default)]
pub struct Attributes {
    /// `metadata.labels`.
    pub labels: Labels,
    /// The kind's selectable fields that are not empty.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// The object as a protobuf message.
    pub message: Derived<Bytes>,
    /// The object as a document, where admission looks it up.
    document: Derived<Arc<Value>>,
}

impl Terms for Attributes {
    fn terms(&self) -> impl Iterator<Item = &str> {
        self.labels.0.lines()
    }

    fn superseded(&self) {
        self.message.forget();
        self.document.forget();
    }
}

/// Labels as one text, a line of `key=value` each: neither part has the separators in it, and ten thousand objects with
/// four labels cost ten thousand small blocks of memory, not ninety thousand.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<str>);

impl Labels {
    /// The labels of an object.
    fn of(object: &Value) -> Self {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
        let mut text = String::new();
        for (key, value) in labels.filter_map(|(key, value)| Some((key, value.as_str()?))) {
            [key, "=", value, "\n"].iter().for_each(|part| text.push_str(part));
        }
        Self(text.into())
    }

    /// What objects with a label are found by.
    pub fn term(key: &str, value: &str) -> String {
        format!("{key}={value}")
    }

    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Something that an object's bytes are derived into once, when somebody asks for it first. It is remembered with the
/// revision that is written in it: the last state of a deleted object shares the attributes, not the revision.
#[derive(Debug)]
pub struct Derived<T>(Mutex<Option<(Revision, T)>>);

impl<T> Default for Derived<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Derived<T> {
    /// What is remembered for the revision, or else what `derive` makes.
    pub fn at(&self, revision: Revision, derive: impl Fn() -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, remembered) = known.get_or_insert_with(|| (revision, derive()));
        if *of == revision { remembered.clone() } else { derive() }
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A stored object as a document that is parsed once. For the few objects that every write looks up: a document takes several
/// times the memory of its bytes.
pub fn looked_up(object: &Object<Attributes>) -> Arc<Value> {
    let parse = || Arc::new(serde_json::from_slice(&object.bytes).unwrap_or_default());
    object.attributes.document.at(object.revision, parse)
}

/// How the store sees objects.
pub struct ObjectView;

impl View for ObjectView {
    type Attributes = Attributes;

    fn attributes(&self, key: &Key, stored: &[u8]) -> Attributes {
        let object = Outline::of(stored);
        match storage_kind(&key.collection) {
            Some(kind) => attributes(&kind, &object),
            None => Attributes { labels: Labels::of(&object), ..Attributes::default() },
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
    memchr::memmem::find(haystack, needle)
}

/// How an encoded object begins: with its types, which the items of a typed list do without.
pub fn types(api_version: &str, kind: &str) -> String {
    format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}","#)
}

/// The bytes of an encoded object's metadata.
pub fn metadata(bytes: &Bytes) -> Option<Bytes> {
    let start = find(bytes, METADATA)? + METADATA.len() - 1;
    let (mut at, mut depth) = (start, 0);
    loop {
        at += memchr::memchr3(b'"', b'{', b'}', &bytes[at..])?;
        match bytes[at] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => at = end_of_text(bytes, at + 1)?,
        }
        at += 1;
        if depth == 0 {
            return Some(bytes.slice(start..at));
        }
    }
}

/// Where the quote is that ends a text.
fn end_of_text(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        match bytes[at] {
            b'"' => return Some(at),
            _ => at += 2,
        }
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
    let fields = kind.selectable_fields(object).into_iter().filter(|(_, value)| !value.is_empty());
    Attributes {
        labels: Labels::of(object),
        fields: fields.map(|(field, value)| (field, value.into())).collect(),
        ..Attributes::default()
    }
}

/// Whether two objects differ in nothing but their resourceVersion and when their managers wrote.
pub fn same_content(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let versionless = |metadata: &Map| metadata.len() - usize::from(metadata.contains_key("resourceVersion"));
    a.len() == b.len()
        && a.iter().zip(b).all(|((name, left), (other, right))| {
            name == other
                && match (name, left, right) {
                    ("metadata", Value::Object(left), Value::Object(right)) => {
                        let mut members = left.iter().filter(|(name, _)| *name != "resourceVersion");
                        versionless(left) == versionless(right)
                            && members.all(|(name, value)| match name {
                                MANAGED_FIELDS => same_managers(value, right.get(name)),
                                _ => right.get(name) == Some(value),
                            })
                    }
                    _ => left == right,
                }
        })
}

/// Makes trees of what is text in a document's managed fields ([`unread`]), before somebody else sees it.
pub fn read_managers(object: &mut Value) {
    if let Some(Value::Array(entries)) =
        object.get_mut("metadata").and_then(|meta| meta.get_mut(MANAGED_FIELDS))
    {
        apply::thaw(entries);
    }
}

fn same_managers(a: &Value, b: Option<&Value>) -> bool {
    match (a, b) {
        (Value::Array(a), Some(Value::Array(b))) => apply::same(a, b),
        (a, b) => Some(a) == b,
    }
}

/// Encodes an object for the store: without resourceVersion, the type members first.
pub fn encode(object: &Value) -> Bytes {
    encode_members(object, |name| name != "resourceVersion")
}

/// Encodes an object in the same order with its resourceVersion.
pub fn encode_versioned(object: &Value) -> Bytes {
    encode_members(object, |_| true)
}

fn encode_members(object: &Value, of_metadata: impl Fn(&str) -> bool) -> Bytes {
    let none = Map::new();
    let object = object.as_object().unwrap_or(&none);
    let mut text = String::with_capacity(4096);
    for (name, before) in [("apiVersion", "{"), ("kind", ",")] {
        text.push_str(before);
        json::write_name(&mut text, name);
        json::write(&mut text, object.get(name).unwrap_or(&Value::Null));
    }
    text.push_str(r#","metadata":"#);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&none);
    let metadata = metadata.iter().filter(|(name, _)| of_metadata(name));
    json::write_members(&mut text, metadata);
    let rest = object.iter().filter(|(name, _)| !matches!(*name, "apiVersion" | "kind" | "metadata"));
    for (name, value) in rest {
        text.push(',');
        json::write_name(&mut text, name);
        json::write(&mut text, value);
    }
    text.push('}');
    text.into()
}

/// Reading and writing the metadata of a document.
pub trait Meta {
    /// `metadata`, or null.
    fn meta(&self) -> &Value;
    /// `metadata`, made where it is missing.
    fn meta_mut(&mut self) -> &mut Map;
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

    fn meta_mut(&mut self) -> &mut Map {
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
    use coxswain_meta::json::json;

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
        assert!(
            stored.starts_with(types("v1", "ConfigMap").as_bytes()) && stored[38..].starts_with(METADATA)
        );
    }

    #[test]
    fn the_metadata_of_an_encoded_object_is_found() {
        let annotations = json!({"a": "}\"{\\", "\\": "\\\\\"}"});
        let meta = json!({"name": "x", "annotations": annotations, "ownerReferences": [{"uid": "1"}]});
        let stored = encode(&json!({"kind": "K", "apiVersion": "v1", "metadata": meta, "spec": {"a": {}}}));
        assert_eq!(serde_json::from_slice::<Value>(&metadata(&stored).unwrap()).unwrap(), meta);
        assert_eq!(metadata(&stored.slice(..stored.len() - 20)), None);
    }

    #[test]
    fn an_outline_has_what_objects_are_selected_by() {
        for kind in KINDS {
            let mut object =
                json!({"metadata": {"name": "x", "labels": {"a": "b", "c": "d"}, "annotations": {"e": "f"}}});
            for field in kind.selectable {
                let (parents, last) = field.rsplit_once('.').unwrap_or(("", field));
                let parents = parents.split('.').filter(|parent| !parent.is_empty());
                let place = parents.fold(&mut object, |place, parent| &mut place[parent]);
                place[last] = json!("value");
            }
            object["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}]);
            object["spec"]["containers"] = json!([{"name": "x"}]);
            let kind = Resource::BuiltIn(kind);
            let (whole, outline) =
                (attributes(&kind, &object), attributes(&kind, &Outline::of(object.to_string().as_bytes())));
            assert_eq!((&whole.labels, &whole.fields), (&outline.labels, &outline.fields), "{}", kind.kind());
            assert_eq!(outline.labels.get("c"), Some("d"));
            assert_eq!(outline.labels.get("x"), None);
        }
    }

    #[test]
    fn only_the_version_and_times_may_differ_in_the_same_content() {
        let managed = |manager: &str, time: &str| json!({"metadata": {"managedFields": [{"manager": manager, "time": time, "fieldsV1": {"f:data": {}}}]}});
        assert!(same_content(&managed("a", "1"), &managed("a", "2")));
        assert!(!same_content(&managed("a", "1"), &managed("b", "1")));
        let object = json!({"kind": "K", "metadata": {"name": "x", "resourceVersion": "1"}});
        let same = json!({"kind": "K", "metadata": {"name": "x"}});
        assert!(same_content(&object, &same) && same_content(&same, &object));
        for other in [
            json!({"kind": "K", "metadata": {"name": "y"}}),
            json!({"kind": "K", "metadata": {"name": "x", "uid": "1"}}),
            json!({"kind": "K", "metadata": {"name": "x"}, "spec": {}}),
        ] {
            assert!(!same_content(&object, &other) && !same_content(&other, &object), "{other}");
        }
    }
}
