//! Objects that expressions write: `Object{spec: Object.spec{…}}` and `JSONPatch{…}` are maps of their fields.

use std::sync::Arc;

use cel_core::{MapKey, OptionalValue, StructFieldValue, Value as Cel, ValueMap};

/// Whether a name is that of an object to be written.
pub fn is_shape(name: &str) -> bool {
    name == "JSONPatch" || name == "Object" || name.starts_with("Object.")
}

/// The object with these fields.
pub fn write(fields: &[StructFieldValue]) -> Cel {
    let value = |field: &StructFieldValue| match (&field.value, field.optional) {
        (Cel::Optional(OptionalValue::Some(value)), true) => Some((**value).clone()),
        (Cel::Optional(_), true) => None,
        (value, _) => Some(value.clone()),
    };
    let members =
        fields.iter().filter_map(|field| Some((MapKey::String(field.name.as_str().into()), value(field)?)));
    Cel::Map(Arc::new(ValueMap::from_entries(members)))
}
