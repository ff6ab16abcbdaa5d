//! The outline of a stored object: what selectors read, without the bulk. The store reads it of every object when it starts.

use std::fmt;

use coxswain_meta::json::{Map, Text, Value};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A part of an object.
#[derive(Clone, Copy)]
pub enum Outline {
    /// The object itself.
    Object,
    /// `metadata`: nothing selects by annotations and managers.
    Metadata,
    /// `spec`, and what is in it: nothing selects by its lists.
    Spec,
    /// A part that is kept whole.
    Whole,
}

impl Outline {
    /// The outline of an encoded object; null where it is none.
    pub fn of(bytes: &[u8]) -> Value {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        Self::Object.deserialize(&mut deserializer).unwrap_or_default()
    }

    /// What is kept of a member; nothing where it is left out.
    fn member(self, name: &str) -> Option<Self> {
        match (self, name) {
            (Self::Object, "metadata") => Some(Self::Metadata),
            (Self::Object, "spec") => Some(Self::Spec),
            (Self::Object, "data" | "binaryData") | (Self::Metadata, "managedFields" | "annotations") => None,
            (Self::Spec, _) => Some(Self::Spec),
            _ => Some(Self::Whole),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Outline {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Outline {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while matches!(self, Self::Spec) && seq.next_element::<IgnoredAny>()?.is_some() {}
        if matches!(self, Self::Spec) {
            return Ok(Value::Null);
        }
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = access.next_key::<Text>()? {
            match self.member(&name) {
                Some(part) => drop(map.insert(name, access.next_value_seed(part)?)),
                None => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        Ok(map.into())
    }
}
