//! Addresses, ports and protocols in objects.

use std::net::IpAddr;

use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::Value;

/// The protocols ports may have.
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// An IPv4 or IPv6 address without leading zeros.
pub(crate) fn valid_ip(errors: &mut ErrorList, ip: &str, path: &Path) {
    if ip.parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            path,
            ip,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}

/// An address block such as `10.0.0.0/8`.
pub(crate) fn valid_cidr(errors: &mut ErrorList, cidr: &str, path: &Path) {
    if !is_cidr(cidr) {
        let rule = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(path, cidr, rule));
    }
}

pub(crate) fn is_cidr(cidr: &str) -> bool {
    let Some((ip, bits)) = cidr.split_once('/') else { return false };
    let canonical = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    match (ip.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => canonical && bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => canonical && bits <= 128,
        _ => false,
    }
}

/// A port number.
pub(crate) fn valid_port(errors: &mut ErrorList, port: i64, path: &Path) {
    errors.extend(names::port_number(port).into_iter().map(|rule| FieldError::invalid(path, port, rule)));
}

/// A protocol, which must be there.
pub(crate) fn valid_protocol(errors: &mut ErrorList, protocol: &str, path: &Path) {
    if protocol.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !PROTOCOLS.contains(&protocol) {
        errors.push(FieldError::not_supported(path, protocol, PROTOCOLS));
    }
}

/// A port number or the name of one.
pub(crate) fn valid_port_reference(errors: &mut ErrorList, port: &Value, path: &Path) {
    match port {
        Value::String(name) => errors.invalid_each(path, name, names::port_name(name)),
        other => valid_port(errors, other.as_i64().unwrap_or(0), path),
    }
}
