//! Checking a document against its type, as Go's decoder would find it, and bringing it into stored form.

use coxswain_meta::Quantity;
use coxswain_meta::golang::json_kind;
use coxswain_meta::json::{Map, Value};

use super::{Alternative, Field, Type, TypeRef};

/// The result of checking a document against a type.
#[derive(Debug, Default)]
pub struct Decoded {
    /// `unknown field "spec.foo"`, in document order.
    pub unknown: Vec<String>,
    /// Wrong JSON types and malformed values, as Go's decoder words them; upstream reports the first.
    pub errors: Vec<String>,
}

/// Checks JSON types and finds unknown fields.
pub fn check(object: &Value, type_ref: TypeRef) -> Decoded {
    Checker::run(object, type_ref).out
}

/// Takes out of `duplicates` what stands where Go's types decode themselves, or in fields that are `unknown`: nobody notices.
pub fn forget_unnoticed(duplicates: &mut Vec<String>, object: &Value, type_ref: TypeRef, unknown: &[String]) {
    if duplicates.is_empty() {
        return;
    }
    let own = Checker::run(object, type_ref).own_decoders;
    duplicates.retain(|duplicate| {
        let place = place_of(duplicate);
        let within = |outer: &str| {
            place.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if unknown.iter().any(|unknown| within(place_of(unknown))) {
            return false;
        }
        !own.iter()
            .any(|own| place.strip_prefix(own.as_str()).is_some_and(|rest| rest.starts_with(['.', '['])))
    });
}

/// The place that a fault names in quotes.
fn place_of(fault: &str) -> &str {
    fault.split('"').nth(1).unwrap_or_default()
}

enum Step<'a> {
    Name(&'a str),
    /// A field, with the structs that embed it.
    Field(&'a str, &'static Field),
    Index(usize),
    /// A map key: part of the place, but no field of the Go struct.
    Key(&'a str),
}

struct Checker<'a> {
    out: Decoded,
    /// Places of values that decode themselves.
    own_decoders: Vec<String>,
    /// Whether such a value is being decoded: nobody hears of unknown fields in it.
    unnoticed: bool,
    path: Vec<Step<'a>>,
    /// The struct whose field is being decoded.
    owner: Option<TypeRef>,
}

impl<'a> Checker<'a> {
    fn run(object: &'a Value, type_ref: TypeRef) -> Self {
        let mut checker = Self {
            out: Decoded::default(),
            own_decoders: Vec::new(),
            unnoticed: false,
            path: Vec::new(),
            owner: None,
        };
        checker.value(object, &Type::Ref(type_ref));
        checker
    }

    fn value(&mut self, value: &'a Value, ty: &Type) {
        match (ty, value) {
            (_, Value::Null) => {}
            (Type::Any | Type::Either(..), Value::Object(_) | Value::Array(_)) => {
                self.own_decoders.push(self.place());
                let outer = std::mem::replace(&mut self.unnoticed, true);
                match (ty, value) {
                    (Type::Either(_, target), Value::Object(map)) => self.fields(map, *target),
                    (Type::Either(Alternative::Array, target), Value::Array(items)) => {
                        for (i, item) in items.iter().enumerate() {
                            self.step(Step::Index(i), item, &Type::Ref(*target));
                        }
                    }
                    _ => {}
                }
                self.unnoticed = outer;
            }
            (Type::Any | Type::Either(..), _) => {}
            (Type::Ref(target), Value::Object(map)) => self.fields(map, *target),
            (Type::List(inner), Value::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.step(Step::Index(i), item, inner);
                }
            }
            (Type::Map(inner), Value::Object(map)) => {
                for (key, item) in map {
                    self.step(Step::Key(key), item, inner);
                }
            }
            _ => {
                if let Err(error) = self.scalar(value, ty) {
                    self.out.errors.push(error);
                }
            }
        }
    }

    fn step(&mut self, step: Step<'a>, value: &'a Value, ty: &Type) {
        self.path.push(step);
        self.value(value, ty);
        self.path.pop();
    }

    fn fields(&mut self, map: &'a Map, target: TypeRef) {
        let outer = self.owner.replace(target);
        for (name, value) in map {
            match target.get(name) {
                Some(field) => self.step(Step::Field(name, field), value, &field.ty),
                None if self.unnoticed => {}
                None => {
                    self.path.push(Step::Name(name));
                    let unknown = format!("unknown field \"{}\"", self.place());
                    self.path.pop();
                    self.out.unknown.push(unknown);
                }
            }
        }
        self.owner = outer;
    }

    fn scalar(&self, value: &Value, ty: &Type) -> Result<(), String> {
        match (ty, value) {
            (Type::String, Value::String(_))
            | (Type::Number, Value::Number(_))
            | (Type::Bool, Value::Bool(_))
            | (Type::IntOrString, Value::String(_)) => Ok(()),
            (Type::Int32 | Type::IntOrString, Value::Number(n)) => {
                let fits = n.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
                if fits { Ok(()) } else { Err(self.mismatch(&format!("number {n}"), "int32", ty)) }
            }
            (Type::Int64, Value::Number(n)) if n.is_i64() => Ok(()),
            (Type::Int64, Value::Number(n)) => Err(self.mismatch(&format!("number {n}"), "int64", ty)),
            (Type::Bytes, Value::String(text)) => crate::base64::check(text),
            // Go takes a list of numbers for bytes too.
            (Type::Bytes, Value::Array(bytes)) => {
                match bytes.iter().find(|byte| byte.as_u64().is_none_or(|byte| byte > 255)) {
                    None => Ok(()),
                    Some(Value::Number(n)) => Err(self.mismatch(&format!("number {n}"), "uint8", ty)),
                    Some(other) => Err(self.mismatch(json_kind(other), "uint8", ty)),
                }
            }
            (Type::Quantity, _) => Quantity::from_json(value).map(|_| ()).map_err(|e| e.to_string()),
            (Type::Time, Value::String(text)) => time(text, "2006-01-02T15:04:05Z07:00"),
            (Type::MicroTime, Value::String(text)) => time(text, "2006-01-02T15:04:05.000000Z07:00"),
            _ => Err(self.mismatch(json_kind(value), &go_type(ty), ty)),
        }
    }

    fn mismatch(&self, found: &str, want: &str, ty: &Type) -> String {
        let Some(owner) = self.owner else {
            return format!("json: cannot unmarshal {found} into Go value of type {want}");
        };
        let mut names = Vec::new();
        for step in &self.path {
            match step {
                Step::Name(name) => names.push(*name),
                Step::Field(name, field) => {
                    names.extend(field.embedded.split('.').filter(|part| !part.is_empty()));
                    // What an object says of itself is embedded, and no part of the message.
                    if field.numbers[0] == 0 && matches!(*name, "kind" | "apiVersion") {
                        names.push("TypeMeta");
                    }
                    names.push(name);
                }
                Step::Index(_) | Step::Key(_) => {}
            }
        }
        // Types with their own decoder name what they hold, others their Go type.
        let named = match (self.path.last(), ty) {
            (_, Type::IntOrString | Type::Time | Type::MicroTime) => None,
            (Some(Step::Field(_, field)), _) => field.go_type.map(str::to_owned),
            (Some(Step::Index(_) | Step::Key(_)), _) => self.element(),
            _ => None,
        };
        let field = format!("{}.{}", owner.short_name(), names.join("."));
        let want = named.unwrap_or_else(|| want.to_owned());
        format!("json: cannot unmarshal {found} into Go struct field {field} of type {want}")
    }

    /// The Go type of the items of the list or map that is being decoded, where it has a name.
    fn element(&self) -> Option<String> {
        let field = self.path.iter().rev().find_map(|step| match step {
            Step::Field(_, field) => Some(field),
            _ => None,
        })?;
        let whole = field.go_type?;
        let inner = whole.strip_prefix("[]").or_else(|| whole.split_once(']').map(|(_, rest)| rest))?;
        Some(inner.to_owned())
    }

    fn place(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Name(name) | Step::Field(name, _) | Step::Key(name) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
                Step::Index(i) => out.push_str(&format!("[{i}]")),
            }
        }
        out
    }
}

