//! Parsing of JSON and YAML that notices repeated keys.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;

use coxswain_meta::json::{Map, Number, Text, Value};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Of more than this nobody is told.
pub const MOST_FAULTS: usize = 100;

/// Parses JSON; the second part is `duplicate field "spec.foo"` for each repeated key (the last value wins). The error is Go's
/// text of a syntax error, or as near as can be.
pub fn parse_json_strict(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let notes = Notes::default();
    // Whether it is UTF-8 is asked once, or else at every text, for the place of the fault.
    let value = match std::str::from_utf8(bytes) {
        Ok(text) => all_of(serde_json::Deserializer::from_str(text), &notes),
        Err(_) => all_of(serde_json::Deserializer::from_slice(bytes), &notes),
    };
    match value {
        Ok(value) => Ok((value, notes.faults.into_inner())),
        Err(error) => Err(syntax_error(&error, bytes)),
    }
}

fn all_of<'de, R: serde_json::de::Read<'de>>(
    mut deserializer: serde_json::Deserializer<R>,
    notes: &Notes,
) -> serde_json::Result<Value> {
    let value = notes.seed().deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Puts unknown and repeated fields of a JSON text into the order in which they stand there.
pub fn sort_by_place(faults: &mut [String], text: &[u8]) {
    if faults.len() < 2 {
        return;
    }
    let sought = faults.iter().map(String::as_str).collect();
    let notes = Notes { sought: Some(sought), ..Notes::default() };
    // Whatever is wrong with the text, a fault was read before it.
    let _ = notes.seed().deserialize(&mut serde_json::Deserializer::from_slice(text));
    let found = notes.faults.into_inner();
    let places: HashMap<_, _> = found.iter().enumerate().rev().map(|(at, fault)| (fault, at)).collect();
    faults.sort_by_cached_key(|fault| places.get(fault).copied().unwrap_or(usize::MAX));
}

/// What is nested deeper is refused by the reader anyway; the scanner's time grows with the square of the depth.
const DEEPEST_BRACKETS: usize = 128;

/// How deep brackets are nested, those in texts among them.
fn brackets(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in bytes {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Parses YAML in the same way.
pub fn parse_yaml_strict(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    if brackets(bytes) > DEEPEST_BRACKETS {
        return Err("exceeded max depth".to_owned());
    }
    let notes = Notes::default();
    let read = notes.seed().deserialize(serde_yaml::Deserializer::from_slice(bytes));
    let value = read.map_err(|error| error.to_string())?;
    Ok((value, notes.faults.into_inner()))
}

fn syntax_error(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let line_start = bytes
        .split(|b| *b == b'\n')
        .take(error.line().saturating_sub(1))
        .map(|line| line.len() + 1)
        .sum::<usize>();
    let text =
        String::from_utf8_lossy(bytes.get(line_start + error.column().saturating_sub(1)..).unwrap_or(b""));
    match text.chars().next() {
        Some(c) if !error.to_string().starts_with("recursion") => {
            format!("invalid character {c:?} looking for beginning of value")
        }
        _ => error.to_string(),
    }
}

enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Key(Place::Root, key) => f.write_str(key),
            Place::Key(parent, key) => write!(f, "{parent}.{key}"),
            Place::Index(parent, i) => write!(f, "{parent}[{i}]"),
        }
    }
}

/// What is noticed of keys: that they are repeated, or whatever is sought.
#[derive(Default)]
struct Notes<'a> {
    sought: Option<HashSet<&'a str>>,
    faults: RefCell<Vec<String>>,
}

impl Notes<'_> {
    fn seed(&self) -> Seed<'_> {
        Seed { path: &Place::Root, notes: self }
    }

    /// Notices a key, and whether there are too many.
    fn notice(&self, path: &Place, repeated: bool) -> bool {
        if !repeated && self.sought.is_none() {
            return true;
        }
        let fault = format!("{} field \"{path}\"", if repeated { "duplicate" } else { "unknown" });
        let mut faults = self.faults.borrow_mut();
        match &self.sought {
            None if faults.len() >= MOST_FAULTS => return false,
            Some(sought) if !sought.contains(fault.as_str()) => {}
            _ => faults.push(fault),
        }
        true
    }
}

struct Seed<'a> {
    path: &'a Place<'a>,
    notes: &'a Notes<'a>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Place::Index(self.path, items.len());
            match seq.next_element_seed(Seed { path: &path, notes: self.notes })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<Text>()? {
            let path = Place::Key(self.path, &key);
            if !self.notes.notice(&path, map.contains_key(&key)) {
                return Err(A::Error::custom("too many duplicate fields"));
            }
            let value = access.next_value_seed(Seed { path: &path, notes: self.notes })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
