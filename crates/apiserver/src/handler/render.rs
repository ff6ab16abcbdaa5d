//! Objects and lists in the form that was asked for.

use std::sync::Arc;

use bytes::Bytes;
use coxswain_api::{Kind, schema};
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value, json, to_value};
use coxswain_store::{Object, Revision};
use http::{HeaderMap, Response, StatusCode};

use super::negotiate::{Encoding, Form, Shape};
use crate::authn::epoch_seconds;
use crate::body::Body;
use crate::object::{self, Attributes, Meta};
use crate::resource::Resource;
use crate::respond;

/// The media type of protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An object of the store.
pub type Stored = Arc<Object<Attributes>>;

/// A stored object in the version of a row, as a document.
pub fn document(kind: &Resource, bytes: &[u8]) -> Value {
    in_version(kind, serde_json::from_slice(bytes).unwrap_or_default())
}

/// The same where it is to be changed: what managers own is text in it.
pub fn unread(kind: &Resource, bytes: &[u8]) -> Value {
    in_version(kind, object::unread(bytes))
}

fn in_version(kind: &Resource, mut object: Value) -> Value {
    if let Resource::BuiltIn(row) = kind
        && !is_storage(kind)
    {
        row.from_storage(&mut object);
        object["apiVersion"] = row.api_version().into();
        object["kind"] = row.kind.into();
    }
    object
}

/// Whether a row serves objects as they are stored.
pub fn is_storage(kind: &Resource) -> bool {
    kind.row_of_catalogue().is_none_or(Kind::is_stored)
}

/// A stored object in the version of a row, as bytes; the stored bytes themselves wherever that is the stored version.
pub fn bytes(kind: &Resource, stored: &Bytes) -> Bytes {
    if is_storage(kind) {
        return stored.clone();
    }
    object::encode_versioned(&document(kind, stored))
}

/// What makes protobuf messages of stored objects, as the field that they are everywhere; none where the kind has no such form.
/// A message is derived once where the row is the stored version.
fn messenger(kind: &Resource) -> Option<impl Fn(&Stored) -> Bytes> {
    let (type_ref, as_stored) = (kind.schema()?, is_storage(kind));
    Some(move |object: &Stored| {
        let derive = || Bytes::from(schema::encode_protobuf_field(&document(kind, &object.bytes), type_ref));
        if as_stored { object.attributes.message.at(object.revision, derive) } else { derive() }
    })
}

/// A stored object in protobuf, with its envelope.
pub fn protobuf(kind: &Resource, object: &Stored) -> Option<Bytes> {
    Some(schema::envelope(&kind.api_version(), kind.kind(), &messenger(kind)?(object)).into())
}

/// A document in an encoding; JSON where the kind has no protobuf form.
pub fn value(code: StatusCode, encoding: Encoding, value: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => respond::json(code, value),
        Encoding::Yaml => respond::bytes(code, "application/yaml", schema::write_yaml(value)),
        Encoding::Protobuf => match schema::encode_protobuf(value) {
            Some(bytes) => respond::bytes(code, PROTOBUF, bytes),
            None => respond::json(code, value),
        },
    }
}

/// A failure, in the encoding that the client asked for.
pub fn failure(headers: &HeaderMap, status: &Status) -> Response<Body> {
    let plain = respond::failure(status);
    let encoding = Form::accepted(headers, true).map_or(Encoding::Json, |form| form.encoding);
    let document = to_value(status).ok().filter(|_| encoding != Encoding::Json);
    let Some(document) = document else { return plain };
    let (mut parts, body) = value(plain.status(), encoding, &document).into_parts();
    for (name, header) in plain.headers() {
        parts.headers.entry(name).or_insert_with(|| header.clone());
    }
    Response::from_parts(parts, body)
}

/// One object.
pub fn object(
    kind: &Resource,
    form: Form,
    code: StatusCode,
    stored: &Bytes,
    include: &str,
) -> Response<Body> {
    match form.shape {
        Shape::Object if form.encoding == Encoding::Json => respond::json_bytes(code, bytes(kind, stored)),
        Shape::Object => value(code, form.encoding, &document(kind, stored)),
        Shape::Metadata(_) => value(code, form.encoding, &metadata(kind, &document(kind, stored))),
        Shape::Table => {
            let object = document(kind, stored);
            let version = object.meta_str("resourceVersion").to_owned();
            let table = table(kind, &[object], include, json!({ "resourceVersion": version }), true);
            value(code, form.encoding, &table)
        }
    }
}

