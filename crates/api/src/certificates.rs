//! CertificateSigningRequest.

use coxswain_meta::{ErrorList, FieldError, Path};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::objectmeta::immutable;
use crate::table::{AGE, NAME, age, column, name, or};
use crate::time::human_duration;
use crate::value::{filled, int, items, text};

pub(crate) const SIGNING_REQUEST: Kind = Kind {
    short_names: &["csr"],
    namespaced: false,
    subresources: &[
        Subresource {
            name: "approval",
            group: "certificates.k8s.io",
            version: "v1",
            kind: "CertificateSigningRequest",
            verbs: &["get", "patch", "update"],
        },
        Subresource::status("certificates.k8s.io", "v1", "CertificateSigningRequest"),
    ],
    status: true,
    columns: COLUMNS,
    selectable: &["spec.signerName"],
    hooks: Hooks {
        validate,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            immutable(&mut errors, new, old, "spec", &Path::root());
            errors
        },
        selectable: |v| vec![("spec.signerName", text(&v["spec"], "signerName").to_owned())],
        row,
        ..Hooks::STATUS
    },
    ..kind!(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest"
    )
};

const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "Who is asked to sign."),
    column("Requestor", "Who asked."),
    column("RequestedDuration", "How long it should be valid."),
    column("Condition", "What became of it."),
];

fn validate(request: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&request["spec"], Path::new("spec"));
    if text(spec, "request").is_empty() {
        errors.push(FieldError::required(&path.child("request"), ""));
    }
    if !filled(spec, "usages") {
        errors.push(FieldError::required(&path.child("usages"), ""));
    }
    if text(spec, "signerName").is_empty() {
        errors.push(FieldError::required(&path.child("signerName"), ""));
    }
    if let Some(seconds) = int(spec, "expirationSeconds").filter(|s| *s < 600) {
        let rule = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid(&path.child("expirationSeconds"), seconds, rule));
    }
    errors
}

fn row(request: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&request["spec"], &request["status"]);
    let holds = |kind: &str| items(status, "conditions").iter().any(|c| text(c, "type") == kind);
    let mut condition = if holds("Denied") {
        "Denied".to_owned()
    } else if holds("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if holds("Failed") {
        condition.push_str(",Failed");
    }
    if !text(status, "certificate").is_empty() {
        condition.push_str(",Issued");
    }
    vec![
        name(request),
        age(request, now),
        or(text(spec, "signerName"), "<none>").into(),
        text(spec, "username").into(),
        int(spec, "expirationSeconds").map_or("<none>".into(), human_duration).into(),
        condition.into(),
    ]
}
