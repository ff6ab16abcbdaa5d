//! Schema facts of the built-in types, and decoding that checks against them.
//!
//! `schema/types.txt` is generated (`cargo xtask schema update`). A line `= <name> [group/version/kind …]` begins a type, the
//! lines after it are its fields in Go's order: `<name> <type> [!] [list=a|s|m] [keys=…] [patch=…] [by=…] [#=…] [-] [~] [+]`. Types are
//! `s` string, `i` int32, `l` int64, `d` number, `b` boolean, `y` bytes, `q` quantity, `o` int-or-string, `t` time, `u` microtime,
//! `*` anything, `@N` the N-th type, `[T` a list of T, `{T` a map of T, `AN`, `BN`, `SN` the N-th type or an array of it, a
//! boolean, an array of strings. `!` marks required fields, `#=` the protobuf field number (two for fields of a message that
//! JSON inlines), `-` fields whose zero value JSON leaves out (`~` of structs too), `+` fields that always have a value in Go (no pointers),
//! `go=` the Go type where it has a name, `in=` the structs that embed the field,
//! `name=` Go's name where it is another.

mod decode;
mod json;
mod parse;
mod patched;
mod protobuf;
mod shown;
mod typed;
mod wire;

use std::sync::LazyLock;

use coxswain_meta::Status;
use coxswain_meta::json::head;
use coxswain_meta::patch::strategic::{self, SchemaNode};
use hashbrown::HashMap;

pub use decode::{Decoded, check, forget_unnoticed, normalise, normalise_field, zero_object};
pub use json::{write as write_json, yaml as write_yaml};
pub use parse::{MOST_FAULTS, parse_json_strict, parse_yaml_strict, sort_by_place};
pub use patched::patched;
pub use protobuf::{decode as decode_protobuf, decode_message as decode_protobuf_message};
pub use shown::{changes, internal, internal_list};
pub use typed::{conversion_error, in_one, in_own_words, narrow, typed_errors};
pub use wire::{
    encode as encode_protobuf, encode_message as encode_protobuf_message, envelope, envelope_of,
    field as write_field, field_head, message_field as encode_protobuf_field,
};

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::load(include_str!("../../schema/types.txt")));

struct Table {
    types: Vec<TypeDef>,
    by_gvk: HashMap<(&'static str, &'static str, &'static str), TypeRef>,
    by_name: HashMap<&'static str, TypeRef>,
}

struct TypeDef {
    name: &'static str,
    /// Sorted by name.
    fields: Vec<Field>,
    /// How the names begin: most are found without a look at the others.
    starts: Vec<u64>,
    /// Those that Go always writes.
    always: Vec<u16>,
    /// The fields in Go's order.
    declared: Vec<u16>,
    /// The fields in the order of their protobuf numbers.
    numbered: Vec<u16>,
}

/// A type in the fact table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeRef(u16);

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Text.
    String,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating point number.
    Number,
    /// A boolean.
    Bool,
    /// Base64 text.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// An integer or text.
    IntOrString,
    /// RFC 3339, seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Any JSON.
    Any,
    /// Another type of the table.
    Ref(TypeRef),
    /// Another type of the table, or something else.
    Either(Alternative, TypeRef),
    /// A list.
    List(Box<Type>),
    /// A map with string keys.
    Map(Box<Type>),
}

/// What a field of a JSON schema may hold instead of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternative {
    /// An array of schemas.
    Array,
    /// A boolean.
    Bool,
    /// An array of strings.
    Strings,
}

/// How a list merges, by `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ListType {
    /// As a whole.
    #[default]
    Atomic,
    /// As a set of scalars.
    Set,
    /// As a map keyed by some fields of its items.
    Map,
}

/// A field of a type.
#[derive(Debug)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// What it holds.
    pub ty: Type,
    /// Always present.
    pub required: bool,
    /// How a list merges in apply.
    pub list_type: ListType,
    /// The keys of a `Map` list, comma-separated.
    pub map_keys: &'static str,
    /// Go leaves a zero value out of JSON.
    omits_zero: bool,
    /// Go leaves a zero struct out of JSON.
    omits_zero_struct: bool,
    /// Go has a value always: protobuf carries it even when it is zero.
    plain: bool,
    /// Protobuf field numbers from the message inwards, filled up with zeros.
    numbers: [u8; 3],
    /// The Go type, where it has a name.
    go_type: Option<&'static str>,
    /// Go's name, where it is not the JSON name with a capital.
    go_name: Option<&'static str>,
    /// The embedded structs on the way to the field, joined by dots.
    embedded: &'static str,
    /// `x-kubernetes-patch-strategy`.
    patch: &'static str,
    /// `x-kubernetes-patch-merge-key`.
    merge_key: Option<&'static str>,
}

