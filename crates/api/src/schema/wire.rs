//! Encoding objects in Kubernetes' protobuf form, byte for byte as Go's generated code does.
//!
//! Fields go out in the order of their numbers and map entries in the order of their keys; what Go holds by value is written even
//! when it is zero.

use std::fmt::Write as _;

use coxswain_meta::Quantity;
use coxswain_meta::json::Value;

use super::protobuf::MAGIC;
use super::{Alternative, Field, Type, TypeRef, by_gvk};
use crate::{base64, time};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// Encodes an object of a built-in kind with its envelope; `None` for kinds that the table does not know.
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let (api_version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let type_ref = by_gvk(group, version, kind)?;
    Some(envelope(api_version, kind, &message_field(object, type_ref)))
}

/// The number of an envelope's message, and of the items of every list.
const MESSAGE: u64 = 2;

/// An object as a message of a type, in the field that it is in envelopes and in lists alike.
pub fn message_field(object: &Value, type_ref: TypeRef) -> Vec<u8> {
    let message = encode_message(object, type_ref);
    let mut out = field_head(MESSAGE, message.len());
    out.extend(message);
    out
}

/// Wraps the field of a message: `k8s\0` and a `runtime.Unknown`.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let (head, tail) = envelope_around(api_version, kind);
    [&head, message, &tail].concat()
}

/// Wraps a message of some length: what stands before and behind it.
pub fn envelope_of(api_version: &str, kind: &str, length: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut head, tail) = envelope_around(api_version, kind);
    head.extend(field_head(MESSAGE, length));
    (head, tail)
}

fn envelope_around(api_version: &str, kind: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut head, mut tail) = (MAGIC.to_vec(), Vec::new());
    nested(&mut head, 1, |out| {
        field(out, 1, api_version.as_bytes());
        field(out, 2, kind.as_bytes());
    });
    field(&mut tail, 3, b"");
    field(&mut tail, 4, b"");
    (head, tail)
}

/// Encodes an object as a message of a type, without envelope.
pub fn encode_message(object: &Value, type_ref: TypeRef) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    message(&mut out, object, type_ref);
    out
}

