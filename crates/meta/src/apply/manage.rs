//! The entries of `managedFields`: what a write takes from some managers and gives to another.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::walk::{Changes, changes, claimed, merge, remove, with_parents};
use super::{Node, Set};

/// Entries of updates beyond this are merged, the oldest first.
const MOST_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// What nobody owns: identity, and what only the server writes.
static NOBODYS: LazyLock<Set> = LazyLock::new(|| {
    let metadata = [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ];
    let mut below: Map<String, Value> =
        metadata.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
    below.insert(".".into(), json!({}));
    Set::from_json(&json!({"f:apiVersion": {}, "f:kind": {}, "f:metadata": below}))
});

/// Who writes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manager<'a> {
    /// The field manager's name.
    pub name: &'a str,
    /// The version of the object that it writes.
    pub api_version: &'a str,
    /// The subresource that it writes through.
    pub subresource: &'a str,
    /// Now, as metadata writes times.
    pub now: &'a str,
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages show it: `"kubectl" using v1`.
    pub manager: String,
    /// The field, such as `.spec.replicas`.
    pub path: String,
}

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

fn is_of(entry: &Value, manager: &Manager, operation: &str) -> bool {
    text(entry, "manager") == manager.name
        && text(entry, "operation") == operation
        && text(entry, "subresource") == manager.subresource
        && (operation == APPLY || text(entry, "apiVersion") == manager.api_version)
}

/// Changes the fields of an entry in place; false where none is left.
fn edit(entry: &mut Value, change: impl FnOnce(&mut Set)) -> bool {
    let Some(Value::Object(fields)) = entry.get_mut("fieldsV1").map(Value::take) else { return false };
    let mut set = Set(fields);
    change(&mut set);
    let left = !set.is_empty();
    entry["fieldsV1"] = set.into_json();
    left
}

fn entry(manager: &Manager, operation: &str, set: Set) -> Value {
    let mut entry = json!({"manager": manager.name, "operation": operation, "apiVersion": manager.api_version,
        "time": manager.now, "fieldsType": "FieldsV1"});
    // Moved in, where the macro would copy.
    entry["fieldsV1"] = set.into_json();
    if !manager.subresource.is_empty() {
        entry["subresource"] = manager.subresource.into();
    }
    entry
}

/// Leaves out of a change what nobody owns and what the written path resets.
fn ownable(mut changes: Changes, reset: &Set) -> Changes {
    for set in [&mut changes.written, &mut changes.removed] {
        set.subtract(&NOBODYS);
        set.subtract_trees(reset);
    }
    changes
}

/// Records a write that is no apply: the manager owns what it wrote, and others what is left to them.
pub fn update(entries: &mut Vec<Value>, changes: Changes, reset: &Set, manager: &Manager) {
    let changes = ownable(changes, reset);
    if changes.is_empty() {
        return;
    }
    let mut recorded = changes.written.is_empty();
    entries.retain_mut(|entry| {
        if is_of(entry, manager, UPDATE) {
            if !changes.written.is_empty() {
                entry["time"] = manager.now.into();
                recorded = true;
            }
            return edit(entry, |set| {
                set.subtract(&changes.removed);
                set.add(&changes.written);
            });
        }
        edit(entry, |set| {
            set.subtract(&changes.written);
            set.subtract(&changes.removed);
        })
    });
    if !recorded {
        entries.push(entry(manager, UPDATE, changes.written));
    }
    cap(entries);
    sort(entries);
}

