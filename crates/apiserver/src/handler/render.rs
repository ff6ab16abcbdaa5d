//! Objects and lists in the form that was asked for.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use coxswain_api::Kind;
use coxswain_store::{Object, Revision};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::Form;
use crate::authn::epoch_seconds;
use crate::object::{Attributes, Meta, list_item};
use crate::respond;

/// An object of the store.
pub type Stored = Arc<Object<Attributes>>;

/// A stored object in the version of a row, as a document.
pub fn document(kind: &Kind, bytes: &[u8]) -> Value {
    let mut object: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if !is_storage(kind) {
        kind.from_storage(&mut object);
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.into();
    }
    object
}

fn is_storage(kind: &Kind) -> bool {
    kind.storage == (kind.group, kind.plural)
        && coxswain_api::catalogue::KINDS
            .iter()
            .find(|k| (k.group, k.plural) == kind.storage)
            .is_none_or(|k| k.version == kind.version)
}

/// A stored object in the version of a row, as bytes; the stored bytes themselves wherever that is the stored version.
pub fn bytes(kind: &Kind, stored: &Bytes) -> Bytes {
    if is_storage(kind) {
        return stored.clone();
    }
    serde_json::to_vec(&document(kind, stored)).unwrap_or_default().into()
}

/// One object.
pub fn object(kind: &Kind, form: Form, code: StatusCode, stored: &Bytes, include: &str) -> Response<Body> {
    match form {
        Form::Object => respond::json_bytes(code, bytes(kind, stored)),
        Form::Metadata => respond::json(code, &metadata(&document(kind, stored))),
        Form::Table => {
            let object = document(kind, stored);
            let version = object.meta_str("resourceVersion").to_owned();
            respond::json(code, &table(kind, &[object], include, json!({ "resourceVersion": version }), true))
        }
    }
}

/// A list.
pub fn list(kind: &Kind, form: Form, objects: &[Stored], list_meta: Value, include: &str) -> Response<Body> {
    if form == Form::Table {
        let objects: Vec<Value> = objects.iter().map(|stored| document(kind, &stored.bytes)).collect();
        return respond::json(StatusCode::OK, &table(kind, &objects, include, list_meta, true));
    }
    let (list_kind, version) = match form {
        Form::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1".to_owned()),
        _ => (kind.list_kind, kind.api_version()),
    };
    let size: usize = objects.iter().map(|stored| stored.bytes.len() + 1).sum();
    let mut body = BytesMut::with_capacity(size + 256);
    body.extend_from_slice(
        format!(r#"{{"kind":"{list_kind}","apiVersion":"{version}","metadata":{list_meta},"items":["#)
            .as_bytes(),
    );
    for (at, stored) in objects.iter().enumerate() {
        if at > 0 {
            body.extend_from_slice(b",");
        }
        if form == Form::Metadata {
            let partial = metadata(&document(kind, &stored.bytes)).to_string();
            body.extend_from_slice(partial.as_bytes());
        } else {
            let bytes = bytes(kind, &stored.bytes);
            let (open, rest) = list_item(&bytes);
            body.extend_from_slice(open);
            body.extend_from_slice(rest);
        }
    }
    body.extend_from_slice(b"]}");
    respond::json_bytes(StatusCode::OK, body.freeze())
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
pub fn metadata(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.meta() })
}

/// A `Table`; `include` is the `includeObject` parameter.
pub fn table(kind: &Kind, objects: &[Value], include: &str, list_meta: Value, headings: bool) -> Value {
    let now = epoch_seconds();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = json!({ "cells": kind.row(object, now) });
            match include {
                "None" => {}
                "Object" => row["object"] = object.clone(),
                _ => row["object"] = metadata(object),
            }
            row
        })
        .collect();
    let columns: Vec<Value> = kind
        .columns
        .iter()
        .filter(|_| headings)
        .map(|column| {
            json!({ "name": column.name, "type": column.type_, "format": column.format, "description": column.description,
                "priority": column.priority })
        })
        .collect();
    let mut table = Map::new();
    table.insert("kind".into(), "Table".into());
    table.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    table.insert("metadata".into(), list_meta);
    table.insert("columnDefinitions".into(), columns.into());
    table.insert("rows".into(), rows.into());
    Value::Object(table)
}
