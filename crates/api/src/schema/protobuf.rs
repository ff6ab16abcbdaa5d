//! Kubernetes' protobuf form of objects, which typed Go clients (some of kubectl's commands) send.
//!
//! `k8s\0`, then a `runtime.Unknown` that names the kind and holds its message. A message lacks `apiVersion` and `kind`; Go's
//! encoder writes the zero values of plain fields, which are left out here as Go's JSON leaves them out.

use coxswain_meta::json::{Map, Number, Value};

use super::{Alternative, Field, Type, TypeRef, by_gvk};
use crate::{base64, time};

pub(super) const MAGIC: &[u8] = b"k8s\0";
const DEEPEST: usize = 64;

/// Decodes an enveloped object of a built-in kind. The error is a text for a 400.
pub fn decode(bytes: &[u8]) -> Result<Value, String> {
    let Envelope { api_version, kind, raw } = open(bytes)?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    // The options of a deletion go by the group of what is deleted, a custom one too.
    let options = || (kind == "DeleteOptions").then(|| by_gvk("", "v1", &kind)).flatten();
    let type_ref = by_gvk(group, version, &kind)
        .or_else(options)
        .ok_or_else(|| format!("no kind \"{kind}\" is registered for version \"{api_version}\""))?;
    let mut object = decode_message(raw, type_ref)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}

struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

fn open(bytes: &[u8]) -> Result<Envelope<'_>, String> {
    let envelope = bytes
        .strip_prefix(MAGIC)
        .ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
    let mut out = Envelope { api_version: String::new(), kind: String::new(), raw: b"" };
    for field in fields(envelope) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => out.api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => out.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(message)) => out.raw = message,
            _ => {}
        }
    }
    Ok(out)
}

/// The message in an envelope.
#[cfg(test)]
pub(super) fn raw(bytes: &[u8]) -> Result<&[u8], String> {
    open(bytes).map(|envelope| envelope.raw)
}

/// Decodes a message without its envelope.
pub fn decode_message(bytes: &[u8], type_ref: TypeRef) -> Result<Value, String> {
    let mut object = Map::new();
    message(bytes, type_ref, &[], &mut object, 0)?;
    Ok(Value::Object(object))
}

/// A value as it lies on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order; ends after an error.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| "unexpected EOF".to_owned()))
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let key = varint(bytes)?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => Wire::Fixed64(u64::from_le_bytes(*bytes.split_off(..8)?.first_chunk()?)),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(bytes.split_off(..length)?)
        }
        5 => Wire::Fixed32(u32::from_le_bytes(*bytes.split_off(..4)?.first_chunk()?)),
        _ => return None,
    };
    Some((key >> 3, wire))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "string field contains invalid UTF-8".to_owned())
}

/// Decodes a message into the fields of `target` whose numbers begin with `prefix`.
fn message(bytes: &[u8], target: TypeRef, prefix: &[u8], out: &mut Map, depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err("exceeded max depth".into());
    }
    for entry in fields(bytes) {
        let (number, wire) = entry?;
        let Ok(number) = u8::try_from(number) else { continue };
        let path = [prefix, &[number]].concat();
        let Some(field) = target.fields().iter().find(|f| f.numbers.starts_with(&path)) else { continue };
        let inlined = field.numbers.get(path.len()).is_some_and(|next| *next != 0);
        match wire {
            Wire::Bytes(inner) if inlined => message(inner, target, &path, out, depth + 1)?,
            _ => insert(field, wire, out, depth)?,
        }
    }
    Ok(())
}

fn insert(field: &Field, wire: Wire<'_>, out: &mut Map, depth: usize) -> Result<(), String> {
    match &field.ty {
        Type::List(inner) => {
            let list = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = list {
                append(inner, wire, items, depth)?;
            }
        }
        Type::Map(inner) => {
            let Wire::Bytes(entry) = wire else { return Ok(()) };
            let (key, value) = map_entry(entry, inner, depth)?;
            let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
        }
        ty => {
            let value = single(ty, wire, depth)?.filter(|v| !(field.omits_zero && is_zero(v)));
            out.extend(value.map(|v| (field.name.to_owned(), v)));
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(value) => !value,
        _ => false,
    }
}

/// A number as Go writes it: whole ones without a point.
#[allow(clippy::cast_possible_truncation, reason = "whole and small enough")]
fn number(value: f64) -> Option<Value> {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => Some(Value::from(value as i64)),
        false => Number::from_f64(value).map(Value::Number),
    }
}

/// One item of a repeated field, or several packed numbers.
fn append(inner: &Type, wire: Wire<'_>, items: &mut Vec<Value>, depth: usize) -> Result<(), String> {
    if let (Type::Int32 | Type::Int64 | Type::Bool, Wire::Bytes(mut packed)) = (inner, wire) {
        while !packed.is_empty() {
            let n = varint(&mut packed).ok_or("unexpected EOF")?;
            items.extend(single(inner, Wire::Varint(n), depth)?);
        }
        return Ok(());
    }
    items.extend(single(inner, wire, depth)?);
    Ok(())
}

