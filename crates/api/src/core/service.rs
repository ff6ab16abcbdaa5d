//! Service. Cluster IPs and node ports are allocated by the API server between preparing and validating.

use std::net::IpAddr;

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::texts;
use crate::net;
use crate::objectmeta;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, labels, name, or, wide};
use crate::value::{child, filled, has, int, items, items_mut, present, remove, set, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[
        Subresource {
            name: "proxy",
            group: "",
            version: "v1",
            kind: "ServiceProxyOptions",
            verbs: &["create", "delete", "get", "patch", "update"],
        },
        Subresource::status("", "v1", "Service"),
    ],
    status: true,
    columns: COLUMNS,
    selectable: &["spec.clusterIP", "spec.type"],
    hooks: Hooks {
        name: objectmeta::label_1035,
        default,
        prepare_create: |v| set(v, "status", json!({"loadBalancer": {}})),
        prepare_update,
        validate,
        validate_update,
        selectable: |v| {
            let of = |key| text(&v["spec"], key).to_owned();
            vec![("spec.clusterIP", of("clusterIP")), ("spec.type", of("type"))]
        },
        row,
        ..Hooks::PLAIN
    },
    create_on_update: true,
    ..kind!("", "v1", "Service", "services", "service")
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "How the service is exposed."),
    column("Cluster-IP", "Address within the cluster."),
    column("External-IP", "Addresses for the outside."),
    column("Port(s)", "Ports, with their node ports."),
    AGE,
    wide("Selector", "Labels of the pods behind it."),
];

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

