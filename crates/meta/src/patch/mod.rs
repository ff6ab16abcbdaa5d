//! The patch types: JSON patch, merge patch and strategic merge patch. Apply lives with field ownership.

pub mod strategic;

use json_patch::PatchOperation;
// What the library works on.
use serde_json::Value as Tree;

use crate::golang;
use crate::json::{Map, Value, from_value};
use crate::status::Status;

/// Upstream's bound on the operations of a JSON patch.
const MOST_OPERATIONS: usize = 10_000;
/// Upstream's bound on what the copy operations of one patch copy together.
const MOST_COPIED_BYTES: usize = 3 << 20;
/// Documents are no deeper than what can be read again: the JSON parser ends at 128.
const DEEPEST: usize = 120;

/// Applies an RFC 6902 patch in place; `doc` is unspecified after an error.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), Status> {
    let steps = steps(patch)?;
    let operations = steps.len();
    if operations > MOST_OPERATIONS {
        let why =
            format!("The allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {operations}");
        return Err(Status::failure(413, "RequestEntityTooLarge", why));
    }
    let mut tree = Tree::from(doc.take());
    operate(&mut tree, steps)?;
    *doc = tree.into();
    Ok(())
}

fn operate(doc: &mut Tree, steps: Vec<Value>) -> Result<(), Status> {
    let mut copied = 0;
    for step in steps {
        let operation: PatchOperation = from_value(step).map_err(|_| Status::unprocessable())?;
        let (path, value) = (operation.path(), placed(doc, &operation));
        if value.is_some_and(|value| depth(value) + path.count() > DEEPEST) {
            return Err(Status::bad_request("error applying patch: exceeded max depth"));
        }
        if let (PatchOperation::Copy(_), Some(value)) = (&operation, value) {
            copied += value.to_string().len();
            if copied > MOST_COPIED_BYTES {
                return Err(Status::too_large(MOST_COPIED_BYTES as u64));
            }
        }
        if is_absence(doc, &operation) {
            continue;
        }
        json_patch::patch_unsafe(doc, &[operation]).map_err(|_| Status::unprocessable())?;
    }
    Ok(())
}

/// The operations of a patch; those that name no value mean null.
fn steps(patch: &Value) -> Result<Vec<Value>, Status> {
    const STEP: &str = "handlers.jsonPatchOp";
    let wrong = |found: &Value, what: String| {
        let found = golang::json_kind(found);
        Status::bad_request(format!("error decoding patch: json: cannot unmarshal {found} into Go {what}"))
    };
    let items = match patch {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        other => return Err(wrong(other, format!("value of type []{STEP}"))),
    };
    let mut steps = items.clone();
    for step in &mut steps {
        if step.is_null() {
            continue;
        }
        let Value::Object(map) = step else { return Err(wrong(step, format!("value of type {STEP}"))) };
        for name in ["op", "path", "from"] {
            if let Some(found) = map.get(name).filter(|found| !found.is_string() && !found.is_null()) {
                return Err(wrong(found, format!("struct field jsonPatchOp.{name} of type string")));
            }
        }
        map.entry("value").or_insert(Value::Null);
    }
    Ok(steps)
}

/// Whether an operation tests for null what is not there: RFC 6902 has it fail, upstream has it pass, and kube-rs adds its first
/// finalizer so.
fn is_absence(doc: &Tree, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let parent = path.rsplit_once('/').and_then(|(parent, _)| doc.pointer(parent));
    test.value.is_null() && doc.pointer(path).is_none() && parent.is_some_and(Tree::is_object)
}

/// What an operation puts somewhere.
fn placed<'a>(doc: &'a Tree, operation: &'a PatchOperation) -> Option<&'a Tree> {
    match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Copy(copy) => doc.pointer(copy.from.as_str()),
        PatchOperation::Move(moved) => doc.pointer(moved.from.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    }
}

/// How deep a document is; no document here is deeper than the parser lets it be.
fn depth(value: &Tree) -> usize {
    match value {
        Tree::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Tree::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Applies an RFC 7386 patch in place.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), Status> {
    if !patch.is_object() {
        return Err(Status::bad_request(match patch {
            Value::Null => "Invalid JSON Patch".to_owned(),
            other => format!("error decoding patch: {}", golang::no_map(other)),
        }));
    }
    merge(doc, patch);
    Ok(())
}

fn merge(doc: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *doc = patch.clone();
        return;
    };
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Value::Object(members) = doc else { return };
    for (name, value) in patch {
        match members.get_mut(name) {
            _ if value.is_null() => drop(members.remove(name)),
            Some(known) if !known.is_null() => merge(known, value),
            _ => drop(members.insert(name, without_nulls(value))),
        }
    }
}

/// A value that comes with a merge patch: nulls in it are nothing, those of structs in new lists too.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let left = map.iter().filter(|(_, value)| !value.is_null());
            left.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        scalar => scalar.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn what_is_not_there_tests_as_null() {
        let test = |path: &str| json!([{"op": "test", "path": path, "value": null}]);
        let mut doc = json!({"metadata": {"name": "x"}});
        assert!(json_patch(&mut doc, &test("/metadata/finalizers")).is_ok());
        assert!(json_patch(&mut doc, &test("/metadata/name")).is_err());
        assert!(json_patch(&mut doc, &test("/status/phase")).is_err());
    }

    #[test]
    fn patches_that_grow_beyond_measure_are_refused() {
        let code = |mut doc: Value, patch: Vec<Value>| {
            json_patch(&mut doc, &Value::Array(patch)).map_err(|status| status.code)
        };
        let copy = |from: &str, path: String| json!({"op": "copy", "from": from, "path": path});
        // Each copy doubles what is there.
        let doubling = (0..40).map(|i| copy("/a", format!("/a/{i}"))).collect();
        assert_eq!(code(json!({"a": {"x": "y"}}), doubling), Err(413));
        let wide = (0..40).map(|i| copy("/a", format!("/b{i}"))).collect();
        assert_eq!(code(json!({"a": "x".repeat(100_000)}), wide), Err(413));
        let many = (0..10_001).map(|_| json!({"op": "test", "path": "/a", "value": 1})).collect();
        assert_eq!(code(json!({"a": 1}), many), Err(413));
        let deep = (1..200).map(|i| json!({"op": "add", "path": "/a".repeat(i), "value": {}})).collect();
        assert_eq!(code(json!({}), deep), Err(400));
        assert_eq!(code(json!({"a": 1}), vec![copy("/a", "/b".to_owned())]), Ok(()));
    }
}
