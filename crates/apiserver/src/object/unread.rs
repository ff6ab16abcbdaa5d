//! A stored object as a document that is to be changed: what its managers own stays the text it is stored as
//! ([`coxswain_meta::apply`]), for most changes leave most of it as it is, and it is much to make a tree of.

use std::fmt;

use coxswain_meta::json::{Map, Text, Value};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The document of an encoded object; null where it is none.
pub fn document(bytes: &[u8]) -> Value {
    // All of it is looked at once here, where the reader would at every text.
    let Ok(text) = std::str::from_utf8(bytes) else { return Value::Null };
    let unread = Part::Object.deserialize(&mut serde_json::Deserializer::from_str(text));
    unread.or_else(|_| serde_json::from_str(text)).unwrap_or_default()
}

/// A part of an object on the way to its managers' fields.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
    Managers,
    Manager,
    Fields,
}

impl Part {
    fn member(self, name: &str) -> Option<Self> {
        match (self, name) {
            (Self::Object, "metadata") => Some(Self::Metadata),
            (Self::Metadata, "managedFields") => Some(Self::Managers),
            (Self::Manager, "fieldsV1") => Some(Self::Fields),
            _ => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::Fields => Ok(<&RawValue>::deserialize(deserializer)?.into()),
            Self::Managers => deserializer.deserialize_seq(self),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a part of an object")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Self::Manager)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = access.next_key::<Text>()? {
            let value = match self.member(&name) {
                Some(part) => access.next_value_seed(part)?,
                None => access.next_value()?,
            };
            map.insert(name, value);
        }
        Ok(map.into())
    }
}
