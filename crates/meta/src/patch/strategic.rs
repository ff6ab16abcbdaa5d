//! Strategic merge patch: merge patch that knows which lists are maps.
//!
//! Rules: sig-api-machinery/strategic-merge-patch.md. Directives are `$patch`, `$retainKeys`, `$setElementOrder/x` and
//! `$deleteFromPrimitiveList/x`.

use crate::json::{Map, Value};

use crate::golang::{self, shown, type_of};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// The patch facts of one field.
#[derive(Debug, Clone, Copy)]
pub struct Field<S> {
    /// Type of the field's value, or of its elements for lists and maps; `None` where nothing is known below.
    pub node: Option<S>,
    /// List or map items are merged rather than replaced.
    pub merge: bool,
    /// The whole value is replaced.
    pub replace: bool,
    /// `$retainKeys` is how kubectl clears other members of the union.
    pub retain_keys: bool,
    /// The key that identifies items of a merged list of objects.
    pub merge_key: Option<&'static str>,
}

/// What strategic merge needs to know of a type.
pub trait SchemaNode: Copy {
    /// Facts of a field, `None` when the type has no such field.
    fn field(self, name: &str) -> Option<Field<Self>>;
}

/// Applies `patch` to `doc` in place; `doc` is unspecified after an error.
pub fn apply<S: SchemaNode>(doc: &mut Value, patch: &Value, schema: S) -> Result<(), Status> {
    match (doc, patch) {
        (Value::Object(original), Value::Object(patch)) => merge_map(original, patch, Some(schema)),
        (_, Value::Null) => Ok(()),
        (_, other) => Err(Status::bad_request(golang::no_map(other))),
    }
}

fn bad_form(what: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {what}"))
}

fn merge_map<S: SchemaNode>(original: &mut Map, patch: &Map, schema: Option<S>) -> Result<(), Status> {
    match patch.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
        None => {}
        Some("replace") => {
            *original = patch.clone();
            original.remove(DIRECTIVE);
            return Ok(());
        }
        Some("delete") => {
            *original = Map::new();
            return Ok(());
        }
        Some("merge") => {}
        Some(other) => {
            let patch = shown(&Value::Object(patch.clone()));
            return Err(Status::failure(500, "", format!("unknown patch type: {other} in map: {patch}")));
        }
    }
    retain_keys(original, patch)?;
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN_KEYS {
            continue;
        }
        if let Some(list) = key.strip_prefix(ELEMENT_ORDER) {
            ordered_list(original, patch, list, value, schema)?;
        } else if let Some(list) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(original, list, value)?;
        } else if !patch.contains_key(&format!("{ELEMENT_ORDER}{key}")) {
            merge_field(original, key, value, schema)?;
        }
    }
    Ok(())
}

fn retain_keys(original: &mut Map, patch: &Map) -> Result<(), Status> {
    let Some(directive) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let keys = directive.as_array().ok_or_else(|| bad_form("retainKeys"))?;
    let kept = |name: &str| keys.iter().any(|k| k == name);
    let stray = patch.iter().any(|(k, v)| !v.is_null() && !k.starts_with('$') && !kept(k));
    if stray {
        return Err(bad_form("retainKeys"));
    }
    original.retain(|k, _| kept(k));
    Ok(())
}

fn delete_primitives(original: &mut Map, list: &str, doomed: &Value) -> Result<(), Status> {
    let doomed = doomed.as_array().ok_or_else(|| bad_form("primitive list"))?;
    if let Some(Value::Array(items)) = original.get_mut(list) {
        items.retain(|item| !doomed.contains(item));
    }
    Ok(())
}

fn merge_field<S: SchemaNode>(
    original: &mut Map,
    key: &str,
    patch: &Value,
    schema: Option<S>,
) -> Result<(), Status> {
    if patch.is_null() {
        original.remove(key);
        return Ok(());
    }
    let facts = schema.and_then(|s| s.field(key));
    let node = facts.and_then(|f| f.node);
    match (original.get_mut(key), patch) {
        (Some(Value::Object(_)), Value::Object(inner)) if is_deletion(inner) => {
            original.insert(key.to_owned(), Value::Object(Map::new()));
        }
        (Some(Value::Object(map)), Value::Object(inner)) if !facts.is_some_and(|f| f.replace) => {
            merge_map(map, inner, node)?;
        }
        (Some(Value::Array(items)), Value::Array(inner)) if facts.is_some_and(|f| f.merge) => {
            let merge_key = facts.and_then(|f| f.merge_key);
            *items = merge_list(std::mem::take(items), inner, merge_key, node)?;
        }
        _ => match fresh(patch) {
            Some(value) => {
                original.insert(key.to_owned(), value);
            }
            None => {
                original.remove(key);
            }
        },
    }
    Ok(())
}

