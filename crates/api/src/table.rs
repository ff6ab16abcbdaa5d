//! Table cells that several kinds share.

use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;

use crate::catalogue::Column;
use crate::time;
use crate::value::{entries, int, items, text};

/// A text column that is always shown.
pub(crate) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", description, priority: 0 }
}

/// A column of numbers.
pub(crate) const fn count(name: &'static str, description: &'static str) -> Column {
    Column { type_: "integer", ..column(name, description) }
}

/// A column of booleans.
pub(crate) const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { type_: "boolean", ..column(name, description) }
}

/// A text column for `-o wide`.
pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..column(name, description) }
}

/// The name column.
pub(crate) const NAME: Column =
    Column { format: "name", ..column("Name", "Name of the object, unique in its namespace.") };
/// The age column.
pub(crate) const AGE: Column = column("Age", "Time since the object was created.");
/// Container names, for `-o wide`.
pub(crate) const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
/// Container images, for `-o wide`.
pub(crate) const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");
/// The label selector, for `-o wide`.
pub(crate) const SELECTOR: Column = wide("Selector", "Label selector of the pods.");

/// Name and age.
pub(crate) const NAME_AGE: &[Column] = &[NAME, AGE];

pub(crate) fn name_age(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub(crate) fn name(object: &Value) -> Value {
    crate::value::name(object).into()
}

pub(crate) fn age(object: &Value, now: i64) -> Value {
    since(&object["metadata"], "creationTimestamp", now).into()
}

/// Time since the time in a field, `<unknown>` without one.
pub(crate) fn since(object: &Value, key: &str, now: i64) -> String {
    time::age(object.get(key).and_then(Value::as_str), now)
}

/// A number field as a cell, 0 when absent.
pub(crate) fn number(object: &Value, key: &str) -> Value {
    int(object, key).unwrap_or(0).into()
}

/// Text, or `fallback` when empty.
pub(crate) fn or<'a>(text: &'a str, fallback: &'a str) -> &'a str {
    if text.is_empty() { fallback } else { text }
}

/// A field of the items of a list, joined by commas.
pub(crate) fn joined(list: &[Value], key: &str) -> String {
    list.iter().map(|item| text(item, key)).collect::<Vec<_>>().join(",")
}

/// Names and images of a pod template's containers.
pub(crate) fn containers(template: &Value) -> [Value; 2] {
    let list = items(&template["spec"], "containers");
    [joined(list, "name").into(), joined(list, "image").into()]
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels(object: &Value, key: &str) -> String {
    let pairs: Vec<String> =
        entries(object, key).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// A `LabelSelector` in query form, or `<none>`.
pub(crate) fn selector(selector: &Value) -> String {
    match Selector::from_label_selector(selector) {
        Err(_) => "<error>".into(),
        Ok(parsed) => or(&parsed.to_string(), "<none>").to_owned(),
    }
}

/// An integer or text as text.
pub(crate) fn int_or_string(value: &Value, fallback: &str) -> String {
    match value {
        Value::String(text) => text.as_str().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => fallback.to_owned(),
    }
}

/// The first three of a list, then how many more.
pub(crate) fn first_three(list: &[String]) -> String {
    if list.is_empty() {
        return "<unset>".into();
    }
    let shown = list[..list.len().min(3)].join(",");
    if list.len() > 3 { format!("{shown} + {} more...", list.len() - 3) } else { shown }
}

/// When it was created, of kinds that say nothing else.
pub(crate) const CREATED_AT: Column =
    Column { type_: "date", ..column("Created At", "When the object was created.") };

/// `true`, `false` or `<unset>`.
pub(crate) fn tristate(value: &Value) -> Value {
    match value {
        Value::Bool(true) => json!("True"),
        Value::Bool(false) => json!("False"),
        _ => json!("<unset>"),
    }
}
