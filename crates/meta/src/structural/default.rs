//! Defaults of structural schemas.

use crate::json::Value;

use super::Structural;

fn is_forbidden_null(value: &Value, schema: &Structural) -> bool {
    value.is_null() && !schema.nullable
}

/// Fills the defaults in.
pub fn default(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(map) => {
            for (name, member) in &schema.properties {
                let Some(usual) = &member.default else { continue };
                if map.get(name).is_none_or(|value| is_forbidden_null(value, member)) {
                    map.insert(name.clone(), usual.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(inner) = schema.member(name) {
                    below(value, inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.items.as_deref() {
                items.iter_mut().for_each(|item| below(item, inner));
            }
        }
        _ => {}
    }
}

fn below(value: &mut Value, schema: &Structural) {
    if let (true, Some(usual)) = (is_forbidden_null(value, schema), &schema.default) {
        *value = usual.clone();
    }
    default(value, schema);
}

/// Drops nulls where null is no value and there is no default.
pub fn drop_nulls(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let Some(inner) = schema.member(name) else { return true };
                !(is_forbidden_null(value, inner) && inner.default.is_none())
            });
            for (name, value) in map.iter_mut() {
                if let Some(inner) = schema.member(name) {
                    drop_nulls(value, inner);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.items.as_deref() {
                items.iter_mut().for_each(|item| drop_nulls(item, inner));
            }
        }
        _ => {}
    }
}
