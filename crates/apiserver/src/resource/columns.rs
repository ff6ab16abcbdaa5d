//! Table columns of custom resources.

use coxswain_meta::json::{Value, json};

use super::age;
use super::definition::Version;

const NAME: &str = "Name must be unique within a namespace.";
const CREATED: &str = ".metadata.creationTimestamp";

/// The headings: the name, then what the version asks for, or the age.
pub fn definitions(version: &Version) -> Vec<Value> {
    let name =
        json!({ "name": "Name", "type": "string", "format": "name", "description": NAME, "priority": 0 });
    let own = version.columns.iter().map(|column| {
        json!({ "name": column.name, "type": column.type_, "format": column.format,
            "description": column.description, "priority": column.priority })
    });
    let age = json!({ "name": "Age", "type": "date", "format": "",
        "description": "Time since the object was created.", "priority": 0 });
    let usual = version.columns.is_empty().then_some(age);
    std::iter::once(name).chain(own).chain(usual).collect()
}

/// The cells of an object.
pub fn row(version: &Version, object: &Value, now: i64) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    let own = version.columns.iter().map(|column| {
        let found = column.path.find(object);
        found.first().map_or(Value::Null, |value| cell(&column.type_, value, now))
    });
    let created = object.pointer(&CREATED.replace('.', "/")).and_then(Value::as_str);
    let usual = version.columns.is_empty().then(|| Value::from(age(created, now)));
    std::iter::once(name).chain(own).chain(usual).collect()
}

fn cell(type_: &str, value: &Value, now: i64) -> Value {
    match (type_, value) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) => {
            value.clone()
        }
        ("string", Value::Null) => Value::Null,
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => (number as i64).into(),
            _ => Value::Null,
        },
        ("date", Value::String(text)) => age(Some(text), now).into(),
        _ => Value::Null,
    }
}
