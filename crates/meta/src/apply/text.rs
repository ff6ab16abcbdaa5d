//! Sets of fields that are still text: whether a write touches them is found by reading, not by building them.

use std::fmt;

use crate::json::{Map, Value};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::set::{SELF, Set, holds_itself};

/// How many paths of a set a FieldsV1 document holds; none where the text is no such document.
pub(super) fn held(text: &str, set: &Set) -> Option<usize> {
    let mut count = 0;
    let mut document = serde_json::Deserializer::from_str(text);
    document.deserialize_map(Below { wanted: &set.0, count: &mut count }).ok()?;
    document.end().ok()?;
    Some(count)
}

/// What is wanted below a node of a document.
struct Below<'a> {
    wanted: &'a Map,
    count: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for Below<'_> {
    /// Whether the node itself is in the document.
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a set of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<bool, A::Error> {
        let (mut empty, mut itself) = (true, false);
        while let Some(key) = access.next_key_seed(Key(self.wanted))? {
            empty = false;
            match key {
                Found::Itself => {
                    access.next_value::<IgnoredAny>()?;
                    itself = true;
                }
                Found::Other => drop(access.next_value::<IgnoredAny>()?),
                Found::Wanted(wanted) => {
                    let below = Below { wanted, count: self.count };
                    if access.next_value_seed(below)? && holds_itself(wanted) {
                        *self.count += 1;
                    }
                }
            }
        }
        Ok(empty || itself)
    }
}

/// A key of a node, as it is looked up.
struct Key<'a>(&'a Map);

enum Found<'a> {
    Itself,
    Wanted(&'a Map),
    Other,
}

impl<'de, 'a> DeserializeSeed<'de> for Key<'a> {
    type Value = Found<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Key<'a> {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path element")
    }

    fn visit_str<E>(self, key: &str) -> Result<Found<'a>, E> {
        Ok(match self.0.get(key).and_then(Value::as_object) {
            _ if key == SELF => Found::Itself,
            Some(wanted) => Found::Wanted(wanted),
            None => Found::Other,
        })
    }
}
