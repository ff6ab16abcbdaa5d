//! JSON documents: what every object is between the bytes that came and the bytes that are kept.
//!
//! The names and the manner are those of `serde_json`, whose reader, numbers and errors these are; what differs is how members
//! are kept ([`Map`]). A write of an object reads, compares, copies and drops some of these, so that theirs was the largest
//! share of its cost.

mod convert;
mod map;
mod write;

use std::borrow::Cow;
use std::ops::{Index, IndexMut};

pub use convert::{from_value, to_value};
pub use map::{Entry, Map, Text, head};
pub use serde_json::Number;
pub use write::{write, write_escaped, write_members, write_name, write_text};

/// A JSON value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    String(Text),
    /// A list.
    Array(Vec<Value>),
    /// An object.
    Object(Map),
    /// An object that is still the text it was, for all that is done with it is to write it again. Nobody finds members in it.
    Raw(Raw),
}

/// The text of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw(Box<str>);

impl Raw {
    /// What was just written, by whoever writes objects.
    pub fn written(text: String) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The object.
    pub fn read(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl Value {
    /// A member of an object or an item of a list.
    #[inline]
    pub fn get(&self, at: impl At) -> Option<&Self> {
        at.in_ref(self)
    }

    /// A member of an object or an item of a list, to change.
    #[inline]
    pub fn get_mut(&mut self, at: impl At) -> Option<&mut Self> {
        at.in_mut(self)
    }

    /// Leaves null.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Its text if it has not been read.
    pub fn as_raw(&self) -> Option<&Raw> {
        match self {
            Self::Raw(raw) => Some(raw),
            _ => None,
        }
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is true or false.
    pub fn is_boolean(&self) -> bool {
        matches!(self, Self::Bool(_))
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(_))
    }

    /// Whether it is a whole number that fits.
    pub fn is_i64(&self) -> bool {
        self.as_i64().is_some()
    }

    /// Whether it is a number with a fraction or an exponent.
    pub fn is_f64(&self) -> bool {
        self.as_number().is_some_and(Number::is_f64)
    }

    /// Whether it is a text.
    pub fn is_string(&self) -> bool {
        matches!(self, Self::String(_))
    }

    /// Whether it is a list.
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// Whether it is an object.
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    /// What it says if it is true or false.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Its number if it is one.
    pub fn as_number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Its number if it is one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        self.as_number().and_then(Number::as_i64)
    }

    /// Its number if it is one that fits.
    pub fn as_u64(&self) -> Option<u64> {
        self.as_number().and_then(Number::as_u64)
    }

    /// Its number if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        self.as_number().and_then(Number::as_f64)
    }

    /// Its text if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Its items if it is a list.
    pub fn as_array(&self) -> Option<&Vec<Self>> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Its items if it is a list, to change.
    pub fn as_array_mut(&mut self) -> Option<&mut Vec<Self>> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Its members if it is an object.
    pub fn as_object(&self) -> Option<&Map> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// Its members if it is an object, to change.
    pub fn as_object_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// What a JSON pointer (RFC 6901) leads to.
    pub fn pointer(&self, pointer: &str) -> Option<&Self> {
        steps(pointer)?.try_fold(self, |value, step| match value {
            Self::Object(members) => members.get(&step),
            Self::Array(items) => items.get(place(&step)?),
            _ => None,
        })
    }

    /// What a JSON pointer (RFC 6901) leads to, to change.
    pub fn pointer_mut(&mut self, pointer: &str) -> Option<&mut Self> {
        steps(pointer)?.try_fold(self, |value, step| match value {
            Self::Object(members) => members.get_mut(&step),
            Self::Array(items) => items.get_mut(place(&step)?),
            _ => None,
        })
    }
}

fn steps(pointer: &str) -> Option<impl Iterator<Item = Cow<'_, str>>> {
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return None;
    }
    Some(pointer.split('/').skip(1).map(|step| match step.contains('~') {
        true => step.replace("~1", "/").replace("~0", "~").into(),
        false => step.into(),
    }))
}

/// The place in a list that a step of a pointer names.
fn place(step: &str) -> Option<usize> {
    let is_plain = step == "0" || !step.starts_with(['0', '+']);
    step.parse().ok().filter(|_| is_plain)
}

/// A name in an object or a place in a list.
pub trait At {
    /// What is there.
    fn in_ref<'a>(&self, value: &'a Value) -> Option<&'a Value>;
    /// What is there, to change.
    fn in_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value>;
    /// What is there, made where a member is missing.
    ///
    /// # Panics
    ///
    /// Where it is of another kind, or there is no such item.
    fn made_in<'a>(&self, value: &'a mut Value) -> &'a mut Value;
}

