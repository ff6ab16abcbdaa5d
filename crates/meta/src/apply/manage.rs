//! The entries of `managedFields`: what a write takes from some managers and gives to another.
//!
//! The fields of an entry may be unread, as they are stored: most writes leave most entries as they are, or add to them, and an
//! edit makes a tree of a text only where it takes something away.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::json::{Map, Raw, Value, json};

use super::text::{self, With};
use super::walk::{Changes, changes, claimed, merge, remove, with_parents};
use super::{Node, Set, fresh};

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
    let mut below: Map = metadata.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
    below.insert(".", json!({}));
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

/// The other versions of a kind: entries keep the version that their fields were recorded in.
pub trait Versions {
    /// A place in an object.
    type Node: Node;

    /// The root of objects in a version; none where there is no such version any more, and nobody owns fields of it.
    fn root(&self, version: &str) -> Option<Self::Node>;

    /// An object, of whatever version, in another one.
    ///
    /// # Errors
    /// Why it cannot be converted.
    fn convert(&self, object: &Value, version: &str) -> Result<Value, String>;

    /// What differs between two objects in a version.
    ///
    /// # Errors
    /// Why they cannot be converted.
    fn changes(&self, old: &Value, new: &Value, version: &str) -> Result<Option<Changes>, String> {
        let Some(root) = self.root(version) else { return Ok(None) };
        let convert = |object, which| {
            let converted = self.convert(object, version);
            converted.map_err(|why| format!("failed to convert {which} object: {why}"))
        };
        Ok(Some(changes(root, &convert(old, "old")?, &convert(new, "new")?)))
    }
}

/// Why a configuration is not applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Others own fields with other values.
    Conflicts(Vec<Conflict>),
    /// The object cannot be had in the version of an entry.
    Conversion(String),
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
        Value::Raw(raw) => Set::from_json(&raw.read()),
        tree => Set::from_json(tree),
    }
}

/// Does to an entry's text what `edit` does, where nothing is to be taken out of it.
fn edit_text(entry: &mut Value, out: &[&Set], add: &Set) -> Option<()> {
    let raw = entry[FIELDS].as_raw()?;
    let lacks = |set: &&Set| set.is_empty() || text::holds_any(raw.text(), set) == Some(false);
    if !out.iter().all(lacks) {
        return None;
    }
    if !add.is_empty()
        && let With::More(text) = text::with(raw.text(), add)?
    {
        entry[FIELDS] = Raw::written(text).into();
    }
    Some(())
}

/// Takes sets out of the fields of an entry and adds one; false where no field is left.
fn edit(entry: &mut Value, out: &[&Set], add: &Set) -> bool {
    if edit_text(entry, out, add).is_some() {
        return true;
    }
    let mut set = match entry[FIELDS].take() {
        Value::Object(tree) => Set(tree),
        Value::Raw(raw) => Set(serde_json::from_str(raw.text()).unwrap_or_default()),
        _ => return false,
    };
    out.iter().for_each(|taken| set.subtract(taken));
    set.add(add);
    let left = !set.is_empty();
    entry[FIELDS] = set.into_json();
    left
}

