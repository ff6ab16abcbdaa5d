//! Ingress, IngressClass and NetworkPolicy.

use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::net;
use crate::objectmeta::{self, immutable};
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name, or, selector};
use crate::value::{child, filled, has, int, items, items_mut, present, set, set_default, text};

pub(crate) const INGRESS: Kind = Kind {
    short_names: &["ing"],
    subresources: &[Subresource::status("networking.k8s.io", "v1", "Ingress")],
    status: true,
    columns: INGRESS_COLUMNS,
    hooks: Hooks {
        prepare_create: |v| {
            prepare::create_counted(v);
            set(v, "status", json!({"loadBalancer": {}}));
        },
        validate: validate_ingress,
        row: ingress_row,
        ..Hooks::COUNTED
    },
    ..kind!("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress")
};
const INGRESS_COLUMNS: &[Column] = &[
    NAME,
    column("Class", "The class that implements it."),
    column("Hosts", "Hosts it answers for."),
    column("Address", "Addresses of the load balancer."),
    column("Ports", "Ports that are open."),
    AGE,
];

pub(crate) const INGRESS_CLASS: Kind = Kind {
    namespaced: false,
    columns: CLASS_COLUMNS,
    hooks: Hooks {
        default: |v| {
            if let Some(parameters) = present(v, "spec").and_then(|s| present(s, "parameters")) {
                set_default(parameters, "scope", "Cluster");
            }
        },
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            immutable(&mut errors, &new["spec"], &old["spec"], "controller", &Path::new("spec"));
            errors
        },
        row: class_row,
        ..Hooks::PLAIN
    },
    ..kind!("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass")
};
const CLASS_COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "What handles the class."),
    column("Parameters", "An object with more parameters."),
    AGE,
];

pub(crate) const POLICY: Kind = Kind {
    short_names: &["netpol"],
    columns: &[NAME, column("Pod-Selector", "The pods it applies to."), AGE],
    hooks: Hooks {
        default: default_policy,
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: validate_policy,
        row: |v, now| vec![name(v), selector(&v["spec"]["podSelector"]).into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy")
};

fn validate_ingress(ingress: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&ingress["spec"], Path::new("spec"));
    if !has(spec, "defaultBackend") && !filled(spec, "rules") {
        let rule = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, Value::Array(Vec::new()), rule));
    }
    if has(spec, "defaultBackend") {
        backend(&mut errors, &spec["defaultBackend"], &path.child("defaultBackend"));
    }
    for (i, rule) in items(spec, "rules").iter().enumerate() {
        let at = path.child("rules").index(i);
        let host = text(rule, "host");
        if host.starts_with('*') {
            errors.invalid_each(&at.child("host"), host, names::wildcard_dns1123_subdomain(host));
        } else if !host.is_empty() {
            errors.invalid_each(&at.child("host"), host, names::dns1123_subdomain(host));
        }
        if has(rule, "http") && !filled(&rule["http"], "paths") {
            errors.push(FieldError::required(&at.child("http.paths"), ""));
        }
        for (j, entry) in items(&rule["http"], "paths").iter().enumerate() {
            ingress_path(&mut errors, entry, &at.child("http.paths").index(j));
        }
    }
    errors
}

fn ingress_path(errors: &mut ErrorList, entry: &Value, at: &Path) {
    let (kind, path) = (text(entry, "pathType"), text(entry, "path"));
    match kind {
        "" => errors.push(FieldError::required(&at.child("pathType"), "pathType must be specified")),
        "Exact" | "Prefix" if !path.starts_with('/') => {
            errors.push(FieldError::invalid(&at.child("path"), path, "must be an absolute path"));
        }
        "Exact" | "Prefix" | "ImplementationSpecific" => {}
        other => {
            let known = &["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(FieldError::not_supported(&at.child("pathType"), other, known));
        }
    }
    backend(errors, &entry["backend"], &at.child("backend"));
}

fn backend(errors: &mut ErrorList, backend: &Value, at: &Path) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => {
            let rule = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(at, "", rule));
        }
        (false, false) => errors.push(FieldError::required(at, "port name or number is required")),
        (false, true) => {}
        (true, false) => {
            let (service, at) = (&backend["service"], at.child("service"));
            match text(service, "name") {
                "" => errors.push(FieldError::required(&at.child("name"), "")),
                name => errors.invalid_each(&at.child("name"), name, names::dns1035_label(name)),
            }
            let port = &service["port"];
            match (text(port, "name"), int(port, "number").unwrap_or(0)) {
                ("", 0) => errors.push(FieldError::required(&at, "port name or number is required")),
                ("", number) => net::valid_port(errors, number, &at.child("port.number")),
                (name, 0) => errors.invalid_each(&at.child("port.name"), name, names::port_name(name)),
                _ => errors.push(FieldError::invalid(&at, "", "cannot set both port name & port number")),
            }
        }
    }
}

