//! The networking.k8s.io group: Ingress, IngressClass, NetworkPolicy, IPAddress and ServiceCIDR.

mod addresses;

pub(crate) use addresses::{IP_ADDRESS, SERVICE_CIDR};

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::{domain_prefixed_path, one_of, optional_name, required_name, texts};
use crate::net;
use crate::objectmeta::{self, immutable};
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name, or, selector};
use crate::value::{child, filled, has, int, items, items_mut, present, set, set_default, text};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const LONGEST_CONTROLLER: usize = 250;

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
        validate_new: validate_new_ingress,
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
        validate: validate_class,
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

fn validate_class(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&class["spec"], Path::new("spec"));
    let (controller, at) = (text(spec, "controller"), path.child("controller"));
    if controller.len() > LONGEST_CONTROLLER {
        errors.push(FieldError::too_long(&at, LONGEST_CONTROLLER));
    }
    domain_prefixed_path(&mut errors, controller, &at);
    let (parameters, path) = (&spec["parameters"], path.child("parameters"));
    if !has(spec, "parameters") {
        return errors;
    }
    reference(&mut errors, parameters, &path);
    one_of(&mut errors, parameters, "scope", &["Cluster", "Namespace"], &path);
    let at = path.child("namespace");
    match (text(parameters, "scope"), parameters["namespace"].as_str()) {
        ("Namespace", None) => {
            errors.push(FieldError::required(&at, "`parameters.scope` is set to 'Namespace'"));
        }
        ("Namespace", Some(name)) => errors.invalid_each(&at, name, names::dns1123_label(name)),
        ("Cluster", Some(_)) => {
            errors.push(FieldError::forbidden(&at, "`parameters.scope` is set to 'Cluster'"));
        }
        _ => {}
    }
    errors
}

/// A typed reference: group, kind and name.
fn reference(errors: &mut ErrorList, reference: &Value, path: &Path) {
    if let Some(group) = reference["apiGroup"].as_str() {
        errors.invalid_each(&path.child("apiGroup"), group, names::dns1123_subdomain(group));
    }
    for key in ["kind", "name"] {
        required_name(errors, reference, key, names::path_segment_name, path);
    }
}

fn validate_ingress(ingress: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&ingress["spec"], Path::new("spec"));
    if !has(spec, "defaultBackend") && !filled(spec, "rules") {
        let rule = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, spec["rules"].clone(), rule));
    }
    if has(spec, "defaultBackend") {
        backend(&mut errors, &spec["defaultBackend"], &path.child("defaultBackend"));
    }
    for (i, rule) in items(spec, "rules").iter().enumerate() {
        let at = path.child("rules").index(i);
        let host = text(rule, "host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            let rule = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(&at.child("host"), host, rule));
        }
        if !host.is_empty() {
            errors.invalid_each(&at.child("host"), host, host_name(host));
        }
        if has(rule, "http") && !filled(&rule["http"], "paths") {
            errors.push(FieldError::required(&at.child("http.paths"), ""));
        }
        for (j, entry) in items(&rule["http"], "paths").iter().enumerate() {
            ingress_path(&mut errors, entry, &at.child("http.paths").index(j));
        }
    }
    for (i, tls) in items(spec, "tls").iter().enumerate() {
        let at = path.child("tls").index(i);
        for (j, host) in texts(tls, "hosts").iter().enumerate() {
            errors.invalid_each(&at.child("hosts").index(j), host, host_name(host));
        }
        optional_name(&mut errors, tls, "secretName", names::dns1123_subdomain, &at);
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        errors.invalid_each(&path.child("ingressClassName"), class, names::dns1123_subdomain(class));
    }
    errors
}

fn validate_new_ingress(ingress: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let annotation = ingress["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    if let (Some(old), Some(new)) = (annotation, ingress["spec"]["ingressClassName"].as_str())
        && old != new
    {
        let rule = "must match `ingressClassName` when both are specified";
        errors.push(FieldError::invalid(&Path::new("annotations").child(CLASS_ANNOTATION), old, rule));
    }
    errors
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_dns1123_subdomain(host) } else { names::dns1123_subdomain(host) }
}

