//! APIService: a group version that another server answers.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{filled, flag, has, int, items, present, set, set_default, text};

const GROUP: &str = "apiregistration.k8s.io";

pub(crate) const SERVICE: Kind = Kind {
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::status(GROUP, "v1", "APIService")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| {
            if let Some(spec) = present(v, "spec")
                && let Some(service) = present(spec, "service")
            {
                set_default(service, "port", 443);
            }
        },
        prepare_create: |v| {
            prepare::create_status(v);
            if !has(&v["spec"], "service") {
                let since = v["metadata"]["creationTimestamp"].clone();
                let available = json!({"type": "Available", "status": "True", "lastTransitionTime": since,
                    "reason": "Local", "message": "Local APIServices are always available"});
                set(v, "status", json!({"conditions": [available]}));
            }
        },
        name: crate::objectmeta::path_segment,
        validate,
        validate_status: |v, _| {
            let mut errors = ErrorList::new();
            for (i, condition) in items(&v["status"], "conditions").iter().enumerate() {
                let known = &["True", "False", "Unknown"];
                if !known.contains(&text(condition, "status")) {
                    let at = Path::new("status").child("conditions").index(i).child("status");
                    errors.push(FieldError::not_supported(&at, text(condition, "status"), known));
                }
            }
            errors
        },
        row,
        ..Hooks::STATUS
    },
    ..kind!("apiregistration.k8s.io", "v1", "APIService", "apiservices", "apiservice")
};

const COLUMNS: &[Column] =
    &[NAME, column("Service", "Who answers."), column("Available", "Whether it does."), AGE];

fn row(v: &Value, now: i64) -> Vec<Value> {
    let service = &v["spec"]["service"];
    let who = match service.is_object() {
        true => format!("{}/{}", text(service, "namespace"), text(service, "name")),
        false => "Local".to_owned(),
    };
    let available = items(&v["status"], "conditions").iter().find(|c| text(c, "type") == "Available");
    let available = match available {
        Some(condition) if text(condition, "status") == "True" => "True".to_owned(),
        Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")),
        None => "Unknown".to_owned(),
    };
    vec![name(v), who.into(), available.into(), age(v, now)]
}

fn validate(service: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let wanted = format!("{version}.{group}");
    let called = crate::value::name(service);
    if !called.is_empty() && called != wanted && names::path_segment_name(called).is_empty() {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), called, why));
    }
    match group {
        "" if version != "v1" => {
            let rule = "only v1 may have an empty group and it better be legacy kube";
            errors.push(FieldError::required(&path.child("group"), rule));
        }
        "" => {}
        group => errors.invalid_each(&path.child("group"), group, names::dns1123_subdomain(group)),
    }
    errors.invalid_each(&path.child("version"), version, names::dns1035_label(version));
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = int(spec, field).unwrap_or(0);
        if priority <= 0 || priority > most {
            let why = format!("must be positive and less than {most}");
            errors.push(FieldError::invalid(&path.child(field), priority, why));
        }
    }
    let insecure = path.child("insecureSkipTLSVerify");
    if !has(spec, "service") {
        if filled(spec, "caBundle") {
            let shown = format!("{} bytes", crate::base64::decode(text(spec, "caBundle")).len());
            let why = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid(&path.child("caBundle"), shown, why));
        }
        if flag(spec, "insecureSkipTLSVerify") {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid(&insecure, true, why));
        }
        return errors;
    }
    let (to, at) = (&spec["service"], path.child("service"));
    for field in ["namespace", "name"] {
        if !filled(to, field) {
            errors.push(FieldError::required(&at.child(field), ""));
        }
    }
    let port = int(to, "port").unwrap_or(443);
    let broken = names::port_number(port);
    if !broken.is_empty() {
        let why = format!("port is not valid: {}", broken.join(", "));
        errors.push(FieldError::invalid(&at.child("port"), port, why));
    }
    if flag(spec, "insecureSkipTLSVerify") && filled(spec, "caBundle") {
        errors.push(FieldError::invalid(&insecure, true, "may not be true if caBundle is present"));
    }
    errors
}