fn go_type(ty: &Type) -> String {
    match ty {
        Type::String | Type::Time | Type::MicroTime => "string".into(),
        Type::Int32 | Type::IntOrString => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Number => "float64".into(),
        Type::Bool => "bool".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::Any => "interface {}".into(),
        Type::List(inner) => format!("[]{}", go_type(inner)),
        Type::Map(inner) => format!("map[string]{}", go_type(inner)),
        Type::Ref(target) | Type::Either(_, target) => {
            let mut parts = target.name().rsplit('.');
            let name = parts.next().unwrap_or_default();
            format!("{}.{name}", parts.next().unwrap_or_default())
        }
    }
}

/// RFC 3339; the layout is Go's name for how much of it there must be.
fn time(text: &str, layout: &str) -> Result<(), String> {
    if crate::time::parse(text).is_some() {
        return Ok(());
    }
    Err(format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{text}\" as \"2006\""))
}

/// Brings an object that passed [`check`] into the form it is stored in, as a trip through Go's types would: unknown fields,
/// nulls and zero values that Go leaves out dropped, quantities and times canonical.
pub fn normalise(object: &mut Value, type_ref: TypeRef) {
    if let Value::Object(map) = object {
        normalise_fields(map, type_ref);
    }
}

/// An object of the type that nobody has filled, as Go writes it.
pub fn zero_object(type_ref: TypeRef) -> Value {
    zero(&Type::Ref(type_ref))
}

