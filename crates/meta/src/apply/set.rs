//! Sets of fields in the form of FieldsV1 (KEP-555): `{"f:spec": {".": {}, "f:replicas": {}}}`.
//!
//! A path is in the set where its node is empty or holds `"."`. Keys begin with `f:` (member), `k:` (item by its keys) or
//! `v:` (item by its value).

use std::cmp::Ordering;

use crate::json::{Map, Value};

pub(super) const SELF: &str = ".";

/// The order of path elements in a document: items of lists by the values of their keys, all else as text.
pub fn order(a: &str, b: &str) -> Ordering {
    let item = |key: &str| -> Option<Value> {
        let value = key.strip_prefix("k:").or_else(|| key.strip_prefix("v:"))?;
        serde_json::from_str(value).ok()
    };
    match (item(a), item(b)) {
        (Some(x), Some(y)) if a[..1] == b[..1] => compare(&x, &y),
        _ => a.cmp(b),
    }
}

/// Numbers before texts before booleans; maps member by member.
fn compare(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) | Value::Raw(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let integers = a.as_i64().zip(b.as_i64()).map(|(a, b)| a.cmp(&b));
            let floats = || a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal);
            integers.unwrap_or_else(floats)
        }
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Object(a), Value::Object(b)) => {
            let pairs = a.iter().zip(b).map(|((m, x), (n, y))| m.cmp(n).then_with(|| compare(x, y)));
            pairs.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Set(pub(super) Map);

fn node(value: &Value) -> Option<&Map> {
    value.as_object()
}

pub(super) fn holds_itself(node: &Map) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

/// Writes down whether a node itself is in the set; false where nothing is left of it.
fn settle(node: &mut Map, itself: bool) -> bool {
    if node.is_empty() {
        return itself;
    }
    if itself {
        node.insert(SELF, Value::Object(Map::new()));
    }
    true
}

/// What is below a node, by path elements.
pub(super) fn children(node: &Map) -> impl Iterator<Item = (&str, &Map)> {
    node.iter().filter(|(key, _)| *key != SELF).filter_map(|(key, value)| Some((key, value.as_object()?)))
}

impl Set {
    /// The set of a FieldsV1 document.
    pub fn from_json(document: &Value) -> Self {
        let mut map = document.as_object().cloned().unwrap_or_default();
        map.remove(SELF);
        Self(map)
    }

    /// The FieldsV1 document.
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is below a child; nothing where there is no such child.
    pub(super) fn below(&self, key: &str) -> Set {
        Set(self.0.get(key).map(|child| Self::from_json(child).0).unwrap_or_default())
    }

    /// Whether a child itself is in the set.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.get(key).and_then(node).is_some_and(holds_itself)
    }

    /// Puts a child with all below it into the set.
    pub(super) fn put(&mut self, key: String, mut below: Set, itself: bool) {
        if settle(&mut below.0, itself) {
            self.0.insert(key, Value::Object(below.0));
        }
    }

    /// Adds every path of another set.
    pub fn add(&mut self, other: &Set) {
        fn below(mine: &mut Map, other: &Map) {
            for (key, theirs) in children(other) {
                match mine.get_mut(key).and_then(Value::as_object_mut) {
                    None => {
                        mine.insert(key, Value::Object(theirs.clone()));
                    }
                    Some(mine) => {
                        let itself = holds_itself(mine) || holds_itself(theirs);
                        mine.remove(SELF);
                        below(mine, theirs);
                        settle(mine, itself);
                    }
                }
            }
        }
        below(&mut self.0, &other.0);
    }

    /// Takes every path of another set out.
    pub fn subtract(&mut self, other: &Set) {
        take(&mut self.0, &other.0, false);
    }

    /// Takes every path of another set out, with all that lies below.
    pub fn subtract_trees(&mut self, other: &Set) {
        take(&mut self.0, &other.0, true);
    }

    /// The paths that both sets hold.
    pub fn intersection(&self, other: &Set) -> Set {
        fn common(mine: &Map, other: &Map) -> Map {
            let mut out = Map::new();
            for (key, theirs) in children(other) {
                let Some(mine) = mine.get(key).and_then(node) else { continue };
                let mut both = common(mine, theirs);
                if settle(&mut both, holds_itself(mine) && holds_itself(theirs)) {
                    out.insert(key, Value::Object(both));
                }
            }
            out
        }
        Set(common(&self.0, &other.0))
    }

    /// Every path in the set, as messages show it: `.spec.containers[name="c"].image`.
    pub fn paths(&self) -> Vec<String> {
        fn walk(at: &str, node: &Map, out: &mut Vec<String>) {
            for (key, below) in children(node) {
                let path = format!("{at}{}", shown(key));
                if holds_itself(below) {
                    out.push(path.clone());
                }
                walk(&path, below, out);
            }
        }
        let mut out = Vec::new();
        walk("", &self.0, &mut out);
        out
    }
}

fn take(mine: &mut Map, other: &Map, trees: bool) {
    for (key, theirs) in children(other) {
        let Some(node) = mine.get_mut(key).and_then(Value::as_object_mut) else { continue };
        let itself = holds_itself(node) && !holds_itself(theirs);
        let whole = trees && holds_itself(theirs);
        node.remove(SELF);
        take(node, theirs, trees);
        if whole || !settle(node, itself) {
            mine.remove(key);
        }
    }
}

/// A path element as messages show it.
fn shown(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        Some((_, index)) => format!("[{index}]"),
        None => key.to_owned(),
    }
}
