//! Standard base64 with padding, as Go reads and writes it: line breaks are passed over, and bits behind the last byte.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Encodes bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Whether this is the very text that [`encode`] would write.
pub(crate) fn is_canonical(text: &str) -> bool {
    BASE64_STANDARD.decode(text).is_ok()
}

/// Checks a text; line breaks are allowed. The error is Go's.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if is_canonical(text) {
        return Ok(());
    }
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    let mut count = 0usize;
    let mut padding = 0usize;
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'\r' | b'\n' => {}
            b'=' if count % 4 + padding >= 2 && padding < 2 => padding += 1,
            b if alphabet(b) && padding == 0 => count += 1,
            _ => return Err(format!("illegal base64 data at input byte {i}")),
        }
    }
    if (count + padding).is_multiple_of(4) {
        Ok(())
    } else {
        Err(format!("illegal base64 data at input byte {}", text.len() - text.len() % 4))
    }
}

/// How many bytes a canonical text decodes to.
pub(crate) fn decoded_length(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

/// The bytes of a text that passes [`check`]; characters outside the alphabet are skipped.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).unwrap_or_else(|_| decode_leniently(text))
}

fn decode_leniently(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for b in text.bytes() {
        let sextet = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(sextet);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_reads_line_breaks_and_loose_bits_and_writes_neither() {
        for (text, bytes) in [("YWJj", "abc"), ("YW\nJj\r\n", "abc"), ("YQ==", "a"), ("YR==", "a"), ("", "")]
        {
            assert_eq!((check(text), decode(text)), (Ok(()), bytes.as_bytes().to_vec()), "{text:?}");
            assert_eq!(is_canonical(text), encode(bytes.as_bytes()) == text, "{text:?}");
            assert_eq!(decoded_length(&encode(bytes.as_bytes())), bytes.len());
        }
        for (text, at) in [("YW.j", 2), ("YWJ", 0), ("YQ==YQ==", 4), ("Y===", 1)] {
            assert_eq!(check(text), Err(format!("illegal base64 data at input byte {at}")), "{text:?}");
        }
    }
}
