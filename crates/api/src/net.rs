//! Addresses, ports and protocols in objects.

use std::net::IpAddr;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

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

/// An address block written as Go prints it, without host bits.
pub(crate) fn valid_canonical_cidr(errors: &mut ErrorList, cidr: &str, path: &Path) {
    if !is_cidr(cidr) {
        return valid_cidr(errors, cidr, path);
    }
    let Some(canonical) = canonical_cidr(cidr) else { return };
    if canonical != cidr {
        let rule = format!("must be in canonical form (\"{canonical}\")");
        errors.push(FieldError::invalid(path, cidr, rule));
    }
}

/// An address block whose address is the block's own, as new fields take.
pub(crate) fn valid_masked_cidr(errors: &mut ErrorList, cidr: &str, path: &Path) {
    if !is_cidr(cidr) {
        return valid_cidr(errors, cidr, path);
    }
    let address = |cidr: &str| cidr.split_once('/').and_then(|(ip, _)| ip.parse::<IpAddr>().ok());
    if canonical_cidr(cidr).is_some_and(|canonical| address(&canonical) != address(cidr)) {
        errors.push(FieldError::invalid(path, cidr, "must not have bits set beyond the prefix length"));
    }
}

fn canonical_cidr(cidr: &str) -> Option<String> {
    let (ip, bits) = cidr.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    let ip = match ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into()),
        IpAddr::V6(ip) => {
            IpAddr::V6((u128::from(ip) & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into())
        }
    };
    Some(format!("{ip}/{bits}"))
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

/// Whether a block lies within another and is smaller; both are valid.
pub(crate) fn is_strict_subset(inner: &str, outer: &str) -> bool {
    let parse = |cidr: &str| {
        let (ip, bits) = cidr.split_once('/')?;
        Some((ip.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?))
    };
    let (Some((inner_ip, inner_bits)), Some((outer_ip, outer_bits))) = (parse(inner), parse(outer)) else {
        return false;
    };
    let prefix = |ip: u128, width: u32| ip.checked_shr(width - outer_bits).unwrap_or(0);
    let contains = match (inner_ip, outer_ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => prefix(u32::from(a).into(), 32) == prefix(u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => prefix(a.into(), 128) == prefix(b.into(), 128),
        _ => false,
    };
    contains && outer_bits < inner_bits
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
