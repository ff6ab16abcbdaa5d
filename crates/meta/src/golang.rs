//! Values as Go prints them, where upstream's messages do.

use crate::json::Value;

/// A value as Go's `%v` shows it.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.as_str().to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{key}:{}", shown(value)));
            format!("map[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        scalar => scalar.to_string(),
    }
}

/// A floating point number that is whole, as Go writes it: without a fraction.
pub fn whole_number(value: &mut Value) {
    // Beyond, Go writes an exponent or digits that no integer here has.
    const MOST: f64 = 9.0e18;
    if let Some(number) = value.as_f64().filter(|n| value.is_f64() && n.fract() == 0.0 && n.abs() < MOST) {
        *value = (number as i64).into();
    }
}

/// The same for every number in a value.
pub fn whole_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        scalar => whole_number(scalar),
    }
}

/// The Go type of a value that JSON was read into.
pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) | Value::Raw(_) => "map[string]interface {}",
    }
}

/// JSON as Go writes it: what means something to HTML is escaped.
pub fn escaped(json: String) -> String {
    match json.contains(['<', '>', '&']) {
        true => json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"),
        false => json,
    }
}

/// What a value is in JSON, as its decoder names it.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) | Value::Raw(_) => "object",
    }
}

/// What the decoder says of a value where it wants a map.
pub fn no_map(value: &Value) -> String {
    format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", json_kind(value))
}

/// What typed values say of a value that is no map.
pub fn expected_map(value: &Value) -> String {
    format!("expected map, got &{{{}}}", shown(value))
}

/// What they say of a value that is no list.
pub fn expected_list(value: &Value) -> String {
    format!("expected list, got &{{{}}}", shown(value))
}

/// What they say of a value where a scalar of a kind is wanted (`string`, `integer`, `number`, `boolean`, `any scalar`), if they
/// mind it.
pub fn expected_scalar(kind: &str, value: &Value) -> Option<String> {
    let taken = match kind {
        "string" => value.is_string(),
        "integer" | "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "any scalar" => !value.is_object() && !value.is_array(),
        _ => true,
    };
    (!taken).then(|| match kind {
        "string" => format!("expected string, got &value.valueUnstructured{{Value:{}}}", syntax(value)),
        "integer" | "number" => format!("expected numeric (int or float), got {}", type_of(value)),
        kind => format!("expected {kind}, got &{{{}}}", shown(value)),
    })
}

/// A value as Go's `%#v` shows it.
fn syntax(value: &Value) -> String {
    let within = match value {
        Value::Null => return "interface {}(nil)".to_owned(),
        Value::Array(items) => items.iter().map(syntax).collect::<Vec<_>>(),
        Value::Object(map) => map.iter().map(|(key, value)| format!("{key:?}:{}", syntax(value))).collect(),
        scalar => return scalar.to_string(),
    };
    format!("{}{{{}}}", type_of(value), within.join(", "))
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn whole_numbers_have_no_fraction() {
        let mut value = json!({"a": [1.0, 2.5, -3.0], "b": 1e30, "c": 4});
        whole_numbers(&mut value);
        assert_eq!(value.to_string(), r#"{"a":[1,2.5,-3],"b":1e+30,"c":4}"#);
    }

    #[test]
    fn maps_are_sorted() {
        assert_eq!(shown(&json!({"b": [1, "x"], "a": {"c": true}})), "map[a:map[c:true] b:[1 x]]");
    }
}
