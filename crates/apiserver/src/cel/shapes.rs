//! Objects that expressions write: `Object{spec: Object.spec{…}}` and `JSONPatch{…}` are maps of their fields.

use std::any::Any;
use std::sync::Arc;

use cel_core::types::ResolvedProtoType;
use cel_core::{
    CelType, EvalError, MapKey, MessageValue, OptionalValue, ProtoRegistry, ProtoTypeResolver,
    StructFieldValue, Value as Cel, ValueMap,
};

/// Whether a name is that of an object to be written.
pub fn is_shape(name: &str) -> bool {
    name == "JSONPatch" || name == "Object" || name.starts_with("Object.")
}

/// The types of such objects: any field of any type.
#[derive(Debug)]
pub struct Shapes;

impl ProtoTypeResolver for Shapes {
    fn get_field_type(&self, message: &str, _: &str) -> Option<CelType> {
        is_shape(message).then_some(CelType::Dyn)
    }

    fn has_message(&self, message: &str) -> bool {
        is_shape(message)
    }

    fn is_extension(&self, _: &str, _: &str) -> bool {
        false
    }

    fn get_enum_value(&self, _: &str, _: &str) -> Option<i32> {
        None
    }

    fn resolve_qualified(&self, _: &[&str], _: &str) -> Option<ResolvedProtoType> {
        None
    }

    fn resolve_message_name(&self, name: &str, _: &str) -> Option<String> {
        is_shape(name).then(|| name.to_owned())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl ProtoRegistry for Shapes {
    fn construct_message(&self, _: &str, fields: &[StructFieldValue], _: bool) -> Cel {
        let value = |field: &StructFieldValue| match (&field.value, field.optional) {
            (Cel::Optional(OptionalValue::Some(value)), true) => Some((**value).clone()),
            (Cel::Optional(_), true) => None,
            (value, _) => Some(value.clone()),
        };
        let members = fields
            .iter()
            .filter_map(|field| Some((MapKey::String(field.name.as_str().into()), value(field)?)));
        Cel::Map(Arc::new(ValueMap::from_entries(members)))
    }

    fn message_field_access(&self, _: &dyn MessageValue, field: &str, _: bool, _: bool) -> Cel {
        Cel::error(EvalError::field_not_found(field))
    }

    fn message_has_field(&self, _: &dyn MessageValue, _: &str) -> Cel {
        Cel::Bool(false)
    }

    fn get_extension_value(&self, _: &dyn MessageValue, _: &str, _: bool, _: bool) -> Option<Cel> {
        None
    }

    fn has_extension(&self, _: &dyn MessageValue, _: &str) -> Option<bool> {
        None
    }
}
