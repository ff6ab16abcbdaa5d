//! The formats of text that upstream's validation knows; others are no rule.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

static UUID: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$")
        .expect("a valid pattern")
});
static DATE_TIME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$")
        .expect("a valid pattern")
});
static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[^\s@<>]+@[^\s@<>]+$").expect("a valid pattern"));
static MAC: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("(?i)^([0-9a-f]{2}[:-]){5,7}[0-9a-f]{2}$|^([0-9a-f]{4}\\.){2,3}[0-9a-f]{4}$")
        .expect("a valid pattern")
});
static DURATION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d|w| ?(hours?|minutes?|seconds?|days?|weeks?))((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*$|^0$")
        .expect("a valid pattern")
});
static URI: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^([A-Za-z][A-Za-z0-9+.-]*:[^\s]*|/[^\s]*)$").expect("a valid pattern"));

/// Formats that are rules, those of numbers among them.
pub fn is_known(format: &str) -> bool {
    const TEXT: &[&str] = &[
        "ipv4",
        "ipv6",
        "cidr",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
        "date",
        "date-time",
        "datetime",
        "email",
        "mac",
        "duration",
        "uri",
        "hostname",
        "byte",
    ];
    matches!(format, "int32" | "int64" | "float" | "double") || TEXT.contains(&format)
}

/// Whether text has a format.
pub fn holds(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => UUID.is_match(text),
        "date" => is_date(text),
        "date-time" | "datetime" => DATE_TIME.is_match(text) && is_date(&text[..10]),
        "email" => EMAIL.is_match(text),
        "mac" => MAC.is_match(text),
        "duration" => DURATION.is_match(text),
        "uri" => URI.is_match(text),
        "hostname" => crate::names::dns1123_subdomain(&text.to_lowercase()).is_empty(),
        "byte" => {
            let body = text.trim_end_matches('=');
            text.len().is_multiple_of(4)
                && text.len() - body.len() <= 2
                && body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_'))
        }
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        let most = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|length| length <= most)
    })
}

fn is_date(text: &str) -> bool {
    let parts: Vec<u32> = text.split('-').filter_map(|part| part.parse().ok()).collect();
    let [year, month, day] = parts[..] else { return false };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    text.len() == 10 && (1..=days).contains(&day)
}
