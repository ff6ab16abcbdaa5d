//! CertificateSigningRequest.

use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::texts;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, name, or};
use crate::time::human_duration;
use crate::value::{int, items, set, text};

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
        prepare_update: |new, old| {
            set(new, "spec", old["spec"].clone());
            prepare::update_status(new, old);
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

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// `domain/name`.
fn signer_name(errors: &mut ErrorList, name: &str, at: &Path) {
    if name.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    if name == "kubernetes.io/legacy-unknown" {
        let rule = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid(at, name, rule));
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, path] = parts[..] else {
        let rule = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(at, name, rule));
        return;
    };
    let labels: Vec<&str> = domain.split('.').collect();
    if labels.len() < 2 {
        let rule = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(at, domain, rule));
    }
    let mut label = |shown: &str, label: &str, broken: Vec<String>| {
        for why in &broken {
            let rule = format!("validating label {}: {why}", serde_json::json!(label));
            errors.push(FieldError::invalid(at, shown, rule));
        }
        !broken.is_empty()
    };
    for part in labels {
        if label(domain, part, names::dns1123_label(part)) {
            break;
        }
    }
    for part in path.split('.') {
        if label(path, part, names::dns1123_subdomain(part)) {
            break;
        }
    }
}

fn validate(request: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&request["spec"], Path::new("spec"));
    let request = text(spec, "request");
    let pem = String::from_utf8(crate::base64::decode(request)).unwrap_or_default();
    if !pem.contains("-----BEGIN CERTIFICATE REQUEST-----")
        || !pem.contains("-----END CERTIFICATE REQUEST-----")
    {
        let shown = if request.is_empty() { Value::Null } else { request.into() };
        let rule = "PEM block type must be CERTIFICATE REQUEST";
        errors.push(FieldError::invalid(&path.child("request"), shown, rule));
    }
    let (usages, at) = (texts(spec, "usages"), path.child("usages"));
    if usages.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.push(FieldError::not_supported(&at.index(i), *usage, USAGES));
        }
    }
    for (i, usage) in usages.iter().enumerate() {
        if usages[..i].contains(usage) {
            errors.push(FieldError::duplicate(&at.index(i), *usage));
        }
    }
    signer_name(&mut errors, text(spec, "signerName"), &path.child("signerName"));
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
