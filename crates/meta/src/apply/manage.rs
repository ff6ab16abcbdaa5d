//! The entries of `managedFields`: what a write takes from some managers and gives to another.
//!
//! The fields of an entry may be text, which no client can send: the text of their document, as it is stored. Most writes
//! leave most entries as they are, and an edit makes a tree of a text only where it changes something.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::walk::{Changes, changes, claimed, merge, remove, with_parents};
use super::{Node, Set, fresh, text};

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

/// The member of an entry that holds its fields.
pub const FIELDS: &str = "fieldsV1";
const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

fn word<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

fn is_of(entry: &Value, manager: &Manager, operation: &str) -> bool {
    word(entry, "manager") == manager.name
        && word(entry, "operation") == operation
        && word(entry, "subresource") == manager.subresource
        && (operation == APPLY || word(entry, "apiVersion") == manager.api_version)
}

/// The fields of an entry.
fn fields(entry: &Value) -> Set {
    match &entry[FIELDS] {
        Value::String(text) => Set::from_json(&serde_json::from_str(text).unwrap_or_default()),
        tree => Set::from_json(tree),
    }
}

/// Whether an entry's text says that it has nothing of some sets and all of another.
fn is_settled(entry: &Value, without: &[&Set], with: &Set) -> bool {
    let Some(text) = entry[FIELDS].as_str() else { return false };
    let holds = |set: &Set, paths: usize| set.is_empty() || text::held(text, set) == Some(paths);
    without.iter().all(|set| holds(set, 0)) && holds(with, with.len())
}

/// Takes sets out of the fields of an entry and adds one; false where no field is left.
fn edit(entry: &mut Value, out: &[&Set], add: &Set) -> bool {
    if is_settled(entry, out, add) {
        return true;
    }
    let mut set = match entry[FIELDS].take() {
        Value::Object(tree) => Set(tree),
        Value::String(text) => Set(serde_json::from_str(&text).unwrap_or_default()),
        _ => return false,
    };
    out.iter().for_each(|taken| set.subtract(taken));
    set.add(add);
    let left = !set.is_empty();
    entry[FIELDS] = set.into_json();
    left
}

/// Whether a text is the document that the text of an entry has to be.
pub fn is_document(text: &str) -> bool {
    text::held(text, &Set::default()).is_some()
}

/// Makes trees of what is text in entries.
pub fn thaw(entries: &mut [Value]) {
    for entry in entries.iter_mut().filter(|entry| entry[FIELDS].is_string()) {
        entry[FIELDS] = fields(entry).into_json();
    }
}

/// Whether two lists of entries say the same, whenever it was written down.
pub fn same(a: &[Value], b: &[Value]) -> bool {
    let heads = |entry: &Value| entry.as_object().map(|entry| entry.len());
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            let members = a.as_object().into_iter().flatten();
            heads(a) == heads(b)
                && members.filter(|(name, _)| *name != "time").all(|(name, value)| match (value, &b[name]) {
                    (Value::String(_), Value::Object(_)) | (Value::Object(_), Value::String(_))
                        if name == FIELDS =>
                    {
                        fields(a) == fields(b)
                    }
                    (value, other) => value == other,
                })
        })
}

fn entry(manager: &Manager, operation: &str, fields: Value) -> Value {
    let mut entry = json!({"manager": manager.name, "operation": operation, "apiVersion": manager.api_version,
        "time": manager.now, "fieldsType": "FieldsV1"});
    // Moved in, where the macro would copy.
    entry[FIELDS] = fields;
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

/// The entries of a new object: all that it has beyond a `blank` one is its creator's.
pub fn create<N: Node>(
    node: N,
    (blank, new): (&Value, &Value),
    reset: &Set,
    manager: &Manager,
) -> Vec<Value> {
    let fields = fresh::document(node, (blank, new), [&NOBODYS, reset]);
    fields.into_iter().map(|fields| entry(manager, UPDATE, fields.into())).collect()
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
            return edit(entry, &[&changes.removed], &changes.written);
        }
        edit(entry, &[&changes.written, &changes.removed], &Set::default())
    });
    if !recorded {
        entries.push(entry(manager, UPDATE, changes.written.into_json()));
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
            entries.push(entry(
                &Manager { name: BEFORE_FIRST_APPLY, ..*manager },
                UPDATE,
                before.into_json(),
            ));
        }
    }
    let mut claim = claimed(node, configuration);
    claim.subtract_trees(reset);
    let mut merged = live.clone();
    merge(node, &mut merged, configuration);
    let own = entries.iter().position(|entry| is_of(entry, manager, APPLY));
    let last = own.map(|at| fields(&entries[at])).unwrap_or_default();
    let others = || entries.iter().enumerate().filter(|(at, _)| Some(*at) != own).map(|(_, entry)| entry);
    if !last.is_empty() {
        let mut managed = claim.clone();
        others().for_each(|entry| managed.add(&fields(entry)));
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
        !mine && edit(entry, &[&changed.written, &changed.removed], &Set::default())
    });
    if !claim.is_empty() {
        entries.push(entry(manager, APPLY, claim.into_json()));
    }
    sort(entries);
    Ok(merged)
}

fn conflicts(entry: &Value, written: &Set) -> Vec<Conflict> {
    let common = written.intersection(&fields(entry));
    let mut manager = format!("{:?}", word(entry, "manager"));
    if !word(entry, "subresource").is_empty() {
        manager.push_str(&format!(" with subresource {:?}", word(entry, "subresource")));
    }
    if word(entry, "operation") == UPDATE {
        manager.push_str(&format!(" using {}", word(entry, "apiVersion")));
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
        (0..entries.len()).filter(|at| word(&entries[*at], "operation") == UPDATE).collect();
    if updaters.len() <= MOST_UPDATERS {
        return;
    }
    updaters.sort_by(|a, b| word(&entries[*a], "time").cmp(word(&entries[*b], "time")));
    let mut excess = updaters.len() - MOST_UPDATERS;
    let mut buckets: Vec<usize> = Vec::new();
    let mut merged: Vec<usize> = Vec::new();
    for at in updaters {
        if excess == 0 {
            break;
        }
        let version = word(&entries[at], "apiVersion").to_owned();
        let bucket = buckets.iter().copied().find(|bucket| word(&entries[*bucket], "apiVersion") == version);
        let Some(bucket) = bucket else {
            buckets.push(at);
            continue;
        };
        let (time, fields) = (entries[at]["time"].clone(), fields(&entries[at]));
        edit(&mut entries[bucket], &[], &fields);
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
            ["operation", "time", "manager", "apiVersion", "subresource"].map(|field| word(entry, field))
        };
        key(a).cmp(&key(b))
    });
}
