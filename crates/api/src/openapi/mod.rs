//! OpenAPI documents, built on demand from the packed definitions and the catalogue; nothing stays resident.

mod convert;
mod custom;
mod merge;
mod operations;
mod proto;
mod schemas;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use coxswain_meta::json::{Map, Value, json};

pub use convert::to_v3 as converted;
pub use custom::CustomKind;
pub use merge::below;

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

/// `/openapi/v3`: the documents there are and their URLs, which carry the hash; `others` are documents and URLs of other servers.
pub fn v3_index(customs: &[CustomKind], others: &[(String, String)]) -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let path = document_path(kind.group, kind.version);
        let url = format!("/openapi/v3/{path}?hash={}", hash());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    let mut own: BTreeMap<String, DefaultHasher> = BTreeMap::new();
    for custom in customs {
        custom.hash(own.entry(document_path(&custom.group, &custom.version)).or_default());
    }
    for (path, hasher) in own {
        let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    for (path, url) in others {
        paths.insert(path.clone(), json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The paths of some kinds and the definitions that they need.
fn parts(
    items: &[PathItem],
    customs: &[&CustomKind],
    v2: bool,
) -> (BTreeMap<String, Value>, Vec<(String, Value)>) {
    let own: Vec<(String, Value)> = customs.iter().flat_map(|custom| custom.definitions(v2)).collect();
    let mut named = Vec::new();
    own.iter().for_each(|(_, definition)| schemas::references(definition, &mut named));
    let roots = items.iter().flat_map(|item| &item.operations).flat_map(Operation::definitions);
    let roots = roots.chain(named.iter().map(String::as_str));
    (schemas::closure(&schemas::load(), roots), own)
}

/// `/openapi/v3/<path>` for `api/v1`, `apis/apps/v1`, …; `None` for an unknown path.
pub fn v3_document(path: &str, customs: &[CustomKind]) -> Option<Vec<u8>> {
    let kinds = KINDS.iter().filter(|k| document_path(k.group, k.version) == path);
    let customs: Vec<&CustomKind> =
        customs.iter().filter(|c| document_path(&c.group, &c.version) == path).collect();
    let mut items: Vec<PathItem> = kinds.flat_map(operations::of).collect();
    items.extend(customs.iter().flat_map(|custom| operations::of(*custom)));
    if items.is_empty() {
        return None;
    }
    let (definitions, own) = parts(&items, &customs, false);
    let mut schemas: Map = definitions.iter().map(|(k, v)| (k.clone(), schemas::to_v3(k, v))).collect();
    schemas.extend(own);
    let paths: Map = items.iter().map(|item| (item.path.clone(), item.v3())).collect();
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    Some(document.to_string().into_bytes())
}

/// The own document and those of other servers, each as [`below`] made it.
fn v2_document(customs: &[CustomKind], others: &[Arc<Value>]) -> Value {
    let mut items: Vec<PathItem> = KINDS.iter().flat_map(operations::of).collect();
    items.extend(customs.iter().flat_map(operations::of));
    let (mut definitions, own) = parts(&items, &customs.iter().collect::<Vec<_>>(), true);
    definitions.extend(own);
    let mut paths: Map = items.iter().map(|item| (item.path.clone(), item.v2())).collect();
    others.iter().for_each(|other| merge::merge(&mut paths, &mut definitions, other));
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths,
        "definitions": definitions,
    })
}

/// `/openapi/v2` as JSON.
pub fn v2_json(customs: &[CustomKind], others: &[Arc<Value>]) -> Vec<u8> {
    v2_document(customs, others).to_string().into_bytes()
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(customs: &[CustomKind], others: &[Arc<Value>]) -> Vec<u8> {
    proto::document(&v2_document(customs, others))
}

#[cfg(test)]
mod tests;