/// A list.
pub fn list(
    kind: &Resource,
    form: Form,
    objects: &[Stored],
    list_meta: Value,
    include: &str,
) -> Response<Body> {
    let documents = || objects.iter().map(|stored| document(kind, &stored.bytes));
    match (form.shape, form.encoding) {
        (Shape::Object, Encoding::Json) => {
            respond::parts("application/json", items(kind, objects, &list_meta))
        }
        (Shape::Object, Encoding::Protobuf) => respond::parts(PROTOBUF, messages(kind, objects, &list_meta)),
        (Shape::Object, encoding) => {
            let items: Vec<Value> = documents().collect();
            let (list_kind, version) = (kind.list_kind(), kind.api_version());
            let list =
                json!({ "kind": list_kind, "apiVersion": version, "metadata": list_meta, "items": items });
            value(StatusCode::OK, encoding, &list)
        }
        (Shape::Table, encoding) => {
            let objects: Vec<Value> = documents().collect();
            value(StatusCode::OK, encoding, &table(kind, &objects, include, list_meta, true))
        }
        (Shape::Metadata(_), Encoding::Json) => {
            respond::parts("application/json", outlines(kind, objects, &list_meta))
        }
        (Shape::Metadata(_), encoding) => {
            let items: Vec<Value> = documents().map(|object| metadata(kind, &object)).collect();
            let list = json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": list_meta, "items": items });
            value(StatusCode::OK, encoding, &list)
        }
    }
}

/// A list in JSON out of the stored bytes.
fn items(kind: &Resource, objects: &[Stored], list_meta: &Value) -> Vec<Bytes> {
    let (list_kind, version) = (kind.list_kind(), kind.api_version());
    let head = format!(r#"{{"kind":"{list_kind}","apiVersion":"{version}","metadata":{list_meta},"items":["#);
    let mut parts = Vec::with_capacity(3 * objects.len() + 2);
    parts.push(head.into());
    let as_stored = is_storage(kind);
    // Items of custom resources keep their types.
    let types = kind.row_of_catalogue().map(|row| object::types(&version, row.kind));
    for (at, stored) in objects.iter().enumerate() {
        let bytes = if as_stored { stored.bytes.clone() } else { bytes(kind, &stored.bytes) };
        let types = types.as_ref().filter(|types| bytes.starts_with(types.as_bytes())).map(String::len);
        parts.push(Bytes::from_static(match (at > 0, types.is_some()) {
            (true, true) => b",{",
            (true, false) => b",",
            (false, true) => b"{",
            (false, false) => b"",
        }));
        parts.push(bytes.slice(types.unwrap_or(0)..));
    }
    parts.push(Bytes::from_static(b"]}"));
    parts
}

/// What stands before the metadata of an object of which nothing else is told.
pub const OUTLINE: &str = r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;

/// The metadata of a stored object, as JSON.
pub fn metadata_bytes(kind: &Resource, stored: &Bytes) -> Bytes {
    let derived = || metadata(kind, &document(kind, stored)).meta().to_string().into();
    let whole = kind.row_of_catalogue().is_none_or(|row| row.own_annotations.is_empty());
    object::metadata(stored).filter(|_| whole).unwrap_or_else(derived)
}

/// A list of metadata in JSON out of the stored bytes.
fn outlines(kind: &Resource, objects: &[Stored], list_meta: &Value) -> Vec<Bytes> {
    let head = format!(
        r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{list_meta},"items":["#
    );
    if objects.is_empty() {
        // As upstream writes it, unlike the lists of whole objects.
        return vec![format!("{}null}}", head.trim_end_matches('[')).into()];
    }
    let mut parts = Vec::with_capacity(4 * objects.len() + 2);
    parts.push(head.into());
    for (at, stored) in objects.iter().enumerate() {
        parts.push(Bytes::from_static(if at > 0 { b"}," } else { b"" }));
        parts.push(Bytes::from_static(OUTLINE.as_bytes()));
        parts.push(metadata_bytes(kind, &stored.bytes));
    }
    parts.push(Bytes::from_static(b"}]}"));
    parts
}

/// A list in protobuf out of the objects' messages: every list kind has the metadata as field 1 and the items as field 2.
fn messages(kind: &Resource, objects: &[Stored], list_meta: &Value) -> Vec<Bytes> {
    let meta = schema::by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let meta = meta.map(|t| schema::encode_protobuf_message(list_meta, t)).unwrap_or_default();
    let mut parts = Vec::with_capacity(objects.len() + 4);
    parts.extend([Bytes::new(), schema::field_head(1, meta.len()).into(), meta.into()]);
    parts.extend(messenger(kind).iter().flat_map(|message| objects.iter().map(message)));
    let length = parts.iter().map(Bytes::len).sum();
    let (head, tail) = schema::envelope_of(&kind.api_version(), kind.list_kind(), length);
    parts[0] = head.into();
    parts.push(tail.into());
    parts
}

/// The metadata of a list.
pub fn list_meta(revision: Revision, next: Option<(String, usize)>) -> Value {
    let mut meta = json!({ "resourceVersion": revision.to_string() });
    if let Some((token, remaining)) = next {
        meta["continue"] = token.into();
        if remaining > 0 {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta
}

/// `PartialObjectMetadata` of an object.
pub fn metadata(kind: &Resource, object: &Value) -> Value {
    let mut meta = object.meta().clone();
    for own in kind.row_of_catalogue().map_or(&[][..], |row| row.own_annotations) {
        let annotations = meta.get_mut("annotations").and_then(Value::as_object_mut);
        if annotations.is_some_and(|all| all.remove(own).is_some() && all.is_empty()) {
            meta.as_object_mut().map(|meta| meta.remove("annotations"));
        }
    }
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta })
}

/// A `Table`; `include` is the `includeObject` parameter.
pub fn table(kind: &Resource, objects: &[Value], include: &str, list_meta: Value, headings: bool) -> Value {
    let now = epoch_seconds();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = json!({ "cells": kind.row(object, now) });
            match include {
                "None" => {}
                "Object" => row["object"] = object.clone(),
                _ => row["object"] = metadata(kind, object),
            }
            row
        })
        .collect();
    let columns = if headings { kind.column_definitions() } else { Vec::new() };
    let mut table = Map::new();
    table.insert("kind", "Table".into());
    table.insert("apiVersion", "meta.k8s.io/v1".into());
    table.insert("metadata", list_meta);
    table.insert("columnDefinitions", columns.into());
    // The printer of kinds that have none of their own makes no list of no rows.
    let generic = || kind.column_definitions().iter().any(|column| column["name"] == "Created At");
    let none = rows.is_empty() && generic();
    table.insert("rows", if none { Value::Null } else { rows.into() });
    Value::Object(table)
}