fn default(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    set_default(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None" {
        remove(spec, "sessionAffinityConfig");
    } else if text(spec, "sessionAffinity") == "ClientIP"
        && !has(&spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds")
    {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    set_default(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        set_default(port, "protocol", "TCP");
        if port["targetPort"] == 0 || port["targetPort"] == "" || !has(port, "targetPort") {
            let number = port["port"].clone();
            set(port, "targetPort", number);
        }
    }
    let kind = text(spec, "type").to_owned();
    let exposed = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if exposed || (kind == "ClusterIP" && filled(spec, "externalIPs")) {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if exposed || kind == "ClusterIP" {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// Whether a spec needs a field.
type Needs = fn(&Value) -> bool;

/// What a type brings with it, and which types do.
const WITH_TYPE: &[(&str, Needs)] = &[
    ("clusterIP", has_cluster_ip),
    ("clusterIPs", has_cluster_ip),
    ("ipFamilies", has_cluster_ip),
    ("ipFamilyPolicy", has_cluster_ip),
    ("healthCheckNodePort", has_health_check_port),
    ("allocateLoadBalancerNodePorts", |spec| text(spec, "type") == "LoadBalancer"),
    ("loadBalancerClass", |spec| text(spec, "type") == "LoadBalancer"),
    ("externalTrafficPolicy", is_exposed),
];

fn has_cluster_ip(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName"
}

fn has_node_ports(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

fn has_health_check_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn is_exposed(spec: &Value) -> bool {
    has_node_ports(spec) || (text(spec, "type") == "ClusterIP" && filled(spec, "externalIPs"))
}

/// What was allocated stays where the client leaves it out, and goes with the type that needed it where the client has not
/// changed it himself.
fn prepare_update(new: &mut Value, old: &Value) {
    prepare::update_status(new, old);
    let before = &old["spec"];
    let Some(spec) = child(new, "spec") else { return };
    let gone: Vec<&str> = WITH_TYPE
        .iter()
        .filter(|(_, needs)| needs(before) && !needs(spec))
        .map(|(field, _)| *field)
        .filter(|field| spec.get(field) == before.get(field))
        .collect();
    gone.into_iter().for_each(|field| remove(spec, field));
    let changed = text(spec, "clusterIP") != text(before, "clusterIP");
    if changed && spec.get("clusterIPs") == before.get("clusterIPs") {
        match text(spec, "clusterIP") {
            "" => remove(spec, "clusterIPs"),
            ip => set(spec, "clusterIPs", json!([ip])),
        }
    }
    if has_cluster_ip(spec) && has_cluster_ip(before) {
        if text(spec, "clusterIP").is_empty() {
            for key in ["clusterIP", "clusterIPs"] {
                if let Some(value) = before.get(key) {
                    set(spec, key, value.clone());
                }
            }
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = before.get(key) {
                set_default(spec, key, value.clone());
            }
        }
    }
    keep_node_ports(spec, before);
    if has_health_check_port(spec)
        && let Some(value) = before.get("healthCheckNodePort")
    {
        set_default(spec, "healthCheckNodePort", value.clone());
    }
    if text(spec, "type") != "LoadBalancer"
        && let Some(status) = present(new, "status")
    {
        set(status, "loadBalancer", json!({}));
    }
}

/// Ports keep their node ports by name; a type without node ports gives back those that the client left as they were.
fn keep_node_ports(spec: &mut Value, before: &Value) {
    let ports = |spec: &Value| -> Vec<i64> {
        items(spec, "ports")
            .iter()
            .filter_map(|port| int(port, "nodePort"))
            .filter(|port| *port != 0)
            .collect()
    };
    let (now, then) = (ports(spec), ports(before));
    if !has_node_ports(spec) {
        if has_node_ports(before) && now == then {
            items_mut(spec, "ports").iter_mut().for_each(|port| remove(port, "nodePort"));
        }
        return;
    }
    for port in items_mut(spec, "ports").iter_mut().filter(|port| int(port, "nodePort").unwrap_or(0) == 0) {
        let same = items(before, "ports").iter().find(|other| text(other, "name") == text(port, "name"));
        let kept = same.and_then(|other| int(other, "nodePort")).filter(|kept| !now.contains(kept));
        if let Some(kept) = kept {
            set(port, "nodePort", kept);
        }
    }
}

fn validate(service: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let rule = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), "None", rule));
        }
        "ExternalName" => external_name(&mut errors, spec, &path),
        _ => {}
    }
    for (i, port) in ports.iter().enumerate() {
        validate_port(&mut errors, port, &ports[..i], ports.len() > 1, kind, &path.child("ports").index(i));
    }
    objectmeta::labels(&mut errors, spec, "selector", &path);
    affinity(&mut errors, spec, &path);
    match kind {
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        other if !TYPES.contains(&other) => {
            errors.push(FieldError::not_supported(&path.child("type"), other, TYPES));
        }
        _ => {}
    }
    for (i, ip) in items(spec, "externalIPs").iter().enumerate() {
        external_ip(&mut errors, ip.as_str().unwrap_or_default(), &path.child("externalIPs").index(i));
    }
    traffic(&mut errors, spec, kind, &path);
    if kind != "ExternalName" {
        addresses(&mut errors, spec, &path);
    }
    errors
}

/// Families and addresses of the cluster.
fn addresses(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (one, all, at) = (text(spec, "clusterIP"), texts(spec, "clusterIPs"), path.child("clusterIPs"));
    match all.first() {
        None if !one.is_empty() => errors.push(FieldError::required(&at, "")),
        Some(_) if one.is_empty() => {
            let rule = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(&at, all.clone(), rule));
        }
        Some(first) if *first != one => {
            errors.push(FieldError::invalid(&at, all.clone(), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    let families = texts(spec, "ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let at = path.child("ipFamilies").index(i);
        if !["IPv4", "IPv6"].contains(family) {
            errors.push(FieldError::not_supported(&at, *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(&at, *family));
        }
    }
    crate::check::one_of(
        errors,
        spec,
        "ipFamilyPolicy",
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        path,
    );
    for (i, ip) in all.iter().enumerate() {
        if i > 0 || *ip != "None" {
            net::valid_ip(errors, ip, &at.index(i));
        } else if all.len() > 1 {
            let rule = "'None' must be the first and only value";
            errors.push(FieldError::invalid(&at, all.clone(), rule));
        }
    }
    if all.len() > 2 {
        errors.push(FieldError::invalid(&at, all, "may only hold up to 2 values"));
    }
}

fn external_name(errors: &mut ErrorList, spec: &Value, path: &Path) {
    if filled(spec, "clusterIPs") {
        errors.push(FieldError::forbidden(
            &path.child("clusterIPs"),
            "may not be set for ExternalName services",
        ));
    }
    match text(spec, "externalName").trim_end_matches('.') {
        "" => errors.push(FieldError::required(&path.child("externalName"), "")),
        name => errors.invalid_each(&path.child("externalName"), name, names::dns1123_subdomain(name)),
    }
}

fn validate_port(
    errors: &mut ErrorList,
    port: &Value,
    earlier: &[Value],
    named: bool,
    kind: &str,
    at: &Path,
) {
    let name = text(port, "name");
    if named && name.is_empty() {
        errors.push(FieldError::required(&at.child("name"), ""));
    } else if !name.is_empty() {
        errors.invalid_each(&at.child("name"), name, names::dns1123_label(name));
        if earlier.iter().any(|p| text(p, "name") == name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        }
    }
    let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
    net::valid_port(errors, number, &at.child("port"));
    net::valid_protocol(errors, protocol, &at.child("protocol"));
    net::valid_port_reference(errors, &port["targetPort"], &at.child("targetPort"));
    if let Some(protocol) = port["appProtocol"].as_str() {
        errors.invalid_each(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
    }
    let node_port = int(port, "nodePort").unwrap_or(0);
    if node_port != 0 {
        if kind == "ClusterIP" {
            let rule = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(&at.child("nodePort"), rule));
        }
        let same = |p: &Value| int(p, "nodePort") == Some(node_port) && text(p, "protocol") == protocol;
        if earlier.iter().any(same) {
            errors.push(FieldError::duplicate(&at.child("nodePort"), node_port));
        }
    }
    if earlier.iter().any(|p| int(p, "port") == Some(number) && text(p, "protocol") == protocol) {
        let shown = json!({ "protocol": protocol, "port": number });
        let shown = crate::schema::internal(&shown, "io.k8s.api.core.v1.ServicePort");
        errors.push(FieldError::duplicate_shown(at, &shown));
    }
}

fn affinity(errors: &mut ErrorList, spec: &Value, path: &Path) {
    match text(spec, "sessionAffinity") {
        "" => errors.push(FieldError::required(&path.child("sessionAffinity"), "")),
        "ClientIP" => {
            let seconds = int(&spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds").unwrap_or(0);
            if !(1..=86400).contains(&seconds) {
                let at = path.child("sessionAffinityConfig.clientIP.timeoutSeconds");
                errors.push(FieldError::invalid(&at, seconds, "must be greater than 0 and less than 86400"));
            }
        }
        "None" if has(spec, "sessionAffinityConfig") => {
            let rule = "must not be set when session affinity is None";
            errors.push(FieldError::forbidden(&path.child("sessionAffinityConfig"), rule));
        }
        "None" => {}
        other => {
            let at = path.child("sessionAffinity");
            errors.push(FieldError::not_supported(&at, other, &["ClientIP", "None"]));
        }
    }
}

fn external_ip(errors: &mut ErrorList, ip: &str, at: &Path) {
    net::valid_ip(errors, ip, at);
    let rule = match ip.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => format!("may not be unspecified ({ip})"),
        Ok(IpAddr::V4(v4)) if v4.is_loopback() => {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
        }
        Ok(IpAddr::V6(v6)) if v6.is_loopback() => {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
        }
        _ => return,
    };
    errors.push(FieldError::invalid(at, ip, rule));
}

fn traffic(errors: &mut ErrorList, spec: &Value, kind: &str, path: &Path) {
    let policies = &["Cluster", "Local"];
    let external = text(spec, "externalTrafficPolicy");
    let exposed =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && filled(spec, "externalIPs"));
    let at = path.child("externalTrafficPolicy");
    if !exposed && !external.is_empty() {
        let rule = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(&at, external, rule));
    } else if !external.is_empty() && !policies.contains(&external) {
        errors.push(FieldError::not_supported(&at, external, policies));
    }
    let internal = text(spec, "internalTrafficPolicy");
    if !internal.is_empty() && !policies.contains(&internal) {
        errors.push(FieldError::not_supported(&path.child("internalTrafficPolicy"), internal, policies));
    }
    if let Some(class) = spec["loadBalancerClass"].as_str().filter(|_| kind == "LoadBalancer") {
        errors.invalid_each(&path.child("loadBalancerClass"), class, names::qualified_name(class));
    }
    let known = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(distribution) = spec["trafficDistribution"].as_str().filter(|said| !known.contains(said)) {
        errors.push(FieldError::not_supported(&path.child("trafficDistribution"), distribution, known));
    }
    if kind != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerSourceRanges", "loadBalancerClass"] {
            if has(spec, key) {
                let shown = if key == "loadBalancerSourceRanges" { "LoadBalancerSourceRanges" } else { key };
                let rule = "may only be used when `type` is 'LoadBalancer'";
                errors.push(FieldError::forbidden(&path.child(shown), rule));
            }
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old) = (&new["spec"], &old["spec"]);
    let external = |v: &Value| text(v, "type") == "ExternalName";
    let (now, before) = (text(new, "clusterIP"), text(old, "clusterIP"));
    if !external(new) && !external(old) && !before.is_empty() && now != before {
        let at = Path::new("spec").child("clusterIPs").index(0);
        errors.push(FieldError::invalid(&at, now, "may not change once set"));
    }
    errors
}

fn row(service: &Value, now: i64) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = items(spec, "ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
            match int(port, "nodePort") {
                Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    let cluster_ip = items(spec, "clusterIPs").first().and_then(Value::as_str);
    let cluster_ip = cluster_ip.unwrap_or_else(|| text(spec, "clusterIP"));
    vec![
        name(service),
        text(spec, "type").into(),
        or(cluster_ip, "<none>").into(),
        external_cell(service).into(),
        or(&ports.join(","), "<none>").into(),
        age(service, now),
        labels(spec, "selector").into(),
    ]
}

fn external_cell(service: &Value) -> String {
    let spec = &service["spec"];
    let mut ips: Vec<String> = Vec::new();
    if text(spec, "type") == "LoadBalancer" {
        let ingress = items(&service["status"]["loadBalancer"], "ingress").iter();
        ips.extend(
            ingress.map(|i| or(text(i, "ip"), text(i, "hostname")).to_owned()).filter(|s| !s.is_empty()),
        );
        ips.sort();
        ips.dedup();
    }
    ips.extend(items(spec, "externalIPs").iter().filter_map(|ip| ip.as_str().map(str::to_owned)));
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" if ips.is_empty() => "<pending>".into(),
        _ if ips.is_empty() => "<none>".into(),
        _ => ips.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec});
        KIND.default(&mut service).expect("defaults");
        service
    }

    #[test]
    fn what_a_type_brought_goes_with_it() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "externalTrafficPolicy": "Cluster", "ports": [{"name": "x", "port": 80, "nodePort": 30000}]},
            "status": {"loadBalancer": {}}});
        let mut new = old.clone();
        new["spec"]["type"] = "ExternalName".into();
        new["spec"]["externalName"] = "example.org".into();
        KIND.prepare_update(&mut new, &old);
        assert_eq!(
            new["spec"],
            json!({"type": "ExternalName", "externalName": "example.org", "ports": [{"name": "x", "port": 80}]})
        );
    }

    #[test]
    fn defaults() {
        assert_eq!(
            service(json!({"ports": [{"port": 80}]}))["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP",
                "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"})
        );
        let node_port = service(json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": "web"}]}));
        assert_eq!(node_port["spec"]["externalTrafficPolicy"], "Cluster");
        assert_eq!(node_port["spec"]["ports"][0]["targetPort"], "web");
    }

    #[test]
    fn rules() {
        let check =
            |spec: Value, want: &str| assert_eq!(KIND.validate_create(&service(spec)).to_string(), want);
        check(json!({"ports": [{"port": 80}]}), "[]");
        check(json!({}), "spec.ports: Required value");
        check(
            json!({"type": "Odd", "ports": [{"port": 80}]}),
            r#"spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        );
        check(
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            "spec.ports[0].name: Required value",
        );
        check(
            json!({"ports": [{"port": 0, "targetPort": 1}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        );
    }

    #[test]
    fn allocated_values_stay() {
        let old = service(json!({"type": "NodePort", "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"],
            "ports": [{"port": 80, "nodePort": 30036}]}));
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        KIND.prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.5");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30036);
        new["spec"]["clusterIP"] = json!("10.43.0.6");
        new["spec"]["clusterIPs"] = json!(["10.43.0.6"]);
        assert_eq!(
            KIND.validate_update(&new, &old).to_string(),
            "spec.clusterIPs[0]: Invalid value: \"10.43.0.6\": may not change once set"
        );
    }

    #[test]
    fn row() {
        let service = service(json!({"type": "NodePort", "clusterIP": "10.43.0.5",
            "ports": [{"port": 80, "nodePort": 30036}], "selector": {"app": "a"}}));
        let row = KIND.row(&service, 0);
        let want = ["s", "NodePort", "10.43.0.5", "<none>", "80:30036/TCP", "<unknown>", "app=a"];
        assert_eq!(row, want.map(Value::from));
    }
}