fn is_deletion(map: &Map) -> bool {
    map.get(DIRECTIVE).is_some_and(|d| d == "delete")
}

/// A patch value where nothing was: without directives and nulls; `None` when it is nothing but a deletion.
fn fresh(patch: &Value) -> Option<Value> {
    match patch {
        Value::Object(map) if is_deletion(map) => None,
        Value::Object(map) => Some(Value::Object(
            map.iter()
                .filter(|(k, v)| !v.is_null() && !is_directive(k))
                .filter_map(|(k, v)| fresh(v).map(|v| (k, v)))
                .collect(),
        )),
        Value::Array(items) => {
            Some(Value::Array(items.iter().filter(|i| !is_replace_marker(i)).filter_map(fresh).collect()))
        }
        other => Some(other.clone()),
    }
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM)
}

fn is_replace_marker(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some_and(|d| d == "replace")
}

/// Merges a list and then brings it into the order the patch asks for.
fn ordered_list<S: SchemaNode>(
    original: &mut Map,
    patch: &Map,
    key: &str,
    order: &Value,
    schema: Option<S>,
) -> Result<(), Status> {
    let order = order.as_array().ok_or_else(|| bad_form("setElementOrder list"))?;
    let facts = schema.and_then(|s| s.field(key));
    let merge_key = facts.and_then(|f| f.merge_key);
    if let Some(Value::Array(items)) = patch.get(key) {
        check_order(items, order, merge_key)?;
    }
    let live = match original.get(key) {
        Some(Value::Array(items)) => items.clone(),
        _ => Vec::new(),
    };
    if let Some(value) = patch.get(key) {
        merge_field(original, key, value, schema)?;
    }
    if let Some(Value::Array(items)) = original.get_mut(key) {
        *items = reorder(std::mem::take(items), order, &live, merge_key);
    }
    Ok(())
}

