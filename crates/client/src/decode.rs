//! Decoding objects without what nobody reads of them: what is skipped is neither parsed into values nor kept.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::CowStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, IntoDeserializer, MapAccess,
    SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// The members of an object (or of each object of a list) that are treated otherwise than taken whole.
pub type Members = &'static [(&'static str, Part)];

/// What is taken of a member.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// Nothing.
    Nothing,
    /// All but parts of these.
    Without(Members),
    /// These only.
    Only(&'static [&'static str]),
}

impl Part {
    /// What is taken of a member of this; None for the whole.
    fn member(self, name: &str) -> Option<Self> {
        match self {
            Self::Nothing => Some(Self::Nothing),
            Self::Without(members) => {
                members.iter().find(|(member, _)| *member == name).map(|(_, part)| *part)
            }
            Self::Only(names) => (!names.contains(&name)).then_some(Self::Nothing),
        }
    }
}

/// Passes on what a part takes of `inner`, which must describe itself, as JSON does.
pub struct Parts<D> {
    inner: D,
    part: Part,
}

impl<D> Parts<D> {
    /// The part of what `inner` would give.
    pub fn new(inner: D, part: Part) -> Self {
        Self { inner, part }
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Parts<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Parts::new(visitor, self.part))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Parts::new(visitor, self.part))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, Parts::new(visitor, self.part))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// As the type's visitor; what it is given below is given in part.
impl<'de, V: Visitor<'de>> Visitor<'de> for Parts<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<V::Value, E> {
        self.inner.visit_bool(v)
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<V::Value, E> {
        self.inner.visit_i64(v)
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<V::Value, E> {
        self.inner.visit_u64(v)
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<V::Value, E> {
        self.inner.visit_f64(v)
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<V::Value, E> {
        self.inner.visit_str(v)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, v: &'de str) -> Result<V::Value, E> {
        self.inner.visit_borrowed_str(v)
    }

    fn visit_string<E: serde::de::Error>(self, v: String) -> Result<V::Value, E> {
        self.inner.visit_string(v)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Parts::new(inner, self.part))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Parts::new(inner, self.part))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Parts::new(inner, self.part))
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(PartMap { inner, part: self.part, next: None })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(inner)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Parts<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Parts::new(inner, self.part))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Parts<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Parts::new(seed, self.part))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

struct PartMap<A> {
    inner: A,
    part: Part,
    /// What is taken of the value that comes next; None for the whole.
    next: Option<Part>,
}

/// A name that is copied only where the text has it escaped.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> Result<Self, D::Error> {
        struct Reads<'de>(PhantomData<&'de str>);
        impl<'de> Visitor<'de> for Reads<'de> {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(v.to_owned())))
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, v: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(v)))
            }
        }
        inner.deserialize_str(Reads(PhantomData))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for PartMap<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(Name(name)) = self.inner.next_key()? {
            self.next = self.part.member(&name);
            if let Some(Part::Nothing) = self.next {
                self.inner.next_value::<IgnoredAny>()?;
                continue;
            }
            let name: CowStrDeserializer<'_, A::Error> = name.into_deserializer();
            return seed.deserialize(name).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match self.next.take() {
            Some(part) => self.inner.next_value_seed(Parts::new(seed, part)),
            None => self.inner.next_value_seed(seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn part<T: serde::de::DeserializeOwned>(part: Part, text: &str) -> T {
        T::deserialize(Parts::new(&mut serde_json::Deserializer::from_str(text), part)).unwrap()
    }

    #[test]
    fn what_is_not_taken_is_as_if_it_were_not_there() {
        let text = r#"{"a":{"b":[{"c":1,"d":[true]},{"d":null,"e":"\u0041"}],"\u0063":2.5},"f":-3,"g":{"h":1,"i":2}}"#;
        let wanted = Part::Without(&[
            ("a", Part::Without(&[("b", Part::Without(&[("d", Part::Nothing)])), ("c", Part::Nothing)])),
            ("g", Part::Only(&["i"])),
        ]);
        let left = json!({ "a": { "b": [{ "c": 1 }, { "e": "A" }] }, "f": -3, "g": { "i": 2 } });
        assert_eq!(part::<Value>(wanted, text), left);
        assert_eq!(part::<Value>(Part::Without(&[]), text), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_typed_object_is_read_the_same_way() {
        let text = r#"{"metadata":{"name":"a","managedFields":[{"manager":"m"}]},
            "spec":{"containers":[{"name":"c","env":[{"name":"A"}],"ports":[{"containerPort":80}]}]},"status":null}"#;
        let wanted = Part::Without(&[
            ("metadata", Part::Without(&[("managedFields", Part::Nothing)])),
            ("spec", Part::Without(&[("containers", Part::Without(&[("env", Part::Nothing)]))])),
            ("status", Part::Without(&[("phase", Part::Nothing)])),
        ]);
        let left = json!({ "metadata": { "name": "a" },
            "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }] }] } });
        assert_eq!(part::<Pod>(wanted, text), serde_json::from_value::<Pod>(left).unwrap());
    }
}