impl At for str {
    #[inline]
    fn in_ref<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        match value {
            Value::Object(members) => members.get(self),
            _ => None,
        }
    }

    #[inline]
    fn in_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        match value {
            Value::Object(members) => members.get_mut(self),
            _ => None,
        }
    }

    fn made_in<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        match value {
            Value::Object(members) => members.entry(self).or_insert(Value::Null),
            _ => panic!("no object has a member {self:?}: {value}"),
        }
    }
}

impl At for usize {
    fn in_ref<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        value.as_array().and_then(|items| items.get(*self))
    }

    fn in_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        value.as_array_mut().and_then(|items| items.get_mut(*self))
    }

    fn made_in<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        match value {
            Value::Array(items) => &mut items[*self],
            _ => panic!("no list has an item {self}: {value}"),
        }
    }
}

impl At for String {
    fn in_ref<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.as_str().in_ref(value)
    }

    fn in_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        self.as_str().in_mut(value)
    }

    fn made_in<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        self.as_str().made_in(value)
    }
}

impl<A: At + ?Sized> At for &A {
    #[inline]
    fn in_ref<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        (**self).in_ref(value)
    }

    #[inline]
    fn in_mut<'a>(&self, value: &'a mut Value) -> Option<&'a mut Value> {
        (**self).in_mut(value)
    }

    fn made_in<'a>(&self, value: &'a mut Value) -> &'a mut Value {
        (**self).made_in(value)
    }
}

/// What is missing reads as null.
impl<A: At> Index<A> for Value {
    type Output = Self;
    #[inline]
    fn index(&self, at: A) -> &Self {
        at.in_ref(self).unwrap_or(&Self::Null)
    }
}

/// A missing member is made.
impl<A: At> IndexMut<A> for Value {
    fn index_mut(&mut self, at: A) -> &mut Self {
        at.made_in(self)
    }
}

/// A value written as JSON is; names and values may be expressions, what is no single token as a name in parentheses.
#[macro_export]
macro_rules! json {
    (@items [$($done:expr,)*]) => {
        ::std::vec![$($done),*]
    };
    (@items [$($done:expr,)*] null $(, $($rest:tt)*)?) => {
        $crate::json!(@items [$($done,)* $crate::json::Value::Null,] $($($rest)*)?)
    };
    (@items [$($done:expr,)*] [$($inner:tt)*] $(, $($rest:tt)*)?) => {
        $crate::json!(@items [$($done,)* $crate::json!([$($inner)*]),] $($($rest)*)?)
    };
    (@items [$($done:expr,)*] {$($inner:tt)*} $(, $($rest:tt)*)?) => {
        $crate::json!(@items [$($done,)* $crate::json!({$($inner)*}),] $($($rest)*)?)
    };
    (@items [$($done:expr,)*] $item:expr $(, $($rest:tt)*)?) => {
        $crate::json!(@items [$($done,)* $crate::json!($item),] $($($rest)*)?)
    };
    (@members $object:ident) => {};
    (@members $object:ident $name:tt : null $(, $($rest:tt)*)?) => {
        $object.insert($name, $crate::json::Value::Null);
        $crate::json!(@members $object $($($rest)*)?)
    };
    (@members $object:ident $name:tt : [$($inner:tt)*] $(, $($rest:tt)*)?) => {
        $object.insert($name, $crate::json!([$($inner)*]));
        $crate::json!(@members $object $($($rest)*)?)
    };
    (@members $object:ident $name:tt : {$($inner:tt)*} $(, $($rest:tt)*)?) => {
        $object.insert($name, $crate::json!({$($inner)*}));
        $crate::json!(@members $object $($($rest)*)?)
    };
    (@members $object:ident $name:tt : $value:expr $(, $($rest:tt)*)?) => {
        $object.insert($name, $crate::json!($value));
        $crate::json!(@members $object $($($rest)*)?)
    };
    (null) => {
        $crate::json::Value::Null
    };
    ([$($items:tt)*]) => {
        $crate::json::Value::Array($crate::json!(@items [] $($items)*))
    };
    ({}) => {
        $crate::json::Value::Object($crate::json::Map::new())
    };
    ({$($members:tt)*}) => {{
        let mut object = $crate::json::Map::new();
        $crate::json!(@members object $($members)*);
        $crate::json::Value::Object(object)
    }};
    ($value:expr) => {
        $crate::json::to_value(&$value).expect("what is written into JSON can be")
    };
}
pub use crate::json;