fn map_entry(entry: &[u8], inner: &Type, depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut value) = (String::new(), None);
    for field in fields(entry) {
        match (field?, inner) {
            ((1, Wire::Bytes(text)), _) => key = utf8(text)?,
            ((2, Wire::Bytes(list)), Type::List(item)) => {
                // Lists in maps (`ExtraValue`) are messages whose only field is the items.
                let mut items = Vec::new();
                for field in fields(list) {
                    append(item, field?.1, &mut items, depth + 1)?;
                }
                value = Some(Value::Array(items));
            }
            ((2, wire), _) => value = single(inner, wire, depth + 1)?,
            _ => {}
        }
    }
    let absent = if *inner == Type::String { "".into() } else { Value::Null };
    Ok((key, value.unwrap_or(absent)))
}

fn single(ty: &Type, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    Ok(match (ty, wire) {
        (Type::String, Wire::Bytes(text)) => Some(utf8(text)?.into()),
        (Type::Bytes, Wire::Bytes(bytes)) => Some(base64::encode(bytes).into()),
        (Type::Int32 | Type::Int64, Wire::Varint(n)) => Some(n.cast_signed().into()),
        (Type::Bool, Wire::Varint(n)) => Some((n != 0).into()),
        (Type::Number, Wire::Fixed64(bits)) => number(f64::from_bits(bits)),
        (Type::Number, Wire::Fixed32(bits)) => number(f32::from_bits(bits).into()),
        (Type::Ref(target), Wire::Bytes(bytes)) => {
            let mut map = Map::new();
            message(bytes, *target, &[], &mut map, depth + 1)?;
            Some(Value::Object(map))
        }
        (Type::Quantity, Wire::Bytes(bytes)) => {
            let text = inner_bytes(bytes, 1)?;
            Some(if text.is_empty() { "0".into() } else { utf8(text)?.into() })
        }
        (Type::IntOrString, Wire::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (Type::Time | Type::MicroTime, Wire::Bytes(bytes)) => timestamp(bytes, *ty == Type::MicroTime)?,
        (Type::Any, Wire::Bytes(bytes)) => any(inner_bytes(bytes, 1)?)?,
        (Type::Either(alternative, target), Wire::Bytes(bytes)) => {
            either(bytes, *alternative, *target, depth)?
        }
        _ => return Err(format!("proto: wrong wireType for a field of type {ty:?}")),
    })
}

/// The last length-delimited field of that number.
fn inner_bytes(bytes: &[u8], number: u64) -> Result<&[u8], String> {
    let mut found = &b""[..];
    for field in fields(bytes) {
        if let (n, Wire::Bytes(inner)) = field?
            && n == number
        {
            found = inner;
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number) = (false, 0);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(n)) => number = n.cast_signed(),
            _ => {}
        }
    }
    Ok(if is_text { utf8(inner_bytes(bytes, 3)?)?.into() } else { number.into() })
}

/// A time; none for Go's zero time.
fn timestamp(bytes: &[u8], micro: bool) -> Result<Option<Value>, String> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(bytes) {
        match field? {
            (1, Wire::Varint(n)) => seconds = n.cast_signed(),
            (2, Wire::Varint(n)) => nanos = n,
            _ => {}
        }
    }
    if seconds == 0 && nanos == 0 {
        return Ok(None);
    }
    let text = time::format(seconds);
    let text = if micro { text.replace('Z', &format!(".{:06}Z", nanos / 1000)) } else { text };
    Ok(Some(text.into()))
}

/// A schema, or its alternative; their numbers differ from one union to the next.
fn either(
    bytes: &[u8],
    alternative: Alternative,
    target: TypeRef,
    depth: usize,
) -> Result<Option<Value>, String> {
    let schema = if alternative == Alternative::Bool { 2 } else { 1 };
    let (mut allows, mut items, mut found) = (false, Vec::new(), None);
    for field in fields(bytes) {
        match field? {
            (n, Wire::Bytes(_)) if n == schema => {
                found = single(&Type::Ref(target), Wire::Bytes(inner_bytes(bytes, n)?), depth)?;
            }
            (2, wire) if alternative == Alternative::Array => {
                items.extend(single(&Type::Ref(target), wire, depth)?);
            }
            (2, wire) => items.extend(single(&Type::String, wire, depth)?),
            (1, Wire::Varint(n)) => allows = n != 0,
            _ => {}
        }
    }
    Ok(Some(match (found, alternative) {
        (Some(schema), _) => schema,
        (None, Alternative::Bool) => allows.into(),
        (None, _) => items.into(),
    }))
}

/// Raw JSON, or an object in the protobuf form again.
fn any(raw: &[u8]) -> Result<Option<Value>, String> {
    if raw.is_empty() {
        return Ok(None);
    }
    if raw.starts_with(MAGIC) {
        return decode(raw).map(Some);
    }
    serde_json::from_slice(raw).map(Some).map_err(|e| e.to_string())
}
