//! What a schema says about the sizes of values, as the estimate of costs sees it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use coxswain_meta::structural::Structural;

use super::Size;
use crate::cel::typing::{Object, Type};
use crate::cel::value::escape;

/// The largest request upstream reckons with.
const REQUEST_BYTES: u64 = 3 << 20;
/// The longest text that fits into a request: all but the quotation marks.
const LONGEST_TEXT: u64 = REQUEST_BYTES - 2;
/// The most bytes of a character: limits count characters, requests bytes.
const CHARACTER_BYTES: u64 = 4;

/// The members of an object by the names that expressions use.
pub type Fields = BTreeMap<String, Rc<Decl>>;

/// A schema: its type, and how large and how small its values can be.
#[derive(Debug)]
pub struct Decl {
    /// The type of its values.
    pub ty: Type,
    /// The most items, members, characters or bytes; 0 where values have no size.
    pub most: u64,
    /// The bytes of the smallest value as JSON.
    pub least_bytes: u64,
    /// Of the items, or of the members that are not named.
    pub inner: Option<Rc<Decl>>,
    /// The named members.
    pub fields: Rc<Fields>,
}

impl Decl {
    fn simple(ty: Type, most: u64, least_bytes: u64) -> Self {
        Self { ty, most, least_bytes, inner: None, fields: Rc::default() }
    }

    fn object(fields: Fields, least_bytes: u64) -> Self {
        let types = fields.iter().map(|(name, decl)| (name.clone(), decl.ty.clone())).collect();
        let ty = Type::Object(Arc::new(Object { name: "object".into(), fields: Some(types) }));
        Self { fields: Rc::new(fields), ..Self::simple(ty, 0, least_bytes) }
    }

    /// Of a key of a map.
    pub fn key() -> Self {
        Self::simple(Type::String, 0, 2)
    }

    /// The size of its values.
    pub fn size(&self) -> Size {
        Size { min: 0, max: self.most }
    }

    /// How many values of the schema fit into a request.
    pub fn most_in_request(&self) -> u64 {
        REQUEST_BYTES / (self.least_bytes + 1)
    }

    /// The declaration of a schema; none for one whose values expressions do not see. `whole` is the root of a resource.
    pub fn of(schema: &Structural, whole: bool) -> Option<Self> {
        if schema.int_or_string {
            let most = schema.most("maxLength").map_or(LONGEST_TEXT, |most| most * CHARACTER_BYTES);
            return Some(Self::simple(Type::Dyn, most, 1));
        }
        Some(match schema.type_.as_str() {
            "array" => {
                let items = schema.items.as_deref()?;
                let inner = Rc::new(Self::of(items, items.embedded)?);
                let fitting = LONGEST_TEXT / (inner.least_bytes + 1);
                Self {
                    ty: Type::list(inner.ty.clone()),
                    inner: Some(inner),
                    ..Self::simple(Type::Dyn, schema.most("maxItems").unwrap_or(fitting), 2)
                }
            }
            "object" => {
                match schema.additional.as_deref().and_then(|inner| Self::of(inner, inner.embedded)) {
                    Some(inner) if !whole => {
                        // A key of no characters, its quotation marks, the colon and the comma.
                        let fitting = LONGEST_TEXT / (inner.least_bytes + 6);
                        Self {
                            ty: Type::map(inner.ty.clone()),
                            inner: Some(Rc::new(inner)),
                            ..Self::simple(Type::Dyn, schema.most("maxProperties").unwrap_or(fitting), 2)
                        }
                    }
                    _ => Self::of_object(schema, whole),
                }
            }
            "string" => Self::of_text(schema),
            "boolean" => Self::simple(Type::Bool, 0, 4),
            "number" => Self::simple(Type::Double, 0, 1),
            "integer" => Self::simple(Type::Int, 0, 1),
            _ => return None,
        })
    }

    fn of_object(schema: &Structural, whole: bool) -> Self {
        let mut least_bytes = 2;
        let mut fields = Fields::new();
        for (name, member) in &schema.properties {
            let Some(decl) = Self::of(member, member.embedded) else { continue };
            if member.default.is_none() && schema.required().contains(name) {
                least_bytes += name.len() as u64 + decl.least_bytes + 4;
            }
            fields.insert(escape(name), Rc::new(decl));
        }
        if whole && !has_type_and_name(schema) {
            let text = || Rc::new(Self::simple(Type::String, LONGEST_TEXT, 2));
            let named = ["name", "generateName"].map(|name| (name.to_owned(), text())).into_iter().collect();
            fields.insert("metadata".into(), Rc::new(Self::object(named, 2)));
            fields.insert("apiVersion".into(), text());
            fields.insert("kind".into(), text());
        }
        Self::object(fields, least_bytes)
    }

    fn of_text(schema: &Structural) -> Self {
        let limit = schema.most("maxLength");
        match schema.format() {
            "byte" => Self::simple(Type::Bytes, limit.unwrap_or(LONGEST_TEXT), 2),
            "duration" => Self::simple(Type::Duration, 32, 3),
            "date" => Self::simple(Type::Timestamp, 12, 12),
            "date-time" => Self::simple(Type::Timestamp, 32, 21),
            _ => {
                let allowed = schema.allowed().iter().filter_map(|value| value.as_str()).map(str::len).max();
                let allowed = allowed.map(|most| most as u64);
                let most = limit.map(|most| most.saturating_mul(CHARACTER_BYTES)).or(allowed);
                Self::simple(Type::String, most.unwrap_or(LONGEST_TEXT), 2)
            }
        }
    }
}

/// Whether a schema itself describes what every resource has.
fn has_type_and_name(schema: &Structural) -> bool {
    let is = |schema: &Structural, name: &str, ty: &str| {
        schema.properties.get(name).is_some_and(|member| member.type_ == ty)
    };
    let metadata = schema.properties.get("metadata");
    is(schema, "kind", "string")
        && is(schema, "apiVersion", "string")
        && metadata.is_some_and(|metadata| {
            metadata.type_ == "object"
                && is(metadata, "name", "string")
                && is(metadata, "generateName", "string")
        })
}