#[cfg(test)]
mod tests {
    use coxswain_api::catalogue;
    use coxswain_store::{Expect, Key, MemoryLog, Store};

    use super::*;
    use crate::object::{ObjectView, attributes, encode};

    #[tokio::test]
    async fn the_last_state_of_a_deleted_object_tells_its_own_revision_in_protobuf_too() {
        let kind = catalogue::find("", "v1", "configmaps").map(Resource::BuiltIn).expect("the kind");
        let store = Store::open(Box::new(MemoryLog), ObjectView, Default::default()).expect("a store");
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}});
        let key = Key::new("configmaps", "n/a");
        let put = store.put(key.clone(), Expect::Absent, encode(&object), attributes(&kind, &object)).await;
        let written = put.expect("written");
        let deleted = store.delete(key, written.revision).await.map_err(|_| "a conflict");
        for object in [written, deleted.expect("deleted")] {
            let bytes = protobuf(&kind, &object).expect("a message");
            let told = schema::decode_protobuf(&bytes).expect("decodes");
            assert_eq!(told["metadata"]["resourceVersion"], object.revision.to_string());
        }
    }

    #[tokio::test]
    async fn items_of_a_list_are_whole_in_every_version() {
        let store = Store::open(Box::new(MemoryLog), ObjectView, Default::default()).expect("a store");
        let event = json!({"apiVersion": "v1", "kind": "Event", "action": "a", "involvedObject": {}, "reason": "r",
            "metadata": {"name": "x", "namespace": "n"}, "message": "m"});
        let stored = catalogue::find("", "v1", "events").map(Resource::BuiltIn).expect("the kind");
        let key = Key::new("events", "n/x");
        let put = store.put(key, Expect::Absent, encode(&event), attributes(&stored, &event)).await;
        let objects = [put.expect("written")];
        for (group, message) in [("", "message"), ("events.k8s.io", "note")] {
            let kind = catalogue::find(group, "v1", "events").map(Resource::BuiltIn).expect("the kind");
            let list = items(&kind, &objects, &json!({})).concat();
            let list: Value = serde_json::from_slice(&list).expect("JSON");
            let item = &list["items"][0];
            assert_eq!((&item["action"], &item[message]), (&json!("a"), &json!("m")), "{list}");
            assert_eq!(item["metadata"]["resourceVersion"], "1");
            assert!(item["kind"].is_null() && item["apiVersion"].is_null());
        }
    }
}
