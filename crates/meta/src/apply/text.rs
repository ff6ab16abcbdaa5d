//! Sets of fields that are still text: what a write does to most of them is found, and done, by reading them once.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::set::{SELF, Set, children, holds_itself};
use crate::json::{self, Map, Text, Value};

/// Whether a FieldsV1 document holds any path of a set; none where the text is no such document.
pub(super) fn holds_any(text: &str, set: &Set) -> Option<bool> {
    let mut found = false;
    read(text, Below { wanted: &set.0, found: &mut found })?;
    Some(found)
}

/// A FieldsV1 document with the paths of a set too; none where the text is no such document, or not in its order.
pub(super) fn with(text: &str, set: &Set) -> Option<With> {
    let mut out = String::with_capacity(text.len() + 256);
    match read(text, Adding { more: &set.0, itself: false, is_root: true, out: &mut out })? {
        true => Some(With::More(out)),
        false => Some(With::Same),
    }
}

/// What becomes of a document that paths are added to.
pub(super) enum With {
    /// It has them already.
    Same,
    /// Another document.
    More(String),
}

fn read<'a, S: DeserializeSeed<'a>>(text: &'a str, seed: S) -> Option<S::Value> {
    let mut document = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut document).ok()?;
    document.end().ok()?;
    Some(value)
}

/// What is wanted below a node of a document.
struct Below<'a> {
    wanted: &'a Map,
    found: &'a mut bool,
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
                    let below = Below { wanted, found: self.found };
                    *self.found |= access.next_value_seed(below)? && holds_itself(wanted);
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

/// A node of a document that is written again with more below it, and maybe itself.
struct Adding<'a> {
    more: &'a Map,
    itself: bool,
    is_root: bool,
    out: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Adding<'_> {
    /// Whether anything is new.
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl Adding<'_> {
    /// Begins a member.
    fn name(&mut self, name: &str) {
        if !self.out.ends_with('{') {
            self.out.push(',');
        }
        json::write_name(self.out, name);
    }

    fn itself(&mut self) {
        self.name(SELF);
        self.out.push_str("{}");
    }

    /// Writes a member that the document has not got.
    fn member(&mut self, name: &str, below: &Map) {
        self.name(name);
        json::write_members(self.out, below);
    }
}

impl<'de> Visitor<'de> for Adding<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a set of fields in their order")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<bool, A::Error> {
        let mut more = children(self.more).peekable();
        let (mut is_new, mut last) = (false, None::<Text>);
        self.out.push('{');
        while let Some(name) = access.next_key::<Text>()? {
            match &last {
                Some(last) if *last >= name => return Err(A::Error::custom("not in order")),
                None if self.itself && name != SELF => {
                    self.itself();
                    is_new = true;
                }
                _ => {}
            }
            while let Some((other, below)) = more.next_if(|(other, _)| **other < *name) {
                self.member(other, below);
                is_new = true;
            }
            self.name(&name);
            match more.next_if(|(other, _)| **other == *name) {
                Some((_, more)) => {
                    let below = Adding { more, itself: holds_itself(more), is_root: false, out: self.out };
                    is_new |= access.next_value_seed(below)?;
                }
                None => self.out.push_str(access.next_value::<&RawValue>()?.get()),
            }
            last = Some(name);
        }
        // A node without anything below it is itself in the set.
        if last.is_none() && !self.is_root && more.peek().is_some() {
            self.itself();
        }
        for (name, below) in more {
            self.member(name, below);
            is_new = true;
        }
        self.out.push('}');
        Ok(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::json;

    #[test]
    fn a_text_takes_up_paths_as_a_set_does() {
        let (a, b, c) =
            (json!({"f:a": {}}), json!({".": {}, "f:b": {}}), json!({"f:b": {"f:c": {}}, "f:d": {}}));
        let key = r#"k:{"name":"a\"b"}"#;
        let documents = [
            json!({}),
            a.clone(),
            json!({"f:a": a, "f:b": b}),
            json!({"f:a": b, "f:c": {}}),
            json!({"f:a": c, "f:b": {}}),
            json!({"f:a": {}, "f:b": c}),
            json!({"f:a": {(key): b}, "f:z": {(key): {}}}),
            json!({"f:a": {(key): c, "v:1": {}}, "f:z": {(key): a}}),
        ];
        for one in &documents {
            for other in &documents {
                let (set, mut sum) = (Set::from_json(other), Set::from_json(one));
                sum.add(&set);
                let (sum, text) = (sum.into_json().to_string(), one.to_string());
                match with(&text, &set).expect("a document in order") {
                    With::Same => assert_eq!(text, sum, "{other}"),
                    With::More(more) => assert_eq!((&more, text == sum), (&sum, false), "{one} {other}"),
                }
                let mut rest = Set::from_json(one);
                rest.subtract(&set);
                assert_eq!(holds_any(&text, &set), Some(rest != Set::from_json(one)), "{one} {other}");
            }
        }
        for unordered in [r#"{"f:b":{},"f:a":{}}"#, r#"{"f:a":{},"f:a":{}}"#, "[]", "{}{}", "{"] {
            assert!(with(unordered, &Set::from_json(&documents[1])).is_none(), "{unordered}");
        }
    }
}
