//! EndpointSlice.

use std::net::{Ipv4Addr, Ipv6Addr};

use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::net;
use crate::objectmeta::immutable;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, first_three, name};
use crate::value::{int, items, items_mut, set, set_default, text};

pub(crate) const SLICE: Kind = Kind {
    columns: COLUMNS,
    hooks: Hooks {
        default,
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
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
        let hostname = text(endpoint, "hostname");
        if !hostname.is_empty() {
            errors.invalid_each(&at.child("hostname"), hostname, names::dns1123_label(hostname));
        }
    }
    ports(&mut errors, items(slice, "ports"));
    errors
}

fn address(errors: &mut ErrorList, family: &str, ip: &str, at: &Path) {
    let rule = match family {
        "IPv4" if ip.parse::<Ipv4Addr>().is_err() => "must be a valid IPv4 address",
        "IPv6" if ip.parse::<Ipv6Addr>().is_err() => "must be a valid IPv6 address",
        "FQDN" => {
            errors.invalid_each(at, ip, names::dns1123_subdomain(ip));
            return;
        }
        _ => return,
    };
    errors.push(FieldError::invalid(at, ip, rule));
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
        if let Some(number) = int(port, "port") {
            net::valid_port(errors, number, &at.child("port"));
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