/// Makes trees of what is text in entries.
pub fn thaw(entries: &mut [Value]) {
    for entry in entries.iter_mut().filter(|entry| entry[FIELDS].as_raw().is_some()) {
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
                    (Value::Raw(_), Value::Object(_)) | (Value::Object(_), Value::Raw(_))
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

/// A change in the versions of all entries.
struct Versioned<'a> {
    version: &'a str,
    own: &'a Changes,
    /// Those of other versions.
    others: Vec<(String, Changes)>,
}

impl<'a> Versioned<'a> {
    /// Asks for the change in every other version that an entry has; entries of versions that are gone are dropped.
    fn new(
        entries: &mut Vec<Value>,
        version: &'a str,
        own: &'a Changes,
        reset: &Set,
        mut in_version: impl FnMut(&str) -> Result<Option<Changes>, String>,
    ) -> Result<Self, String> {
        let mut others = Vec::new();
        let mut gone = Vec::new();
        for entry in entries.iter() {
            let other = word(entry, "apiVersion");
            if other == version || others.iter().any(|(known, _)| known == other) {
                continue;
            }
            match in_version(other)? {
                Some(changes) => others.push((other.to_owned(), ownable(changes, reset))),
                None => gone.push(other.to_owned()),
            }
        }
        if !gone.is_empty() {
            entries.retain(|entry| !gone.iter().any(|gone| gone == word(entry, "apiVersion")));
        }
        Ok(Self { version, own, others })
    }

    fn of(&self, entry: &Value) -> &Changes {
        let version = word(entry, "apiVersion");
        let other = || self.others.iter().find(|(known, _)| known == version).map(|(_, changes)| changes);
        if version == self.version { self.own } else { other().unwrap_or(self.own) }
    }

    /// Takes what changed from an entry; false where nothing is left of it.
    fn take_from(&self, entry: &mut Value) -> bool {
        let changes = self.of(entry);
        edit(entry, &[&changes.written, &changes.removed], &Set::default())
    }
}

/// Records a write that is no apply: the manager owns what it wrote, and others what is left to them. For entries of other versions
/// `in_version` says what the write changed there, or none where the version is gone.
///
/// # Errors
/// What `in_version` says; the entries are untouched then.
pub fn update(
    entries: &mut Vec<Value>,
    changes: Changes,
    reset: &Set,
    manager: &Manager,
    in_version: impl FnMut(&str) -> Result<Option<Changes>, String>,
) -> Result<(), String> {
    let changes = ownable(changes, reset);
    if changes.is_empty() {
        return Ok(());
    }
    let versioned = Versioned::new(entries, manager.api_version, &changes, reset, in_version)?;
    let mut recorded = changes.written.is_empty();
    entries.retain_mut(|entry| {
        if is_of(entry, manager, UPDATE) {
            if !changes.written.is_empty() {
                entry["time"] = manager.now.into();
                recorded = true;
            }
            return edit(entry, &[&changes.removed], &changes.written);
        }
        versioned.take_from(entry)
    });
    if !recorded {
        entries.push(entry(manager, UPDATE, changes.written.into_json()));
    }
    cap(entries);
    sort(entries);
    Ok(())
}

/// Applies a configuration to the live object and records who owns what; returns the new object. What the live object has beyond
/// a `blank` one counts as written before, where nobody is known to have written anything.
///
/// # Errors
/// The fields that others own with other values, unless `force` takes them over; entries that do not convert.
pub fn apply<N: Node>(
    (node, versions): (N, &impl Versions<Node = N>),
    (live, blank): (&Value, &Value),
    configuration: &Value,
    entries: &mut Vec<Value>,
    manager: &Manager,
    (reset, force): (&Set, bool),
) -> Result<Value, Refusal> {
    entries.retain(|entry| {
        let version = word(entry, "apiVersion");
        version == manager.api_version || versions.root(version).is_some()
    });
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
    let last_version = own.map_or(manager.api_version, |at| word(&entries[at], "apiVersion"));
    let kept_version = last_version == manager.api_version;
    if !last.is_empty() {
        let mut managed = vec![(manager.api_version, claim.clone())];
        for (_, entry) in entries.iter().enumerate().filter(|(at, _)| Some(*at) != own) {
            let (version, set) = (word(entry, "apiVersion"), fields(entry));
            match managed.iter_mut().find(|(known, _)| *known == version) {
                Some((_, managed)) => managed.add(&set),
                None => managed.push((version, set)),
            }
        }
        // Conversion may need what others own of the version that the fields are taken away in.
        managed.sort_by_key(|(version, _)| *version != last_version);
        let forms = Forms { node, own: manager.api_version, versions };
        merged = prune(&forms, merged, (last_version, &last), &managed)
            .map_err(|why| Refusal::Conversion(format!("failed to prune fields: {why}")))?;
    }
    // What identifies the object counted as applied above, so that it was not taken away.
    claim.subtract(&NOBODYS);
    if merged == *live && claim == last && kept_version {
        return Ok(merged);
    }
    if let Some(at) = own {
        entries.remove(at);
    }
    let changed = ownable(changes(node, live, &merged), reset);
    let in_version = |version: &str| versions.changes(live, &merged, version);
    let versioned = Versioned::new(entries, manager.api_version, &changed, reset, in_version);
    let versioned = versioned.map_err(Refusal::Conversion)?;
    let conflicts: Vec<Conflict> =
        entries.iter().flat_map(|entry| conflicts(entry, &versioned.of(entry).written)).collect();
    if !force && !conflicts.is_empty() {
        return Err(Refusal::Conflicts(conflicts));
    }
    entries.retain_mut(|entry| versioned.take_from(entry));
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

/// The versions of an object, the manager's own among them.
struct Forms<'a, N, V> {
    node: N,
    own: &'a str,
    versions: &'a V,
}

impl<N: Node, V: Versions<Node = N>> Forms<'_, N, V> {
    fn root(&self, version: &str) -> Result<N, String> {
        match version == self.own {
            true => Ok(self.node),
            false => self.versions.root(version).ok_or_else(|| format!("no version {version}")),
        }
    }

    /// An object of one version in another.
    fn convert<'a>(&self, object: Cow<'a, Value>, from: &str, to: &str) -> Result<Cow<'a, Value>, String> {
        if from == to { Ok(object) } else { self.versions.convert(&object, to).map(Cow::Owned) }
    }
}

/// Takes away what the manager applied the last time, applies no more, and nobody else owns.
fn prune<N: Node, V: Versions<Node = N>>(
    forms: &Forms<N, V>,
    merged: Value,
    (version, last): (&str, &Set),
    managed: &[(&str, Set)],
) -> Result<Value, String> {
    let named = |node: N, value: &Value| with_parents(node, &claimed(node, value));
    let without = |node: N, value: &Value, fields: &Set| {
        let mut value = value.clone();
        remove(node, &mut value, fields);
        value
    };
    let merged = forms
        .convert(Cow::Owned(merged), forms.own, version)
        .map_err(|why| format!("failed to convert merged object to last applied version: {why}"))?;
    let node = forms.root(version)?;
    let (last, present) = (with_parents(node, last), named(node, &merged));
    let mut pruned = without(node, &merged, &last);
    let (mut whole, mut at) = (Cow::Borrowed(&*merged), version);
    for (version, managed) in managed {
        let failed = |which| {
            move |why| {
                format!(
                    "failed add back owned items: failed to convert {which} object at version {version}: {why}"
                )
            }
        };
        whole = forms.convert(whole, at, version).map_err(failed("merged"))?;
        let reduced = forms.convert(Cow::Owned(pruned), at, version).map_err(failed("pruned"))?;
        let node = forms.root(version)?;
        let mut kept = with_parents(node, managed);
        kept.add(&named(node, &reduced));
        let mut unowned = if *version == at { present.clone() } else { named(node, &whole) };
        unowned.subtract(&kept);
        pruned = without(node, &whole, &unowned);
        at = version;
    }
    let pruned = forms.convert(Cow::Owned(pruned), at, version).map_err(|why| {
        format!(
            "failed add back dangling items: failed to convert pruned object to last applied version: {why}"
        )
    })?;
    let mut gone = present;
    gone.subtract(&named(node, &pruned));
    let pruned = without(node, &merged, &gone.intersection(&last));
    forms.convert(Cow::Owned(pruned), version, forms.own).map(Cow::into_owned)
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