/// The same for the value of a field.
pub fn normalise_field(value: &mut Value, field: &Field) {
    normalise_value(value, &field.ty);
}

fn normalise_fields(map: &mut Map, target: TypeRef) {
    map.retain(|name, value| {
        let Some(field) = target.get(name) else { return false };
        if value.is_null() {
            return false;
        }
        normalise_value(value, &field.ty);
        if matches!(value, Value::Array(items) if items.is_empty()) && !field.omits_zero {
            *value = Value::Null;
        }
        !is_left_out(value, field)
    });
    for field in target.always_written() {
        if !map.contains_key(field.name) {
            map.insert(field.name.to_owned(), zero(&field.ty));
        }
    }
}

/// What Go writes for a value that nobody set.
fn zero(ty: &Type) -> Value {
    match ty {
        Type::String => "".into(),
        Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => 0.into(),
        Type::Bool => false.into(),
        Type::Quantity => "0".into(),
        Type::Ref(target) => {
            let mut map = Map::new();
            normalise_fields(&mut map, *target);
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// Lists that defaults and validation see empty: whoever writes an empty one means it.
const SCALING_POLICIES: &str = "[]v2.HPAScalingPolicy";

/// Whether Go leaves the value out: zero values of most optional fields, yet never empty structs.
fn is_left_out(value: &Value, field: &Field) -> bool {
    field.omits_zero
        && !(field.name == "policies" && field.go_type == Some(SCALING_POLICIES))
        && match (&field.ty, value) {
            (Type::List(_), Value::Array(items)) => items.is_empty(),
            (Type::Map(_), Value::Object(map)) => map.is_empty(),
            (Type::String | Type::Bytes, Value::String(text)) => text.is_empty(),
            (Type::Int32 | Type::Int64, Value::Number(number)) => number.as_i64() == Some(0),
            (Type::Bool, Value::Bool(value)) => !value,
            _ => false,
        }
}

fn normalise_value(value: &mut Value, ty: &Type) {
    match (ty, value) {
        (Type::Ref(target) | Type::Either(_, target), Value::Object(map)) => normalise_fields(map, *target),
        // A null among structs is a struct that nobody filled.
        (Type::Ref(target), value @ Value::Null) => *value = zero(&Type::Ref(*target)),
        (Type::Either(Alternative::Array, target), Value::Array(items)) => {
            items.iter_mut().for_each(|item| normalise_value(item, &Type::Ref(*target)));
        }
        (Type::List(inner), Value::Array(items)) => {
            if is_plain(inner) {
                return;
            }
            for item in items {
                normalise_value(item, inner);
            }
        }
        (Type::Map(inner), Value::Object(map)) => {
            for item in map.values_mut() {
                normalise_value(item, inner);
                // Stored, no bytes are empty bytes.
                if matches!(**inner, Type::Bytes) && item.is_null() {
                    *item = "".into();
                }
            }
        }
        (Type::Number, value) => coxswain_meta::golang::whole_number(value),
        (Type::Quantity, value) if value.is_null() => *value = "0".into(),
        (Type::Quantity, value) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = quantity.to_string().into();
            }
        }
        (Type::Bytes, Value::String(text)) if !crate::base64::is_canonical(text) => {
            *text = crate::base64::encode(&crate::base64::decode(text)).into();
        }
        (Type::Bytes, value @ Value::Array(_)) => {
            let bytes = value.as_array().into_iter().flatten();
            let bytes = bytes.filter_map(Value::as_u64).filter_map(|byte| u8::try_from(byte).ok());
            *value = crate::base64::encode(&bytes.collect::<Vec<u8>>()).into();
        }
        (Type::Time, Value::String(text)) => {
            if let Some(seconds) = crate::time::parse(text) {
                *text = crate::time::format(seconds).into();
            }
        }
        // A null in a map of strings is the empty string to Go.
        (Type::String, value @ Value::Null) => *value = "".into(),
        _ => {}
    }
}

fn is_plain(ty: &Type) -> bool {
    matches!(ty, Type::Int32 | Type::Int64 | Type::Bool | Type::Any)
}