/// Applies a configuration to the live object and records who owns what; returns the new object. What the live object has beyond
/// a `blank` one counts as written before, where nobody is known to have written anything.
///
/// # Errors
/// The fields that others own with other values, unless `force` takes them over.
pub fn apply<N: Node>(
    node: N,
    (live, blank): (&Value, &Value),
    configuration: &Value,
    entries: &mut Vec<Value>,
    manager: &Manager,
    (reset, force): (&Set, bool),
) -> Result<Value, Vec<Conflict>> {
    if entries.is_empty() {
        let before = ownable(changes(node, blank, live), reset).written;
        if !before.is_empty() {
            entries.push(entry(&Manager { name: BEFORE_FIRST_APPLY, ..*manager }, UPDATE, before));
        }
    }
    let mut claim = claimed(node, configuration);
    claim.subtract_trees(reset);
    let mut merged = live.clone();
    merge(node, &mut merged, configuration);
    let own = entries.iter().position(|entry| is_of(entry, manager, APPLY));
    let last = own.map(|at| Set::from_json(&entries[at]["fieldsV1"])).unwrap_or_default();
    let others = || entries.iter().enumerate().filter(|(at, _)| Some(*at) != own).map(|(_, entry)| entry);
    if !last.is_empty() {
        let mut managed = claim.clone();
        others().for_each(|entry| managed.add(&Set::from_json(&entry["fieldsV1"])));
        merged = prune(node, merged, &last, &managed);
    }
    // What identifies the object counted as applied above, so that it was not taken away.
    claim.subtract(&NOBODYS);
    if merged == *live && claim == last {
        return Ok(merged);
    }
    let changed = ownable(changes(node, live, &merged), reset);
    let conflicts: Vec<Conflict> = others().flat_map(|entry| conflicts(entry, &changed.written)).collect();
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut at = 0;
    entries.retain_mut(|entry| {
        let mine = Some(at) == own;
        at += 1;
        !mine
            && edit(entry, |set| {
                set.subtract(&changed.written);
                set.subtract(&changed.removed);
            })
    });
    if !claim.is_empty() {
        entries.push(entry(manager, APPLY, claim));
    }
    sort(entries);
    Ok(merged)
}

fn conflicts(entry: &Value, written: &Set) -> Vec<Conflict> {
    let common = written.intersection(&Set::from_json(&entry["fieldsV1"]));
    let mut manager = format!("{:?}", text(entry, "manager"));
    if !text(entry, "subresource").is_empty() {
        manager.push_str(&format!(" with subresource {:?}", text(entry, "subresource")));
    }
    if text(entry, "operation") == UPDATE {
        manager.push_str(&format!(" using {}", text(entry, "apiVersion")));
    }
    common.paths().into_iter().map(|path| Conflict { manager: manager.clone(), path }).collect()
}

/// Takes away what the manager applied the last time, applies no more, and nobody else owns.
fn prune<N: Node>(node: N, merged: Value, last: &Set, managed: &Set) -> Value {
    let named = |value: &Value| with_parents(node, &claimed(node, value));
    let without = |fields: &Set| {
        let mut value = merged.clone();
        remove(node, &mut value, fields);
        value
    };
    let (last, mut managed, present) =
        (with_parents(node, last), with_parents(node, managed), named(&merged));
    managed.add(&named(&without(&last)));
    let mut unowned = present.clone();
    unowned.subtract(&managed);
    let mut gone = present;
    gone.subtract(&named(&without(&unowned)));
    without(&gone.intersection(&last))
}

/// Merges the oldest entries of updates where there are too many.
fn cap(entries: &mut Vec<Value>) {
    let mut updaters: Vec<usize> =
        (0..entries.len()).filter(|at| text(&entries[*at], "operation") == UPDATE).collect();
    if updaters.len() <= MOST_UPDATERS {
        return;
    }
    updaters.sort_by(|a, b| text(&entries[*a], "time").cmp(text(&entries[*b], "time")));
    let mut excess = updaters.len() - MOST_UPDATERS;
    let mut buckets: Vec<usize> = Vec::new();
    let mut merged: Vec<usize> = Vec::new();
    for at in updaters {
        if excess == 0 {
            break;
        }
        let version = text(&entries[at], "apiVersion").to_owned();
        let bucket = buckets.iter().copied().find(|bucket| text(&entries[*bucket], "apiVersion") == version);
        let Some(bucket) = bucket else {
            buckets.push(at);
            continue;
        };
        let (time, fields) = (entries[at]["time"].clone(), Set::from_json(&entries[at]["fieldsV1"]));
        edit(&mut entries[bucket], |set| set.add(&fields));
        entries[bucket]["manager"] = ANCIENT.into();
        entries[bucket]["time"] = time;
        merged.push(at);
        excess -= 1;
    }
    merged.sort_unstable();
    merged.into_iter().rev().for_each(|at| drop(entries.remove(at)));
}

fn sort(entries: &mut [Value]) {
    entries.sort_by(|a, b| {
        let key = |entry| {
            ["operation", "time", "manager", "apiVersion", "subresource"].map(|field| text(entry, field))
        };
        key(a).cmp(&key(b))
    });
}