/// Writes a length-delimited field.
pub fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What stands before the bytes of a length-delimited field.
pub fn field_head(number: u64, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(8);
    varint(&mut head, number << 3 | BYTES);
    varint(&mut head, length as u64);
    head
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn integer(out: &mut Vec<u8>, number: u64, n: i64) {
    varint(out, number << 3 | VARINT);
    varint(out, n.cast_unsigned());
}

/// A length-delimited field whose length is known once it is written.
fn nested(out: &mut Vec<u8>, number: u64, write: impl FnOnce(&mut Vec<u8>)) {
    varint(out, number << 3 | BYTES);
    let start = out.len();
    write(out);
    let mut length = Vec::with_capacity(4);
    varint(&mut length, (out.len() - start) as u64);
    out.splice(start..start, length);
}

fn message(out: &mut Vec<u8>, object: &Value, target: TypeRef) {
    let def = target.def();
    part(out, object, target, &def.numbered, 0);
}

/// The fields of a message, which are those of `target` whose numbers share their first `depth` places.
fn part(out: &mut Vec<u8>, object: &Value, target: TypeRef, fields: &'static [u16], depth: usize) {
    let get = |i: u16| &target.fields()[usize::from(i)];
    for group in fields.chunk_by(|a, b| get(*a).numbers[depth] == get(*b).numbers[depth]) {
        let first = get(group[0]);
        let number = u64::from(first.numbers[depth]);
        if first.numbers.get(depth + 1).is_some_and(|next| *next != 0) {
            nested(out, number, |out| part(out, object, target, group, depth + 1));
        } else {
            member(out, number, object.get(first.name).unwrap_or(&Value::Null), first);
        }
    }
}

fn member(out: &mut Vec<u8>, number: u64, value: &Value, facts: &Field) {
    match (&facts.ty, value) {
        (Type::List(inner), Value::Array(items)) => {
            items.iter().for_each(|item| single(out, number, item, inner));
        }
        (Type::Map(inner), Value::Object(map)) => {
            for (key, item) in map {
                nested(out, number, |out| {
                    field(out, 1, key.as_bytes());
                    map_value(out, item, inner);
                });
            }
        }
        (Type::List(_) | Type::Map(_), _) => {}
        (_, Value::Null) if !facts.plain => {}
        (ty, value) => single(out, number, value, ty),
    }
}

fn map_value(out: &mut Vec<u8>, value: &Value, inner: &Type) {
    match (inner, value) {
        (Type::List(item), _) => nested(out, 2, |out| {
            for value in value.as_array().into_iter().flatten() {
                single(out, 1, value, item);
            }
        }),
        (Type::Bytes, Value::Null) => {}
        (ty, value) => single(out, 2, value, ty),
    }
}

/// One value; null is Go's zero value.
fn single(out: &mut Vec<u8>, number: u64, value: &Value, ty: &Type) {
    match ty {
        Type::String => field(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Type::Bytes => field(out, number, &base64::decode(value.as_str().unwrap_or_default())),
        Type::Int32 | Type::Int64 => integer(out, number, value.as_i64().unwrap_or_default()),
        Type::Bool => integer(out, number, value.as_bool().unwrap_or_default().into()),
        Type::Number => {
            varint(out, number << 3 | FIXED64);
            out.extend_from_slice(&value.as_f64().unwrap_or_default().to_bits().to_le_bytes());
        }
        Type::Quantity => nested(out, number, |out| field(out, 1, quantity(value).as_bytes())),
        Type::IntOrString => nested(out, number, |out| {
            integer(out, 1, value.is_string().into());
            integer(out, 2, value.as_i64().unwrap_or_default());
            field(out, 3, value.as_str().unwrap_or_default().as_bytes());
        }),
        Type::Time | Type::MicroTime => nested(out, number, |out| timestamp(out, value)),
        Type::Any => nested(out, number, |out| {
            if !value.is_null() {
                field(out, 1, value.to_string().as_bytes());
            }
        }),
        Type::Ref(target) => nested(out, number, |out| message(out, value, *target)),
        Type::Either(alternative, target) => {
            nested(out, number, |out| either(out, value, *alternative, *target));
        }
        Type::List(_) | Type::Map(_) => {}
    }
}

fn quantity(value: &Value) -> String {
    match value {
        Value::String(text) => text.as_str().to_owned(),
        Value::Null => "0".into(),
        other => Quantity::from_json(other).map_or_else(|_| "0".into(), |q| q.to_string()),
    }
}

fn timestamp(out: &mut Vec<u8>, value: &Value) {
    let Some(text) = value.as_str() else { return };
    let Some(seconds) = time::parse(text) else { return };
    integer(out, 1, seconds);
    let fraction = text.split_once('.').map_or("", |(_, rest)| rest);
    let mut nanos = String::new();
    // Infallible: a String takes all.
    let _ =
        write!(nanos, "{:0<9.9}", fraction.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    integer(out, 2, nanos.parse().unwrap_or_default());
}

fn either(out: &mut Vec<u8>, value: &Value, alternative: Alternative, target: TypeRef) {
    let schema =
        |out: &mut Vec<u8>, number: u64, value: &Value| single(out, number, value, &Type::Ref(target));
    match (alternative, value) {
        (Alternative::Bool, Value::Object(_)) => {
            integer(out, 1, 1);
            schema(out, 2, value);
        }
        (Alternative::Bool, _) => integer(out, 1, value.as_bool().unwrap_or_default().into()),
        (_, Value::Object(_)) => schema(out, 1, value),
        (Alternative::Array, Value::Array(items)) => items.iter().for_each(|item| schema(out, 2, item)),
        (Alternative::Strings, Value::Array(items)) => {
            items.iter().for_each(|item| single(out, 2, item, &Type::String));
        }
        _ => {}
    }
}
