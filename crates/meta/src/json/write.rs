//! Writing JSON: what every write of an object does with all of it.

use std::fmt::Write;

use super::Value;

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
        Value::Object(members) => write_members(out, members),
        Value::Raw(raw) => out.push_str(raw.text()),
    }
}

/// Writes the members of an object.
pub fn write_members<'a>(out: &mut String, members: impl IntoIterator<Item = (&'a str, &'a Value)>) {
    out.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_name(out, name);
        write(out, value);
    }
    out.push('}');
}

/// Writes the name of a member, which its value follows.
pub fn write_name(out: &mut String, name: &str) {
    write_text(out, name);
    out.push(':');
}

/// Writes a text in quotes.
pub fn write_text(out: &mut String, text: &str) {
    out.reserve(text.len() + 2);
    out.push('"');
    write_escaped(out, text);
    out.push('"');
}

/// Writes what stands in the quotes of a text.
pub fn write_escaped(out: &mut String, text: &str) {
    // Hardly any text has anything that is to be escaped.
    if is_plain(text.as_bytes()) {
        return out.push_str(text);
    }
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate().filter(|(_, byte)| is_special(*byte)) {
        out.push_str(&text[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b'\r' => out.push_str("\\r"),
            8 => out.push_str("\\b"),
            12 => out.push_str("\\f"),
            _ => write!(out, "\\u{byte:04x}").expect("memory takes all"),
        }
    }
    out.push_str(&text[plain..]);
}

fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Whether no byte is special; eight are looked at at once.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    /// The high bit of every byte below `limit`, and maybe of some that come after one.
    fn below(word: u64, limit: u8) -> u64 {
        word.wrapping_sub(ONES * u64::from(limit)) & !word & (ONES << 7)
    }
    let is = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let special = |word: u64| below(word, b' ') | is(word, b'"') | is(word, b'\\');
    let (words, rest) = bytes.as_chunks();
    let found = words.iter().fold(0, |found, word| found | special(u64::from_le_bytes(*word)));
    // The last eight, some of them again, or what there is of eight.
    let last = match bytes.last_chunk() {
        _ if rest.is_empty() => return found == 0,
        Some(last) => u64::from_le_bytes(*last),
        None => rest.iter().fold(ONES * u64::from(b' '), |word, byte| word << 8 | u64::from(*byte)),
    };
    found | special(last) == 0
}

#[cfg(test)]
mod tests {
    use crate::json;

    use super::*;

    #[test]
    fn it_writes_what_serde_writes() {
        let places = (0..20).flat_map(|at| ["\"", "\\", "\n", "\u{1f}", "é", "\u{7f}"].map(|c| (at, c)));
        let places: Vec<String> =
            places.map(|(at, c)| format!("{}{c}{}", "x".repeat(at), " ~".repeat(at % 7))).collect();
        let escaped: String = (0..=0x10ffff).step_by(7).filter_map(char::from_u32).collect();
        let texts: Vec<String> = (0..0x80_u8).map(|byte| format!("a{}b", char::from(byte))).collect();
        let value = json!({
            "": null, "a\"b": [], "c": {}, "d": [true, false, 1, -2, 1.5, 1e300, u64::MAX, i64::MIN, ""],
            "texts": texts, "places": places, "escaped": escaped, "e": { "f": [[{ "g": "h" }], [null]] },
        });
        let mut written = String::new();
        write(&mut written, &value);
        assert_eq!(written, value.to_string());
    }
}