fn ingress_path(errors: &mut ErrorList, entry: &Value, at: &Path) {
    let (kind, path) = (&entry["pathType"], text(entry, "path"));
    let exact = kind == "Exact" || kind == "Prefix";
    if kind.is_null() {
        errors.push(FieldError::required(&at.child("pathType"), "pathType must be specified"));
        return;
    }
    let mut invalid = |rule: String| errors.push(FieldError::invalid(&at.child("path"), path, rule));
    if (exact || (kind == "ImplementationSpecific" && !path.is_empty())) && !path.starts_with('/') {
        invalid("must be an absolute path".into());
    }
    if exact {
        for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| path.contains(**part)) {
            invalid(format!("must not contain '{part}'"));
        }
        for end in ["/..", "/."].iter().filter(|end| path.ends_with(**end)) {
            invalid(format!("cannot end with '{end}'"));
        }
    }
    one_of(errors, entry, "pathType", &["Exact", "ImplementationSpecific", "Prefix"], at);
    backend(errors, &entry["backend"], &at.child("backend"));
}

fn backend(errors: &mut ErrorList, backend: &Value, at: &Path) {
    match (has(backend, "service"), has(backend, "resource")) {
        (true, true) => {
            let rule = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(at, "", rule));
        }
        (false, false) => {
            errors.push(FieldError::invalid(at, "", "resource or service backend is required"));
        }
        (false, true) => reference(errors, &backend["resource"], &at.child("resource")),
        (true, false) => {
            let (service, path) = (&backend["service"], at.child("service"));
            required_name(errors, service, "name", names::dns1123_label, &path);
            let port = &service["port"];
            match (text(port, "name"), int(port, "number").unwrap_or(0)) {
                ("", 0) => errors.push(FieldError::required(at, "port name or number is required")),
                ("", number) => net::valid_port(errors, number, &path.child("port.number")),
                (name, 0) => errors.invalid_each(&path.child("port.name"), name, names::port_name(name)),
                _ => errors.push(FieldError::invalid(at, "", "cannot set both port name & port number")),
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
            items_mut(rule, "ports")
                .iter_mut()
                .filter(|port| !has(port, "protocol"))
                .for_each(|port| set(port, "protocol", "TCP"));
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
                policy_port(&mut errors, port, &at.child("ports").index(j));
            }
            for (j, peer) in items(rule, peers).iter().enumerate() {
                policy_peer(&mut errors, peer, &at.child(peers).index(j));
            }
        }
    }
    if items(spec, "policyTypes").len() > 2 {
        let rule = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(&path.child("policyTypes"), spec["policyTypes"].clone(), rule));
        return errors;
    }
    for (i, kind) in items(spec, "policyTypes").iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            let at = path.child("policyTypes").index(i);
            errors.push(FieldError::not_supported(&at, kind.clone(), &["Ingress", "Egress"]));
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
        ip_block(errors, &peer["ipBlock"], &at.child("ipBlock"));
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

fn ip_block(errors: &mut ErrorList, block: &Value, at: &Path) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        errors.push(FieldError::required(&at.child("cidr"), ""));
        return;
    }
    net::valid_cidr(errors, cidr, &at.child("cidr"));
    if !net::is_cidr(cidr) {
        return;
    }
    for (i, except) in texts(block, "except").iter().enumerate() {
        let at = at.child("except").index(i);
        net::valid_cidr(errors, except, &at);
        if net::is_cidr(except) && !net::is_strict_subset(except, cidr) {
            errors.push(FieldError::invalid(&at, *except, "must be a strict subset of `cidr`"));
        }
    }
}

fn policy_port(errors: &mut ErrorList, port: &Value, at: &Path) {
    one_of(errors, port, "protocol", &["TCP", "UDP", "SCTP"], at);
    if has(port, "port") {
        net::valid_port_reference(errors, &port["port"], &at.child("port"));
    }
    let Some(end) = int(port, "endPort") else { return };
    let at = at.child("endPort");
    let mut invalid = |value: i64, rule: &str| errors.push(FieldError::invalid(&at, value, rule));
    match &port["port"] {
        Value::Null => invalid(end, "may not be specified when `port` is not specified"),
        Value::String(_) => invalid(end, "may not be specified when `port` is non-numeric"),
        number => {
            let first = number.as_i64().unwrap_or(0);
            if end < first {
                invalid(first, "must be greater than or equal to `port`");
            }
            net::valid_port(errors, end, &at);
        }
    }
}