fn ingress_row(ingress: &Value, now: i64) -> Vec<Value> {
    let spec = &ingress["spec"];
    let hosts: Vec<&str> =
        items(spec, "rules").iter().map(|r| text(r, "host")).filter(|h| !h.is_empty()).collect();
    let hosts = match hosts.len() {
        0 => "*".to_owned(),
        n @ 4.. => format!("{} + {} more...", hosts[..3].join(","), n - 3),
        _ => hosts.join(","),
    };
    let addresses: Vec<&str> = items(&ingress["status"]["loadBalancer"], "ingress")
        .iter()
        .map(|i| or(text(i, "ip"), text(i, "hostname")))
        .collect();
    vec![
        name(ingress),
        or(text(spec, "ingressClassName"), "<none>").into(),
        hosts.into(),
        addresses.join(",").into(),
        if filled(spec, "tls") { "80, 443" } else { "80" }.into(),
        age(ingress, now),
    ]
}

fn class_row(class: &Value, now: i64) -> Vec<Value> {
    let mut shown = crate::value::name(class).to_owned();
    let annotations = &class["metadata"]["annotations"];
    if text(annotations, "ingressclass.kubernetes.io/is-default-class") == "true" {
        shown.push_str(" (default)");
    }
    let parameters = &class["spec"]["parameters"];
    let reference = match parameters.is_object() {
        true => {
            let kind =
                coxswain_meta::status::qualified(text(parameters, "apiGroup"), text(parameters, "kind"));
            format!("{kind}/{}", text(parameters, "name"))
        }
        false => "<none>".into(),
    };
    vec![shown.into(), text(&class["spec"], "controller").into(), reference.into(), age(class, now)]
}

fn default_policy(policy: &mut Value) {
    let Some(spec) = child(policy, "spec") else { return };
    if !filled(spec, "policyTypes") {
        let types = if filled(spec, "egress") { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set(spec, "policyTypes", types);
    }
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            items_mut(rule, "ports").iter_mut().for_each(|port| set_default(port, "protocol", "TCP"));
        }
    }
}

fn validate_policy(policy: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&policy["spec"], Path::new("spec"));
    objectmeta::label_selector(&mut errors, &spec["podSelector"], &path.child("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in items(spec, direction).iter().enumerate() {
            let at = path.child(direction).index(i);
            for (j, port) in items(rule, "ports").iter().enumerate() {
                let at = at.child("ports").index(j);
                if has(port, "port") {
                    net::valid_port_reference(&mut errors, &port["port"], &at.child("port"));
                }
                net::valid_protocol(&mut errors, text(port, "protocol"), &at.child("protocol"));
            }
            for (j, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(&mut errors, peer, &at.child(peers).index(j));
            }
        }
    }
    for (i, kind) in items(spec, "policyTypes").iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            let at = path.child("policyTypes").index(i);
            errors.push(FieldError::not_supported(&at, kind.clone(), &["Egress", "Ingress"]));
        }
    }
    errors
}

fn policy_peer(errors: &mut ErrorList, peer: &Value, at: &Path) {
    let (selects, block) = (has(peer, "podSelector") || has(peer, "namespaceSelector"), has(peer, "ipBlock"));
    for key in ["podSelector", "namespaceSelector"] {
        objectmeta::label_selector(errors, &peer[key], &at.child(key));
    }
    if block {
        let at = at.child("ipBlock");
        net::valid_cidr(errors, text(&peer["ipBlock"], "cidr"), &at.child("cidr"));
        for (i, except) in items(&peer["ipBlock"], "except").iter().enumerate() {
            net::valid_cidr(errors, except.as_str().unwrap_or_default(), &at.child("except").index(i));
        }
    }
    match (selects, block) {
        (false, false) => errors.push(FieldError::required(at, "must specify a peer")),
        (true, true) => {
            let rule = "may not specify both ipBlock and another peer";
            errors.push(FieldError::forbidden(at, rule));
        }
        _ => {}
    }
}