impl Table {
    fn load(text: &'static str) -> Self {
        let mut table = Table { types: Vec::new(), by_gvk: HashMap::new(), by_name: HashMap::new() };
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
            if first == "=" {
                let this = TypeRef(table.types.len() as u16);
                table.types.push(TypeDef {
                    name: second,
                    fields: Vec::new(),
                    starts: Vec::new(),
                    always: Vec::new(),
                    declared: Vec::new(),
                    numbered: Vec::new(),
                });
                table.by_name.insert(second, this);
                table.by_gvk.extend(words.filter_map(|gvk| Some((gvk_of(gvk)?, this))));
            } else if let Some(current) = table.types.last_mut() {
                current.fields.push(Field::load(first, second, words));
            }
        }
        table.types.iter_mut().for_each(TypeDef::sort);
        table
    }
}

/// The group, version and kind of a text with slashes between them.
fn gvk_of(text: &str) -> Option<(&str, &str, &str)> {
    let (group, rest) = text.split_once('/')?;
    let (version, kind) = rest.split_once('/')?;
    Some((group, version, kind))
}

impl TypeDef {
    /// Sorts the fields, which come in Go's order, and remembers the other orders.
    fn sort(&mut self) {
        let mut by_name: Vec<u16> = (0..self.fields.len() as u16).collect();
        by_name.sort_by_key(|i| self.fields[usize::from(*i)].name);
        self.declared = vec![0; by_name.len()];
        for (at, was) in by_name.iter().enumerate() {
            self.declared[usize::from(*was)] = at as u16;
        }
        self.fields.sort_by_key(|field| field.name);
        self.starts = self.fields.iter().map(|field| head(field.name)).collect();
        let always = |i: &u16| self.fields[usize::from(*i)].is_always_written();
        self.always = (0..self.fields.len() as u16).filter(always).collect();
        let numbers = |i: &u16| self.fields[usize::from(*i)].numbers;
        self.numbered = (0..self.fields.len() as u16).filter(|i| numbers(i)[0] != 0).collect();
        self.numbered.sort_by_key(|i| self.fields[usize::from(*i)].numbers);
    }
}

impl Field {
    fn load(name: &'static str, ty: &str, flags: std::str::Split<'static, char>) -> Self {
        let mut field = Field {
            name,
            ty: Type::load(ty),
            required: false,
            list_type: ListType::Atomic,
            map_keys: "",
            omits_zero: false,
            omits_zero_struct: false,
            plain: false,
            numbers: [0; 3],
            go_type: None,
            go_name: None,
            embedded: "",
            patch: "",
            merge_key: None,
        };
        for flag in flags {
            match flag.split_once('=') {
                None if flag == "-" => field.omits_zero = true,
                None if flag == "~" => field.omits_zero_struct = true,
                None if flag == "+" => field.plain = true,
                None => field.required = flag == "!",
                Some(("#", numbers)) => {
                    for (place, number) in field.numbers.iter_mut().zip(numbers.split('.')) {
                        *place = number.parse().unwrap_or(0);
                    }
                }
                Some(("list", "m")) => field.list_type = ListType::Map,
                Some(("list", "s")) => field.list_type = ListType::Set,
                Some(("keys", keys)) => field.map_keys = keys,
                Some(("go", name)) => field.go_type = Some(name),
                Some(("name", name)) => field.go_name = Some(name),
                Some(("in", names)) => field.embedded = names,
                Some(("patch", strategy)) => field.patch = strategy,
                Some(("by", key)) => field.merge_key = Some(key),
                Some(_) => {}
            }
        }
        field
    }
}

