//! The functions and operators of expressions: upstream's table of them, read once.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::types::Type;

/// Made by `cargo xtask signatures update` from upstream's own environment; what is wrong with it ends the first test.
const TABLE: &str = include_str!("signatures.txt");
/// What expressions that write patches have besides.
const FOR_PATCHES: &str = "jsonpatch.escapeKey(string) -> string";

/// One way to call a function. Parameters that may be any type are numbered.
#[derive(Debug)]
pub struct Signature {
    /// Whether the first parameter stands before the point.
    pub method: bool,
    /// What it is called on and with.
    pub parameters: Vec<Type>,
    /// What it makes.
    pub result: Type,
    /// How many types are open.
    pub open: u32,
}

static SIGNATURES: LazyLock<HashMap<&str, Vec<Signature>>> = LazyLock::new(|| {
    let mut table: HashMap<&str, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines() {
        let (name, signature) = signature(line);
        table.entry(name).or_default().push(signature);
    }
    table
});

static PATCH_SIGNATURES: LazyLock<(&str, Vec<Signature>)> = LazyLock::new(|| {
    let (name, signature) = signature(FOR_PATCHES);
    (name, vec![signature])
});

/// The ways to call a function of this name, none if there is no such function.
pub fn of(name: &str, for_patches: bool) -> Option<&'static [Signature]> {
    if for_patches && name == PATCH_SIGNATURES.0 {
        return Some(&PATCH_SIGNATURES.1);
    }
    SIGNATURES.get(name).map(Vec::as_slice)
}

/// Every name.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    SIGNATURES.keys().copied()
}

/// Reads a line: `name(type, …) -> type`, or `.name(…)` for a method.
fn signature(line: &'static str) -> (&'static str, Signature) {
    let (call, result) = line.split_once(" -> ").expect("a result");
    let (name, parameters) = call.split_once('(').expect("parameters");
    let (name, method) = name.strip_prefix('.').map_or((name, false), |name| (name, true));
    let mut letters = Vec::new();
    let parameters = parts(parameters.strip_suffix(')').expect("an end of the parameters"));
    let parameters = parameters.into_iter().map(|text| read(text, &mut letters)).collect();
    let result = read(result, &mut letters);
    (name, Signature { method, parameters, result, open: letters.len() as u32 })
}

/// Reads a type; a letter is an open one.
pub fn read(text: &'static str, letters: &mut Vec<&'static str>) -> Type {
    if let Some((of, inner)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let mut inner = parts(inner).into_iter().map(|text| Arc::new(read(text, letters)));
        let mut next = || inner.next().expect("a part");
        return match of {
            "list" => Type::List(next()),
            "map" => Type::Map(next(), next()),
            "optional_type" => Type::Optional(next()),
            "type" => Type::Kind(next()),
            other => unreachable!("no type has such parts: {other}"),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        letter if letter.len() == 1 => {
            let at = letters.iter().position(|known| *known == letter).unwrap_or_else(|| {
                letters.push(letter);
                letters.len() - 1
            });
            Type::Open(at as u32)
        }
        name => Type::Opaque(name),
    }
}

/// The parts of a list that are not within brackets.
pub fn parts(text: &'static str) -> Vec<&'static str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}
