//! Walks over typed values: the fields they have, what differs between two, and their merge.

use std::collections::{BTreeMap, BTreeSet};

use crate::json::{Map, Value};

use super::{Node, Relation, Set};
use crate::json;

/// What differs between two objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Fields that are new or have another value.
    pub written: Set,
    /// Fields that are gone.
    pub removed: Set,
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty()
    }
}

/// The path element of a map's member.
fn field(name: &str) -> String {
    ["f:", name].concat()
}

/// The path element of a list's item.
pub(super) fn element<N: Node>(node: N, relation: Relation, item: &Value) -> String {
    if relation == Relation::Set {
        return format!("v:{item}");
    }
    let mut keys = node.keys();
    keys.sort_unstable_by(|(name, _), (other, _)| name.cmp(other));
    let keys =
        keys.iter().filter_map(|(name, default)| Some((&**name, item.get(&**name).or(default.as_ref())?)));
    let mut out = "k:".to_owned();
    json::write_members(&mut out, keys);
    out
}

pub(super) fn is_bare(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// The members or items of a value by their path elements, in order.
fn parts<N: Node>(node: N, relation: Relation, value: &Value) -> Vec<(String, N, bool, &Value)> {
    match (relation, value) {
        (Relation::Map, Value::Object(map)) => map
            .iter()
            .map(|(name, value)| {
                let member = node.member(name);
                (field(name), member.node, member.declared, value)
            })
            .collect(),
        (Relation::Set | Relation::Keyed, Value::Array(items)) => {
            items.iter().map(|item| (element(node, relation, item), node.item(), false, item)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a value at a place is owned as a whole.
pub(super) fn is_leaf<N: Node>(node: N, value: &Value) -> bool {
    match node.relation(value) {
        Relation::Atomic => true,
        Relation::Map => !value.is_object(),
        Relation::Set | Relation::Keyed => !value.is_array(),
    }
}

/// The fields that an applied configuration claims.
pub(super) fn claimed<N: Node>(node: N, value: &Value) -> Set {
    let mut set = Set::default();
    for (key, place, declared, value) in parts(node, node.relation(value), value) {
        let whole = is_leaf(place, value);
        let bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        let below = if whole { Set::default() } else { claimed(place, value) };
        set.put(key, below, whole || bare || !declared);
    }
    set
}

/// The set with every named field that leads to a member made a member itself.
pub(super) fn with_parents<N: Node>(node: N, set: &Set) -> Set {
    let mut out = Set::default();
    for key in set.0.keys().filter(|key| *key != ".") {
        let (place, named) = match key.strip_prefix("f:") {
            Some(name) => {
                let member = node.member(name);
                (member.node, member.declared)
            }
            None => (node.item(), false),
        };
        out.put(key.into(), with_parents(place, &set.below(key)), named || set.has(key));
    }
    out
}

/// What differs between two objects.
pub fn changes<N: Node>(node: N, old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    differ(node, old, new, &mut changes);
    changes
}

/// Compares two values at a place that is no leaf for either.
fn differ<N: Node>(node: N, old: &Value, new: &Value, out: &mut Changes) {
    let relation = node.relation(if new.is_null() { old } else { new });
    if let (Relation::Map, Value::Object(before), Value::Object(after)) = (relation, old, new) {
        // Most members of two states are equal: no path element is made for them.
        for (name, value) in after {
            let previous = before.get(name);
            if previous != Some(value) {
                member(node.member(name).node, field(name), previous, Some(value), out);
            }
        }
        for (name, value) in before.iter().filter(|(name, _)| !after.contains_key(name)) {
            member(node.member(name).node, field(name), Some(value), None, out);
        }
        return;
    }
    let mut before: BTreeMap<String, &Value> = BTreeMap::new();
    before.extend(parts(node, relation, old).into_iter().map(|(key, _, _, value)| (key, value)));
    let mut seen = BTreeSet::new();
    for (key, place, _, value) in parts(node, relation, new) {
        let previous = before.get(&key).copied();
        if seen.insert(key.clone()) && previous != Some(value) {
            member(place, key, previous, Some(value), out);
        }
    }
    for (key, place, _, value) in parts(node, relation, old) {
        if !seen.contains(&key) {
            member(place, key, Some(value), None, out);
        }
    }
}

/// Compares the values of one path element, which differ.
fn member<N: Node>(node: N, key: String, old: Option<&Value>, new: Option<&Value>, out: &mut Changes) {
    let leaf = |value: Option<&Value>| value.is_none_or(|value| is_leaf(node, value) || is_bare(value));
    match (old, new) {
        (Some(old), Some(new)) if !(leaf(Some(old)) && leaf(Some(new))) => {
            let mut below = Changes::default();
            let (before, after) = (!is_leaf(node, old), !is_leaf(node, new));
            differ(
                node,
                if before { old } else { &Value::Null },
                if after { new } else { &Value::Null },
                &mut below,
            );
            out.removed.put(key.clone(), below.removed, false);
            out.written.put(key, below.written, before != after && !old.is_null() && !new.is_null());
        }
        (Some(_), Some(_)) => out.written.put(key, Set::default(), true),
        (None, Some(new)) => out.written.put(key, all(node, new), true),
        (Some(old), None) => out.removed.put(key, all(node, old), true),
        (None, None) => {}
    }
}

/// Every path of a value, the inner ones too.
fn all<N: Node>(node: N, value: &Value) -> Set {
    let mut set = Set::default();
    if !is_leaf(node, value) {
        for (key, place, _, value) in parts(node, node.relation(value), value) {
            set.put(key, all(place, value), true);
        }
    }
    set
}

/// The object that an applied configuration makes of the live one: what it says wins, what it does not say stays.
pub fn merge<N: Node>(node: N, live: &mut Value, applied: &Value) {
    // Nothing where there is a list or a map says nothing of what is in it.
    if applied.is_null() && !is_leaf(node, live) {
        return;
    }
    if is_leaf(node, applied) || is_leaf(node, live) {
        *live = applied.clone();
        return;
    }
    let relation = node.relation(applied);
    if let (Value::Object(live), Value::Object(applied)) = (&mut *live, applied) {
        for (name, value) in applied {
            match live.get_mut(name) {
                Some(old) => merge(node.member(name).node, old, value),
                None => {
                    live.insert(name, value.clone());
                }
            }
        }
        return;
    }
    let keyed = |value: &Value| -> Vec<(String, Value)> {
        parts(node, relation, value).into_iter().map(|(key, _, _, value)| (key, value.clone())).collect()
    };
    let (mine, theirs) = (keyed(live), keyed(applied));
    *live = Value::Array(merge_items(node.item(), mine, theirs));
}

/// Items that only the live list has come as early as they can; those of both follow the applied order.
fn merge_items<N: Node>(node: N, live: Vec<(String, Value)>, applied: Vec<(String, Value)>) -> Vec<Value> {
    let wanted: BTreeSet<&String> = applied.iter().map(|(key, _)| key).collect();
    let old: BTreeMap<&String, &Value> = live.iter().map(|(key, item)| (key, item)).collect();
    let mut shared = applied.iter().map(|(key, _)| key).filter(|key| old.contains_key(key)).peekable();
    let mut out = Vec::new();
    let (mut at_live, mut at_applied) = (0, 0);
    while at_live < live.len() || at_applied < applied.len() {
        let next = applied.get(at_applied);
        if let Some((key, item)) = live.get(at_live) {
            if !wanted.contains(key) {
                out.push(item.clone());
                at_live += 1;
                continue;
            }
            let same = next.is_some_and(|(applied, _)| applied == key);
            let later = !same && next.is_some() && shared.peek().is_some_and(|shared| *shared != key);
            let done = applied[..at_applied].iter().any(|(applied, _)| applied == key);
            at_live += usize::from(same || later || done);
            if later {
                continue;
            }
        }
        let Some((key, value)) = next else { continue };
        let mut item = old.get(key).map_or_else(|| value.clone(), |item| (*item).clone());
        if old.contains_key(key) {
            merge(node, &mut item, value);
        }
        out.push(item);
        at_applied += 1;
        shared.next_if(|shared| *shared == key);
    }
    out
}

/// Takes fields out of a value; true where something is left of it.
pub(super) fn remove<N: Node>(node: N, value: &mut Value, fields: &Set) -> bool {
    let relation = node.relation(value);
    match (relation, &mut *value) {
        (Relation::Map, Value::Object(map)) => {
            for key in fields.0.keys() {
                let Some(name) = key.strip_prefix("f:") else { continue };
                let Some(inner) = map.get_mut(name) else { continue };
                let below = fields.below(key);
                let gone =
                    fields.has(key) || (!below.is_empty() && !remove(node.member(name).node, inner, &below));
                if gone {
                    map.remove(name);
                }
            }
            !map.is_empty()
        }
        (Relation::Set | Relation::Keyed, Value::Array(items)) => {
            items.retain_mut(|item| {
                let key = element(node, relation, item);
                let below = fields.below(&key);
                !fields.has(&key)
                    && (below.is_empty() || remove(node.item(), item, &below) || !item.is_object())
            });
            !items.is_empty()
        }
        _ => true,
    }
}