/// Items of the patch must appear in the order list, in the same relative order.
fn check_order(items: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), Status> {
    let mut from = 0;
    for item in items {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        match order[from..].iter().position(|o| same(o, item, merge_key)) {
            Some(found) => from += found + 1,
            None => {
                return Err(Status::unprocessable());
            }
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn position(list: &[Value], item: &Value, merge_key: Option<&str>) -> Option<usize> {
    list.iter().position(|o| same(o, item, merge_key))
}

fn merge_list<S: SchemaNode>(
    original: Vec<Value>,
    patch: &[Value],
    merge_key: Option<&'static str>,
    node: Option<S>,
) -> Result<Vec<Value>, Status> {
    let mut types = original.iter().chain(patch).map(type_of);
    let first = types.next();
    if types.any(|other| Some(other) != first) {
        let lists = format!("[[{}] [{}]]", words(&original), words(patch));
        return Err(Status::failure(500, "", format!("list element types are not identical: {lists}")));
    }
    let objects = original.iter().chain(patch).any(Value::is_object);
    let Some(key) = merge_key.filter(|_| objects) else {
        if objects {
            return Err(Status::unprocessable());
        }
        let mut merged = original.clone();
        for item in patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(reorder(merged, patch, &original, None));
    };
    let live = original.clone();
    let mut merged = original;
    if patch.iter().any(is_replace_marker) {
        merged.clear();
    }
    let mut plain: Vec<&Value> = Vec::with_capacity(patch.len());
    for item in patch {
        let Value::Object(map) = item else {
            return Err(Status::unprocessable());
        };
        match map.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("delete") => {
                required_key(map, key)?;
                merged.retain(|o| !same(o, item, Some(key)));
            }
            Some("replace") => {}
            Some("merge") => {
                return Err(Status::unprocessable());
            }
            Some(_) => return Err(Status::unprocessable()),
        }
    }
    for item in &plain {
        let Value::Object(map) = item else { continue };
        required_key(map, key)?;
        match position(&merged, item, Some(key)).map(|i| &mut merged[i]) {
            Some(Value::Object(target)) => merge_map(target, map, node)?,
            _ => merged.extend(fresh(item)),
        }
    }
    let order: Vec<Value> = plain.into_iter().cloned().collect();
    Ok(reorder(merged, &order, &live, Some(key)))
}

fn required_key(map: &Map, key: &str) -> Result<(), Status> {
    if map.contains_key(key) {
        return Ok(());
    }
    let item = shown(&Value::Object(map.clone()));
    Err(Status::failure(500, "", format!("map: {item} does not contain declared merge key: {key}")))
}

fn words(items: &[Value]) -> String {
    items.iter().map(shown).collect::<Vec<_>>().join(" ")
}

/// Items named by `order` take that order; the others keep the live list's place between them as well as can be.
fn reorder(items: Vec<Value>, order: &[Value], live: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let rank = |list: &[Value], item: &Value| position(list, item, merge_key);
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| rank(order, item).is_some());
    named.sort_by_key(|item| rank(order, item));
    others.sort_by_key(|item| rank(live, item).unwrap_or(usize::MAX));
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let place = rank(live, &item);
        while let Some(other) =
            others.next_if(|o| matches!((rank(live, o), place), (Some(o), Some(p)) if o < p))
        {
            merged.push(other);
        }
        merged.push(item);
    }
    merged.extend(others);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::json;

    /// A pod-like type: `containers` and their `env` merge by name, `finalizers` merge as a set, `strategy` retains keys.
    #[derive(Clone, Copy)]
    struct Pod;

    impl SchemaNode for Pod {
        fn field(self, name: &str) -> Option<Field<Self>> {
            let (merge, merge_key) = match name {
                "containers" | "env" => (true, Some("name")),
                "ports" => (true, Some("port")),
                "finalizers" => (true, None),
                _ => (false, None),
            };
            Some(Field { node: Some(Pod), merge, replace: false, retain_keys: name == "strategy", merge_key })
        }
    }

    fn check(doc: Value, patch: Value, want: Value) {
        let mut doc = doc;
        apply(&mut doc, &patch, Pod).expect("applies");
        assert_eq!(doc, want, "{patch}");
    }

    #[test]
    fn lists() {
        let doc = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}], "args": [1, 2]});
        check(
            doc.clone(),
            json!({"containers": [{"name": "a", "image": "2"}], "args": [3]}),
            json!({"containers": [{"name": "a", "image": "2"}, {"name": "b"}], "args": [3]}),
        );
        check(
            doc.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}], "args": null}),
            json!({"containers": [{"name": "b"}]}),
        );
        check(
            doc.clone(),
            json!({"containers": [{"name": "c", "x": null}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "c"}], "args": [1, 2]}),
        );
        check(
            doc.clone(),
            json!({"containers": [{"name": "c"}], "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}),
            json!({"containers": [{"name": "c"}, {"name": "a", "image": "1"}, {"name": "b"}], "args": [1, 2]}),
        );
        let mut doc = doc;
        let status = apply(&mut doc, &json!({"containers": [{"image": "x"}]}), Pod).expect_err("no key");
        assert_eq!(
            (status.code, status.message.as_str()),
            (500, "map: map[image:x] does not contain declared merge key: name")
        );
        let order = json!({"containers": [{"name": "c"}], "$setElementOrder/containers": [{"name": "a"}]});
        assert!(apply(&mut doc, &order, Pod).is_err());
    }

    #[test]
    fn server_only_items_keep_their_place() {
        check(
            json!({"containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
                   "containers": [{"name": "c"}]}),
            json!({"containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}, {"name": "c"}]}),
        );
    }

    #[test]
    fn primitives() {
        check(
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}),
            json!({"finalizers": ["b", "c"]}),
        );
    }

    #[test]
    fn maps() {
        check(
            json!({"labels": {"a": "1", "b": "2"}}),
            json!({"labels": {"a": null, "c": "3", "d": null}}),
            json!({"labels": {"b": "2", "c": "3"}}),
        );
        check(
            json!({"labels": {"a": "1"}}),
            json!({"labels": {"$patch": "replace", "c": "3"}}),
            json!({"labels": {"c": "3"}}),
        );
        check(
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        );
        let mut doc = json!({"strategy": {}});
        let patch = json!({"strategy": {"$retainKeys": ["type"], "other": 1}});
        assert_eq!(apply(&mut doc, &patch, Pod).expect_err("stray").code, 400);
    }
}
