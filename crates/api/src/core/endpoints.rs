//! Endpoints: the older, unsliced form of a service's backends.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::check::optional_name;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{int, items, items_mut, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["ep"],
    columns: COLUMNS,
    hooks: Hooks { default, validate, row, ..Hooks::PLAIN },
    create_on_update: true,
    ..kind!("", "v1", "Endpoints", "endpoints", "endpoints")
};
const COLUMNS: &[Column] = &[NAME, column("Endpoints", "Addresses and ports that are ready."), AGE];

fn default(endpoints: &mut Value) {
    for subset in items_mut(endpoints, "subsets") {
        for port in items_mut(subset, "ports") {
            set_default(port, "protocol", "TCP");
        }
    }
}

fn validate(endpoints: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, subset) in items(endpoints, "subsets").iter().enumerate() {
        let path = Path::new("subsets").index(i);
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (j, address) in items(subset, key).iter().enumerate() {
                validate_address(&mut errors, address, &path.child(key).index(j));
            }
        }
        let ports = items(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let at = path.child("ports").index(j);
            match text(port, "name") {
                "" if ports.len() > 1 => errors.push(FieldError::required(&at.child("name"), "")),
                "" => {}
                name => errors.invalid_each(&at.child("name"), name, names::dns1123_label(name)),
            }
            crate::net::valid_port(&mut errors, int(port, "port").unwrap_or(0), &at.child("port"));
            crate::net::valid_protocol(&mut errors, text(port, "protocol"), &at.child("protocol"));
            if let Some(protocol) = port["appProtocol"].as_str() {
                errors.invalid_each(&at.child("appProtocol"), protocol, names::qualified_name(protocol));
            }
        }
    }
    errors
}

fn validate_address(errors: &mut ErrorList, address: &Value, path: &Path) {
    let (ip, at) = (text(address, "ip"), path.child("ip"));
    crate::net::valid_ip(errors, ip, &at);
    optional_name(errors, address, "hostname", names::dns1123_label, path);
    if let Some(node) = address["nodeName"].as_str() {
        errors.invalid_each(&path.child("nodeName"), node, names::dns1123_subdomain(node));
    }
    match ip.parse() {
        Ok(ip) => crate::discovery::special_address(errors, ip, &at),
        Err(_) => errors.push(FieldError::invalid(&at, ip, "must be a valid IP address")),
    }
}

fn row(endpoints: &Value, now: i64) -> Vec<Value> {
    vec![name(endpoints), summary(endpoints).into(), age(endpoints, now)]
}

fn summary(endpoints: &Value) -> String {
    let subsets = items(endpoints, "subsets");
    let mut list = Vec::new();
    for subset in subsets {
        let addresses = || items(subset, "addresses").iter().map(|a| text(a, "ip"));
        let ports = items(subset, "ports");
        if ports.is_empty() {
            list.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = int(port, "port").unwrap_or(0);
            list.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    match list.len() {
        0 if subsets.is_empty() => "<none>".into(),
        0..=3 => list.join(","),
        n => format!("{} + {} more...", list[..3].join(","), n - 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_meta::json::json;

    #[test]
    fn summary_shows_three() {
        let addresses: Vec<Value> = (1..5).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
        let object = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(summary(&object), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more...");
        assert_eq!(summary(&json!({})), "<none>");
    }
}
