//! The addresses of services: IPAddress and ServiceCIDR.

use std::net::IpAddr;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Hooks, Kind, Subresource, kind};
use crate::check::{optional_name, required_name, texts};
use crate::net;
use crate::objectmeta::{IMMUTABLE, immutable_struct};
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{has, text};

pub(crate) const IP_ADDRESS: Kind = Kind {
    short_names: &["ip"],
    namespaced: false,
    selectable: &[
        "spec.parentRef.group",
        "spec.parentRef.name",
        "spec.parentRef.namespace",
        "spec.parentRef.resource",
    ],
    columns: &[NAME, column("ParentRef", "Whose address it is."), AGE],
    hooks: Hooks {
        name: |address, _| match address.parse::<IpAddr>() {
            Ok(ip) if ip.to_string() == address => Vec::new(),
            Ok(ip) => vec![format!("must be in canonical form (\"{ip}\")")],
            Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        },
        validate: validate_address,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            let (definition, path) = ("io.k8s.api.networking.v1.ParentReference", Path::new("spec"));
            immutable_struct(&mut errors, &new["spec"], &old["spec"], "parentRef", definition, &path);
            errors
        },
        selectable: |v| {
            let parent = &v["spec"]["parentRef"];
            vec![
                ("spec.parentRef.group", text(parent, "group").to_owned()),
                ("spec.parentRef.name", text(parent, "name").to_owned()),
                ("spec.parentRef.namespace", text(parent, "namespace").to_owned()),
                ("spec.parentRef.resource", text(parent, "resource").to_owned()),
            ]
        },
        row: |v, now| vec![name(v), parent(&v["spec"]["parentRef"]).into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("networking.k8s.io", "v1", "IPAddress", "ipaddresses", "ipaddress")
};

pub(crate) const SERVICE_CIDR: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::status("networking.k8s.io", "v1", "ServiceCIDR")],
    status: true,
    columns: &[NAME, column("CIDRs", "The blocks of addresses."), AGE],
    hooks: Hooks {
        validate_new: |v| {
            let mut errors = ErrorList::new();
            blocks(&mut errors, &v["spec"]);
            errors
        },
        validate_update: validate_blocks_update,
        prepare_create: prepare::create_status,
        row: |v, now| vec![name(v), texts(&v["spec"], "cidrs").join(",").into(), age(v, now)],
        ..Hooks::COUNTED
    },
    ..kind!("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "servicecidr")
};

fn parent(parent: &Value) -> String {
    if !parent.is_object() {
        return "<none>".into();
    }
    let kind = coxswain_meta::status::qualified(text(parent, "group"), text(parent, "resource"));
    let parts = [kind.to_lowercase().as_str(), text(parent, "namespace"), text(parent, "name")]
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| (*part).to_owned())
        .collect::<Vec<_>>();
    parts.join("/")
}

fn validate_address(address: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec").child("parentRef");
    if !has(&address["spec"], "parentRef") {
        errors.push(FieldError::required(&path, ""));
        return errors;
    }
    let parent = &address["spec"]["parentRef"];
    optional_name(&mut errors, parent, "group", names::dns1123_subdomain, &path);
    for key in ["resource", "name"] {
        required_name(&mut errors, parent, key, names::path_segment_name, &path);
    }
    optional_name(&mut errors, parent, "namespace", names::path_segment_name, &path);
    errors
}

fn blocks(errors: &mut ErrorList, spec: &Value) {
    let (list, path) = (texts(spec, "cidrs"), Path::new("spec").child("cidrs"));
    match list.len() {
        0 => {
            errors.push(FieldError::required(&path, "at least one CIDR required"));
            return;
        }
        1 | 2 => {}
        _ => {
            errors.push(FieldError::invalid(&path, spec.clone(), "may only hold up to 2 values"));
            return;
        }
    }
    for (i, block) in list.iter().enumerate() {
        net::valid_canonical_cidr(errors, block, &path.index(i));
    }
    if let [a, b] = list[..]
        && net::is_cidr(a)
        && net::is_cidr(b)
        && a.contains(':') == b.contains(':')
    {
        let rule = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(&path, spec["cidrs"].clone(), rule));
    }
}

fn validate_blocks_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec").child("cidrs");
    let (now, before) = (texts(&new["spec"], "cidrs"), texts(&old["spec"], "cidrs"));
    let grows = before.len() == 1 && now.len() == 2;
    if now.len() != before.len() && !grows {
        let value = crate::check::or_null(&new["spec"]["cidrs"]);
        errors.push(FieldError::invalid(&path, value, IMMUTABLE));
        return errors;
    }
    for (i, (a, _)) in now.iter().zip(&before).enumerate().filter(|(_, (a, b))| a != b) {
        errors.push(FieldError::invalid(&path.index(i), *a, IMMUTABLE));
    }
    if grows {
        blocks(&mut errors, &new["spec"]);
    }
    errors
}
