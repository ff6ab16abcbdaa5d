//! Validation of `PodSpec`.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::{claims, containers, names_of, placement, resources, security, volumes};
use crate::net;
use crate::objectmeta;
use crate::value::{filled, flag, has, int, items, text};

const DNS_POLICIES: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];

/// Checks a pod spec; `is_pod` is false in templates, which are judged a little less.
pub(super) fn validate(errors: &mut ErrorList, spec: &Value, path: &Path, is_pod: bool) {
    let volumes = volumes::validate(errors, spec, &path.child("volumes"));
    let scope = containers::Scope::new(spec, volumes, is_pod);
    claims::validate(errors, spec, path);
    containers::validate_all(errors, spec, path, &scope);
    one_of(errors, spec, "restartPolicy", RESTART_POLICIES, path);
    one_of(errors, spec, "dnsPolicy", DNS_POLICIES, path);
    objectmeta::labels(errors, spec, "nodeSelector", path);
    security::validate_pod(errors, spec, path);
    if has(spec, "resources") {
        resources::validate(errors, &spec["resources"], &path.child("resources"), &[]);
    }
    host_ports(errors, spec, path);
    placement::affinity(errors, &spec["affinity"], &path.child("affinity"));
    dns_config(errors, spec, path);
    for (i, gate) in items(spec, "readinessGates").iter().enumerate() {
        let condition = text(gate, "conditionType");
        let at = path.child("readinessGates").index(i).child("conditionType");
        errors.invalid_each(&at, condition, names::qualified_name(condition));
    }
    scheduling_gates(errors, spec, &path.child("schedulingGates"));
    placement::topology_spread(errors, items(spec, "topologySpreadConstraints"), path);
    identity(errors, spec, path);
    placement::tolerations(errors, items(spec, "tolerations"), &path.child("tolerations"));
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        let at = path.child("hostAliases").index(i);
        net::valid_ip(errors, text(alias, "ip"), &at.child("ip"));
        for name in items(alias, "hostnames").iter().filter_map(Value::as_str) {
            errors.invalid_each(&at.child("hostnames"), name, names::dns1123_subdomain(name));
        }
    }
}

fn one_of(errors: &mut ErrorList, spec: &Value, key: &str, supported: &[&str], path: &Path) {
    match text(spec, key) {
        "" => errors.push(FieldError::required(&path.child(key), "")),
        value if !supported.contains(&value) => {
            errors.push(FieldError::not_supported(&path.child(key), value, supported));
        }
        _ => {}
    }
}

/// Names the spec refers to, and time limits.
fn identity(errors: &mut ErrorList, spec: &Value, path: &Path) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (key, rule) in rules {
        let value = text(spec, key);
        if !value.is_empty() {
            errors.invalid_each(&path.child(key), value, rule(value));
        }
    }
    for (i, secret) in items(spec, "imagePullSecrets").iter().enumerate() {
        let name = text(secret, "name");
        let at = path.child("imagePullSecrets").index(i).child("name");
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        }
    }
    if let Some(seconds) = int(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let rule = names::range_error(1, i64::from(i32::MAX));
        errors.push(FieldError::invalid(&path.child("activeDeadlineSeconds"), seconds, rule));
    }
    match text(spec, "preemptionPolicy") {
        "" | "PreemptLowerPriority" | "Never" => {}
        other => {
            let supported = &["PreemptLowerPriority", "Never"];
            errors.push(FieldError::not_supported(&path.child("preemptionPolicy"), other, supported));
        }
    }
    match text(&spec["os"], "name") {
        "" if has(spec, "os") => errors.push(FieldError::required(&path.child("os.name"), "")),
        "" | "linux" | "windows" => {}
        other => errors.push(FieldError::not_supported(&path.child("os"), other, &["linux", "windows"])),
    }
}

/// With the host's network a host port is the container port, and no two containers share one in any case.
fn host_ports(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let host_network = flag(spec, "hostNetwork");
    let mut taken: Vec<String> = Vec::new();
    for (i, container) in items(spec, "containers").iter().enumerate() {
        for (j, port) in items(container, "ports").iter().enumerate() {
            let at = path.child("containers").index(i).child("ports").index(j).child("hostPort");
            let host_port = int(port, "hostPort").unwrap_or(0);
            if host_network && host_port != 0 && Some(host_port) != int(port, "containerPort") {
                let rule = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&at, host_port, rule));
            }
            if host_port == 0 {
                continue;
            }
            let key = format!("{}/{}/{host_port}", text(port, "protocol"), text(port, "hostIP"));
            if taken.contains(&key) {
                errors.push(FieldError::duplicate(&at, key));
            } else {
                taken.push(key);
            }
        }
    }
}

fn dns_config(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (config, at) = (&spec["dnsConfig"], path.child("dnsConfig"));
    if text(spec, "dnsPolicy") == "None" {
        if !config.is_object() {
            errors.push(FieldError::required(&at, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if !filled(config, "nameservers") {
            let rule = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(&at.child("nameservers"), rule));
            return;
        }
    }
    let servers = items(config, "nameservers");
    if servers.len() > 3 {
        let rule = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(&at.child("nameservers"), servers.to_vec(), rule));
    }
    for (i, server) in servers.iter().enumerate() {
        net::valid_ip(errors, server.as_str().unwrap_or_default(), &at.child("nameservers").index(i));
    }
    let searches = items(config, "searches");
    if searches.len() > 32 {
        let rule = "must not have more than 32 search paths";
        errors.push(FieldError::invalid(&at.child("searches"), searches.to_vec(), rule));
    }
    for (i, search) in searches.iter().filter_map(Value::as_str).enumerate() {
        let domain = if search == "." { "a" } else { search.strip_suffix('.').unwrap_or(search) };
        errors.invalid_each(
            &at.child("searches").index(i),
            domain,
            names::dns1123_subdomain_underscore(domain),
        );
    }
    for (i, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(&at.child("options").index(i), "must not be empty"));
        }
    }
}

fn scheduling_gates(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let gates = names_of(spec, "schedulingGates");
    for (i, gate) in gates.iter().enumerate() {
        errors.invalid_each(&path.index(i), gate, names::qualified_name(gate));
        if gates[..i].contains(gate) {
            errors.push(FieldError::duplicate(&path.index(i), *gate));
        }
    }
}
