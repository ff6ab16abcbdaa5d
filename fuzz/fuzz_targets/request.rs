#![no_main]
//! Requests: a line with method, path and query, a line with the media type, then the body.

use libfuzzer_sys::fuzz_target;

#[path = "../server.rs"]
mod server;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(parts.next().unwrap_or_default()).ok();
    let (Some(line), Some(media)) = (text(), text()) else { return };
    let Some((method, target)) = line.split_once(' ') else { return };
    let body = parts.next().unwrap_or_default();
    if let Some((code, answer)) = server::send(method, target, media, body) {
        assert!(!server::is_fault(code, &answer), "{method} {target}: {code} {}", String::from_utf8_lossy(&answer));
    }
});
