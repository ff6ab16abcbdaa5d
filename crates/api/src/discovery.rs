//! EndpointSlice.

use std::net::IpAddr;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::net;
use crate::objectmeta::immutable;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, first_three, name};
use crate::value::{child, int, items, items_mut, set, set_default, text};

pub(crate) const SLICE: Kind = Kind {
    columns: COLUMNS,
    hooks: Hooks {
        default,
        prepare_create: prepare::first_generation,
        prepare_update: |new, old| {
            prepare::raise_generation(new, old);
            let before = &old["metadata"];
            let same = new["metadata"]["generation"] == before["generation"];
            if same
                && new["metadata"]["labels"] != before["labels"]
                && let Some(metadata) = child(new, "metadata")
            {
                set(metadata, "generation", int(before, "generation").unwrap_or(0) + 1);
            }
        },
        validate,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            immutable(&mut errors, new, old, "addressType", &Path::root());
            errors
        },
        row,
        ..Hooks::PLAIN
    },
    ..kind!("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice")
};

const COLUMNS: &[Column] = &[
    NAME,
    column("AddressType", "Family of the addresses."),
    column("Ports", "Ports of every endpoint."),
    column("Endpoints", "Addresses of the endpoints."),
    AGE,
];

fn default(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        if port["name"].is_null() {
            set(port, "name", "");
        }
        set_default(port, "protocol", "TCP");
    }
}

fn validate(slice: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let family = text(slice, "addressType");
    match family {
        "IPv4" | "IPv6" | "FQDN" => {}
        "" => errors.push(FieldError::required(&Path::new("addressType"), "")),
        other => {
            let at = Path::new("addressType");
            errors.push(FieldError::not_supported(&at, other, &["FQDN", "IPv4", "IPv6"]));
        }
    }
    let endpoints = items(slice, "endpoints");
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many(&Path::new("endpoints"), endpoints.len(), 1000));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = Path::new("endpoints").index(i);
        let addresses = items(endpoint, "addresses");
        match addresses.len() {
            0 => errors.push(FieldError::required(&at.child("addresses"), "must contain at least 1 address")),
            n if n > 100 => errors.push(FieldError::too_many(&at.child("addresses"), n, 100)),
            _ => {}
        }
        for (j, ip) in addresses.iter().filter_map(Value::as_str).enumerate() {
            address(&mut errors, family, ip, &at.child("addresses").index(j));
        }
        if let Some(node) = endpoint["nodeName"].as_str() {
            errors.invalid_each(&at.child("nodeName"), node, names::dns1123_subdomain(node));
        }
        if let Some(hostname) = endpoint["hostname"].as_str() {
            errors.invalid_each(&at.child("hostname"), hostname, names::dns1123_label(hostname));
        }
        hints(&mut errors, &endpoint["hints"], &at.child("hints"));
    }
    ports(&mut errors, items(slice, "ports"));
    errors
}

/// Most zones or nodes that one endpoint is meant for.
const MOST_HINTS: usize = 8;

fn hints(errors: &mut ErrorList, hints: &Value, path: &Path) {
    type Rule = fn(&str) -> Vec<String>;
    let lists: [(&str, Rule); 2] = [("forZones", names::label_value), ("forNodes", names::dns1123_subdomain)];
    for (key, rule) in lists {
        let (list, at) = (items(hints, key), path.child(key));
        if list.len() > MOST_HINTS {
            errors.push(FieldError::too_many(&at, list.len(), MOST_HINTS));
            return;
        }
        for (i, hint) in list.iter().enumerate() {
            let (name, at) = (text(hint, "name"), at.index(i).child("name"));
            if list[..i].iter().any(|other| text(other, "name") == name) {
                errors.push(FieldError::duplicate(&at, name));
            }
            errors.invalid_each(&at, name, rule(name));
        }
    }
}

fn address(errors: &mut ErrorList, family: &str, ip: &str, at: &Path) {
    match family {
        "FQDN" => {
            let name = ip.strip_suffix('.').unwrap_or(ip);
            let broken = names::dns1123_subdomain(name);
            if ip.is_empty() {
                errors.push(FieldError::required(at, ""));
            } else if !broken.is_empty() {
                errors.push(FieldError::invalid(at, name, broken.join(",")));
            } else if !name.contains('.') {
                let rule = "should be a domain with at least two segments separated by dots";
                errors.push(FieldError::invalid(at, name, rule));
            }
            return;
        }
        "IPv4" | "IPv6" => net::valid_ip(errors, ip, at),
        _ => return,
    }
    let all = Path::new(at.as_str().rsplit_once('[').map_or("", |(list, _)| list));
    match (ip.parse::<IpAddr>(), family) {
        (Ok(IpAddr::V6(_)), "IPv4") => {
            errors.push(FieldError::invalid(&all, ip, "must be an IPv4 address"));
        }
        (Ok(IpAddr::V4(_)), "IPv6") => {
            errors.push(FieldError::invalid(&all, ip, "must be an IPv6 address"));
        }
        (Ok(ip), _) => special_address(errors, ip, at),
        (Err(_), _) => {}
    }
}

/// Addresses that endpoints may not have.
pub(crate) fn special_address(errors: &mut ErrorList, ip: IpAddr, at: &Path) {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    for (broken, rule) in [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ] {
        if broken {
            errors.push(FieldError::invalid(at, ip.to_string(), rule));
        }
    }
}

fn ports(errors: &mut ErrorList, ports: &[Value]) {
    if ports.len() > 100 {
        errors.push(FieldError::too_many(&Path::new("ports"), ports.len(), 100));
    }
    for (i, port) in ports.iter().enumerate() {
        let at = Path::new("ports").index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.invalid_each(&at.child("name"), name, names::dns1123_label(name));
        }
        if ports[..i].iter().any(|p| text(p, "name") == name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        }
        net::valid_protocol(errors, text(port, "protocol"), &at.child("protocol"));
        if let Some(protocol) = port["appProtocol"].as_str() {
            errors.invalid_each(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn row(slice: &Value, now: i64) -> Vec<Value> {
    let ports: Vec<String> = items(slice, "ports")
        .iter()
        .map(|port| match (int(port, "port"), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    let addresses: Vec<String> = items(slice, "endpoints")
        .iter()
        .flat_map(|e| items(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        name(slice),
        text(slice, "addressType").into(),
        first_three(&ports).into(),
        first_three(&addresses).into(),
        age(slice, now),
    ]
}
