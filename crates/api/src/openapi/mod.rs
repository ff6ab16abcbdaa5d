//! OpenAPI documents, built on demand from the packed definitions and the catalogue; nothing stays resident.

mod operations;
mod proto;
mod schemas;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::catalogue::KINDS;
use operations::{Operation, PathItem};

/// Documents change only with the program, so one hash serves all.
static HASH: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    schemas::PACKED.hash(&mut hasher);
    for kind in KINDS {
        (kind.group, kind.version, kind.plural, kind.verbs).hash(&mut hasher);
        kind.subresources.iter().for_each(|s| (s.name, s.verbs).hash(&mut hasher));
    }
    format!("{:016X}", hasher.finish())
});

/// The entity tag of every document.
pub fn hash() -> &'static str {
    &HASH
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: the documents there are and their URLs, which carry the hash.
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let path = document_path(kind.group, kind.version);
        let url = format!("/openapi/v3/{path}?hash={}", hash());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/<path>` for `api/v1`, `apis/apps/v1`, …; `None` for an unknown path.
pub fn v3_document(path: &str) -> Option<Vec<u8>> {
    let kinds = || KINDS.iter().filter(|k| document_path(k.group, k.version) == path);
    kinds().next()?;
    let items: Vec<PathItem> = kinds().flat_map(operations::of).collect();
    let roots = items.iter().flat_map(|item| &item.operations).flat_map(Operation::definitions);
    let definitions = schemas::closure(&schemas::load(), roots);
    let schemas: Map<String, Value> =
        definitions.iter().map(|(k, v)| (k.clone(), schemas::to_v3(k, v))).collect();
    let paths: Map<String, Value> = items.iter().map(|item| (item.path.clone(), item.v3())).collect();
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    Some(document.to_string().into_bytes())
}

fn v2_document() -> Value {
    let items: Vec<PathItem> = KINDS.iter().flat_map(operations::of).collect();
    let roots = items.iter().flat_map(|item| &item.operations).flat_map(Operation::definitions);
    let definitions = schemas::closure(&schemas::load(), roots);
    let paths: Map<String, Value> = items.iter().map(|item| (item.path.clone(), item.v2())).collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths,
        "definitions": definitions,
    })
}

/// `/openapi/v2` as JSON.
pub fn v2_json() -> Vec<u8> {
    v2_document().to_string().into_bytes()
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf() -> Vec<u8> {
    proto::document(&v2_document())
}

#[cfg(test)]
mod tests;