impl Field {
    /// Whether Go writes the field into JSON even if nobody set it.
    fn is_always_written(&self) -> bool {
        match self.ty {
            Type::List(_) | Type::Map(_) | Type::Bytes => !self.omits_zero && self.numbers[0] != 0,
            Type::Ref(_) | Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString | Type::Any => {
                self.plain && !self.omits_zero_struct
            }
            _ => self.plain && !self.omits_zero,
        }
    }
}

impl Type {
    fn load(text: &str) -> Self {
        let (first, rest) = text.split_at(1);
        match first {
            "s" => Type::String,
            "i" => Type::Int32,
            "l" => Type::Int64,
            "d" => Type::Number,
            "b" => Type::Bool,
            "y" => Type::Bytes,
            "q" => Type::Quantity,
            "o" => Type::IntOrString,
            "t" => Type::Time,
            "u" => Type::MicroTime,
            "@" => rest.parse().map_or(Type::Any, |n| Type::Ref(TypeRef(n))),
            "A" => Type::either(Alternative::Array, rest),
            "B" => Type::either(Alternative::Bool, rest),
            "S" => Type::either(Alternative::Strings, rest),
            "[" => Type::List(Box::new(Type::load(rest))),
            "{" => Type::Map(Box::new(Type::load(rest))),
            _ => Type::Any,
        }
    }

    fn either(alternative: Alternative, number: &str) -> Self {
        number.parse().map_or(Type::Any, |n| Type::Either(alternative, TypeRef(n)))
    }

    /// The type below lists and maps.
    fn innermost(&self) -> &Type {
        match self {
            Type::List(inner) | Type::Map(inner) => inner.innermost(),
            other => other,
        }
    }
}

impl TypeRef {
    fn def(self) -> &'static TypeDef {
        // Every reference comes from the table, and a test follows all of them.
        &TABLE.types[usize::from(self.0)]
    }

    /// The definition's full name, such as `io.k8s.api.core.v1.Pod`.
    pub fn name(self) -> &'static str {
        self.def().name
    }

    /// The Go type's name without its package, such as `PodSpec`.
    pub fn short_name(self) -> &'static str {
        self.name().rsplit('.').next().unwrap_or_default()
    }

    /// All fields by name.
    pub fn fields(self) -> &'static [Field] {
        &self.def().fields
    }

    /// All fields in the order in which Go declares them and writes them as JSON.
    pub fn declared(self) -> impl Iterator<Item = &'static Field> {
        let def = self.def();
        def.declared.iter().map(|i| &def.fields[usize::from(*i)])
    }

    /// The fields that Go always writes.
    fn always_written(self) -> impl Iterator<Item = &'static Field> {
        let def = self.def();
        def.always.iter().map(|i| &def.fields[usize::from(*i)])
    }

    /// The field of that JSON name.
    pub fn get(self, name: &str) -> Option<&'static Field> {
        let (def, start) = (self.def(), head(name));
        let mut at = def.starts.partition_point(|known| *known < start);
        while def.starts.get(at) == Some(&start) {
            if def.fields[at].name == name {
                return Some(&def.fields[at]);
            }
            at += 1;
        }
        None
    }
}

/// The type of a kind.
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<TypeRef> {
    let known: &HashMap<(&str, &str, &str), TypeRef> = &TABLE.by_gvk;
    known.get(&(group, version, kind)).copied()
}

/// The type of a definition's full name.
pub fn by_name(name: &str) -> Option<TypeRef> {
    TABLE.by_name.get(name).copied()
}

/// 400 for a document that cannot be decoded: `what` is an error of [`Decoded`] or, for strict decoding,
/// `strict decoding error: ` and the joined unknown and duplicate fields.
pub fn decode_error(version: &str, kind: &str, what: &str) -> Status {
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {what}"))
}

impl SchemaNode for TypeRef {
    fn field(self, name: &str) -> Option<strategic::Field<Self>> {
        let field = self.get(name)?;
        let strategies = || field.patch.split(',');
        Some(strategic::Field {
            node: match field.ty.innermost() {
                // A map's keys are no fields: only lists and plain references lead on.
                Type::Ref(target) if !matches!(field.ty, Type::Map(_)) => Some(*target),
                _ => None,
            },
            merge: strategies().any(|s| s == "merge"),
            replace: strategies().any(|s| s == "replace"),
            retain_keys: strategies().any(|s| s == "retainKeys"),
            merge_key: field.merge_key,
        })
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
