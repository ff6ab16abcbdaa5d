//! Writing JSON: what every write of an object does with all of it.

use std::fmt::Write;

use serde_json::Value;

/// Writes a value as JSON on one line.
pub fn write(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write!(out, "{number}").expect("memory takes all"),
        Value::String(text) => write_text(out, text),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            write_members(out, members.iter().map(|(name, value)| (&**name, value)), write);
        }
    }
}

/// Writes the members of an object as `write` writes them.
pub fn write_members<'a, T>(
    out: &mut String,
    members: impl IntoIterator<Item = (&'a str, T)>,
    mut write: impl FnMut(&mut String, T),
) {
    out.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_text(out, name);
        out.push(':');
        write(out, value);
    }
    out.push('}');
}

/// Writes a text in quotes.
pub fn write_text(out: &mut String, text: &str) {
    let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // Hardly any text has what has to be escaped: looking at all of it is faster than looking for the first.
    if text.bytes().fold(false, |found, byte| found | special(byte)) {
        return out.push_str(&Value::from(text).to_string());
    }
    out.reserve(text.len() + 2);
    out.push('"');
    out.push_str(text);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_writes_what_serde_writes() {
        let escaped: String = (0..=0x10ffff).step_by(7).filter_map(char::from_u32).collect();
        let texts: Vec<String> = (0..0x80_u8).map(|byte| format!("a{}b", char::from(byte))).collect();
        let value = json!({
            "": null, "a\"b": [], "c": {}, "d": [true, false, 1, -2, 1.5, 1e300, u64::MAX, i64::MIN, ""],
            "texts": texts, "escaped": escaped, "e": { "f": [[{ "g": "h" }], [null]] },
        });
        let mut written = String::new();
        write(&mut written, &value);
        assert_eq!(written, value.to_string());
    }
}
