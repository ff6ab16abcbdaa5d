//! Swagger documents of other servers, merged into the own one: what they answer for a group version, and no more.

use std::collections::BTreeMap;

use coxswain_meta::json::{Map, Value};

use super::schemas;

const GVK: &str = "x-kubernetes-group-version-kind";
const DEFINITIONS: &str = "#/definitions/";

/// The paths below a prefix, with the definitions that they need; parameters that they refer to stand in their places. `None` where
/// there are no such paths.
pub fn below(document: &Value, prefix: &str) -> Option<Value> {
    let all = document["paths"].as_object()?;
    let mut paths: Value = all
        .iter()
        .filter(|(path, _)| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .map(|(path, item)| (path, item.clone()))
        .collect::<Map>()
        .into();
    if paths.as_object().is_none_or(Map::is_empty) {
        return None;
    }
    inline(&mut paths, &document["parameters"]);
    let mut named = Vec::new();
    schemas::references(&paths, &mut named);
    let empty = Map::new();
    let definitions = document["definitions"].as_object().unwrap_or(&empty);
    let definitions: Map =
        schemas::closure(definitions, named.iter().map(String::as_str)).into_iter().collect();
    let mut out = Map::new();
    out.insert("paths", paths);
    out.insert("definitions", definitions.into());
    Some(out.into())
}

/// Puts parameters where they are referred to.
pub(super) fn inline(value: &mut Value, parameters: &Value) {
    match value {
        Value::Object(map) => {
            let name = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/parameters/"));
            match name.and_then(|name| parameters.get(name)) {
                Some(parameter) => *value = parameter.clone(),
                None => map.values_mut().for_each(|value| inline(value, parameters)),
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| inline(item, parameters)),
        _ => {}
    }
}

/// Adds the paths and definitions of another document. Paths that are there already stay; a definition that differs from the one of
/// its name gets a name of its own, `…_v2`.
pub(super) fn merge(paths: &mut Map, definitions: &mut BTreeMap<String, Value>, other: &Value) {
    let (Some(new_paths), Some(theirs)) = (other["paths"].as_object(), other["definitions"].as_object())
    else {
        return;
    };
    let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
    for (name, definition) in theirs {
        let Some(known) = definitions.get(name) else { continue };
        if is_same(known, definition) {
            continue;
        }
        let free = |new: &String| match definitions.get(new) {
            Some(known) => is_same(known, definition),
            None => !theirs.contains_key(new),
        };
        let new = (2..).map(|n| format!("{name}_v{n}")).find(free);
        renamed.extend(new.map(|new| (name, new)));
    }
    for (name, definition) in theirs {
        let name = renamed.get(name).map_or(name, String::as_str);
        match definitions.get_mut(name) {
            Some(known) => add_kinds(known, definition),
            None => {
                definitions.insert(name.to_owned(), repointed(definition, &renamed));
            }
        }
    }
    for (path, item) in new_paths {
        if !paths.contains_key(path) {
            paths.insert(path, repointed(item, &renamed));
        }
    }
}

/// Whether two definitions say the same, whatever kinds they are of.
fn is_same(a: &Value, b: &Value) -> bool {
    let said = |value: &Value| -> Map {
        let members = value.as_object().into_iter().flatten();
        members.filter(|(name, _)| *name != GVK).map(|(name, value)| (name, value.clone())).collect()
    };
    said(a) == said(b)
}

/// A definition is of the kinds of both.
fn add_kinds(known: &mut Value, other: &Value) {
    let kinds = other[GVK].as_array().cloned().unwrap_or_default();
    if kinds.is_empty() {
        return;
    }
    let own = known[GVK].as_array().cloned().unwrap_or_default();
    let new = kinds.into_iter().filter(|kind| !own.contains(kind));
    known[GVK] = own.iter().cloned().chain(new).collect();
}

/// A value whose references follow the new names.
fn repointed(value: &Value, renamed: &BTreeMap<&str, String>) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                let target =
                    value.as_str().filter(|_| key == "$ref").and_then(|r| r.strip_prefix(DEFINITIONS));
                let value = match target.and_then(|target| renamed.get(target)) {
                    Some(new) => format!("{DEFINITIONS}{new}").into(),
                    None => repointed(value, renamed),
                };
                (key, value)
            })
            .collect::<Map>()
            .into(),
        Value::Array(items) => items.iter().map(|item| repointed(item, renamed)).collect(),
        other => other.clone(),
    }
}
