//! Validation of probes and lifecycle hooks.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::net;
use crate::value::{filled, has, int, items, text};

const ACTIONS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// Checks a container's probes and hooks.
pub(super) fn validate(errors: &mut ErrorList, container: &Value, at: &Path, grace_seconds: Option<i64>) {
    for hook in ["postStart", "preStop"] {
        if has(&container["lifecycle"], hook) {
            let at = at.child("lifecycle").child(hook);
            handler(errors, &container["lifecycle"][hook], &at, grace_seconds);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, name) {
            probe(errors, name, &container[name], &at.child(name), grace_seconds);
        }
    }
}

fn probe(errors: &mut ErrorList, name: &str, probe: &Value, at: &Path, grace_seconds: Option<i64>) {
    handler(errors, probe, at, grace_seconds);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(n) = int(probe, key).filter(|n| *n < 0) {
            errors.push(FieldError::invalid(&at.child(key), n, "must be greater than or equal to 0"));
        }
    }
    let grace = "terminationGracePeriodSeconds";
    if let Some(seconds) = int(probe, grace) {
        if seconds <= 0 {
            errors.push(FieldError::invalid(&at.child(grace), seconds, "must be greater than 0"));
        }
        if name == "readinessProbe" {
            errors.push(FieldError::invalid(
                &at.child(grace),
                seconds,
                "must not be set for readinessProbes",
            ));
        }
    }
    let successes = int(probe, "successThreshold").unwrap_or(1);
    if name != "readinessProbe" && successes != 1 {
        errors.push(FieldError::invalid(&at.child("successThreshold"), successes, "must be 1"));
    }
}

fn handler(errors: &mut ErrorList, handler: &Value, at: &Path, grace_seconds: Option<i64>) {
    let mut count = 0;
    for action in ACTIONS.into_iter().filter(|action| has(handler, action)) {
        let (value, at) = (&handler[action], at.child(action));
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(&at, "may not specify more than 1 handler type"));
            continue;
        }
        match action {
            "exec" if !filled(value, "command") => {
                errors.push(FieldError::required(&at.child("command"), ""))
            }
            "httpGet" => http_get(errors, value, &at),
            "tcpSocket" => net::valid_port_reference(errors, &value["port"], &at.child("port")),
            "grpc" => net::valid_port(errors, int(value, "port").unwrap_or(0), &at.child("port")),
            "sleep" => sleep(errors, value, &at, grace_seconds),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
}

fn http_get(errors: &mut ErrorList, action: &Value, at: &Path) {
    if text(action, "path").is_empty() {
        errors.push(FieldError::required(&at.child("path"), ""));
    }
    net::valid_port_reference(errors, &action["port"], &at.child("port"));
    match text(action, "scheme") {
        "HTTP" | "HTTPS" => {}
        other => errors.push(FieldError::not_supported(&at.child("scheme"), other, &["HTTP", "HTTPS"])),
    }
    for header in items(action, "httpHeaders") {
        let name = text(header, "name");
        errors.invalid_each(&at.child("httpHeaders"), name, names::http_header_name(name));
    }
}

fn sleep(errors: &mut ErrorList, action: &Value, at: &Path, grace_seconds: Option<i64>) {
    let seconds = int(action, "seconds").unwrap_or(0);
    if let Some(grace) = grace_seconds.filter(|grace| !(0..=*grace).contains(&seconds)) {
        let rule = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(at, seconds, rule));
    }
}
