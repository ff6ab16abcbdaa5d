//! What of a request's body only messages show: the empty lists and maps that it sent. Stored, they are none.

use coxswain_meta::ErrorList;
use coxswain_meta::json::Value;

use crate::warnings::with_empties;

/// Empty lists and maps, by JSON pointer.
pub type Empties = Vec<(String, Value)>;

/// Notes the empty values of the document that the request being handled has sent.
pub fn note(document: &Value) {
    with_empties(|noted| {
        noted.clear();
        collect(document, &mut Vec::new(), noted);
    });
}

/// Whether the request being handled has sent an empty list or map there, a JSON pointer.
pub fn is_empty_at(pointer: &str) -> bool {
    with_empties(|noted| noted.iter().any(|(at, _)| at == pointer)).unwrap_or(false)
}

/// What is wrong with an object, as upstream words it: the values in its messages are those that were sent.
pub fn worded(errors: ErrorList, object: &Value, validate: impl Fn(&Value) -> ErrorList) -> ErrorList {
    if errors.is_empty() {
        return errors;
    }
    let sent = with_empties(|noted| put_back(noted, object)).flatten();
    let Some(sent) = sent else { return errors };
    let again = validate(&sent);
    let same = errors.len() == again.len()
        && errors.iter().zip(again.iter()).all(|(a, b)| (a.kind, &a.field) == (b.kind, &b.field));
    if same { again } else { errors }
}

/// The object with the empty lists and maps that were sent where it says null now; none where it has none.
pub fn owned(object: &Value) -> Option<Value> {
    with_empties(|noted| {
        let nulls = noted.iter().filter(|(at, _)| object.pointer(at).is_some_and(Value::is_null));
        let nulls: Empties = nulls.cloned().collect();
        if nulls.is_empty() { None } else { put_back(&nulls, object) }
    })
    .flatten()
}

/// The empty lists and maps of a document, as JSON pointers and values.
fn collect<'a>(value: &'a Value, at: &mut Vec<Step<'a>>, out: &mut Empties) {
    let mut below = |step, inner| {
        at.push(step);
        collect(inner, at, out);
        at.pop();
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(i, item)| below(Step::Index(i), item));
        }
        Value::Object(map) if !map.is_empty() => {
            // What managers own is a tree of nothing but empty maps.
            let shown = map.iter().filter(|(key, _)| *key != "managedFields");
            shown.for_each(|(key, item)| below(Step::Key(key), item));
        }
        Value::Array(_) | Value::Object(_) => {
            out.push((at.iter().map(Step::pointer).collect(), value.clone()))
        }
        _ => {}
    }
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Step<'_> {
    fn pointer(&self) -> String {
        match self {
            Step::Key(key) if key.contains(['~', '/']) => {
                format!("/{}", key.replace('~', "~0").replace('/', "~1"))
            }
            Step::Key(key) => ["/", key].concat(),
            Step::Index(i) => format!("/{i}"),
        }
    }
}

/// The object with the empty values where they were sent; none where it has all of them.
fn put_back(empties: &[(String, Value)], object: &Value) -> Option<Value> {
    let mut out = object.clone();
    let mut put = false;
    for (place, empty) in empties {
        let Some((parent, key)) = place.rsplit_once('/') else { continue };
        let Some(Value::Object(parent)) = out.pointer_mut(parent) else { continue };
        let value = parent.entry(key.replace("~1", "/").replace("~0", "~")).or_insert(Value::Null);
        if value.is_null() {
            *value = empty.clone();
            put = true;
        }
    }
    put.then_some(out)
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn empty_values_come_back_where_they_were_sent() {
        let mut empties = Empties::new();
        collect(
            &json!({"spec": {"labels": {}, "a/b": [{"args": []}], "name": "x"}}),
            &mut Vec::new(),
            &mut empties,
        );
        let stored = json!({"spec": {"a/b": [{}], "name": "x"}});
        let back = json!({"spec": {"labels": {}, "a/b": [{"args": []}], "name": "x"}});
        assert_eq!(put_back(&empties, &stored), Some(back.clone()));
        assert_eq!(put_back(&empties, &back), None);
    }
}
