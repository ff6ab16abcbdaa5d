//! APIService: a group version that another server answers.

use coxswain_meta::{ErrorList, FieldError, Path};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{filled, flag, has, int, items, present, set_default, text};

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
        name: crate::objectmeta::path_segment,
        validate,
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
    let wanted = format!("{}.{}", text(spec, "version"), text(spec, "group"));
    let called = crate::value::name(service);
    if called != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), called, why));
    }
    for field in ["groupPriorityMinimum", "versionPriority"] {
        let priority = int(spec, field).unwrap_or(0);
        let most = if field == "versionPriority" { 1000 } else { 20000 };
        if priority <= 0 || priority > most {
            let why = format!("must be positive and less than {most}");
            errors.push(FieldError::invalid(&path.child(field), priority, why));
        }
    }
    let to = &spec["service"];
    if has(spec, "service") {
        for field in ["namespace", "name"] {
            if !filled(to, field) {
                errors.push(FieldError::required(&path.child("service").child(field), ""));
            }
        }
        if flag(spec, "insecureSkipTLSVerify") && filled(spec, "caBundle") {
            let why = "may not be true if caBundle is present";
            errors.push(FieldError::invalid(&path.child("insecureSkipTLSVerify"), true, why));
        }
    } else if filled(spec, "caBundle") || flag(spec, "insecureSkipTLSVerify") {
        let why = "local APIServices may not have a caBundle";
        errors.push(FieldError::invalid(&path.child("caBundle"), "", why));
    }
    errors
}
