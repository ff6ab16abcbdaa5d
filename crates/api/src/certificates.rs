//! CertificateSigningRequest.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

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
        validate_status,
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
            let rule = format!("validating label {}: {why}", json!(label));
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

/// What is decided once and for all.
const DECISIONS: &[&str] = &["Approved", "Denied", "Failed"];

/// What is wrong with the conditions of a request, but for what was wrong with them before.
pub fn conditions(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (conditions, path) = (items(&new["status"], "conditions"), Path::new("status").child("conditions"));
    let before = items(&old["status"], "conditions");
    let has = |list: &[Value], kind: &str| list.iter().any(|c| text(c, "type") == kind);
    let both = has(before, "Approved") && has(before, "Denied");
    let repeats = before.iter().enumerate().any(|(i, c)| has(&before[..i], text(c, "type")));
    for (i, condition) in conditions.iter().enumerate() {
        let (at, kind, status) = (path.index(i), text(condition, "type"), text(condition, "status"));
        if kind.is_empty() && !has(before, "") {
            errors.push(FieldError::required(&at.child("type"), ""));
        }
        let known: &[&str] =
            if DECISIONS.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(FieldError::required(&at.child("status"), ""));
        } else if !known.contains(&status) {
            errors.push(FieldError::not_supported(&at.child("status"), status, known));
        }
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !both && !other.is_empty() && has(&conditions[..i], other) {
            let rule = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(&path, kind, rule));
        }
        if !repeats && has(&conditions[..i], kind) {
            errors.push(FieldError::duplicate(&at.child("type"), kind));
        }
    }
    for kind in DECISIONS {
        if of_kind(conditions, kind) < of_kind(before, kind) {
            let rule = format!("updates may not remove a condition of type {kind:?}");
            errors.push(FieldError::forbidden(&path, rule));
        }
    }
    errors
}

fn of_kind(conditions: &[Value], kind: &str) -> usize {
    conditions.iter().filter(|condition| text(condition, "type") == kind).count()
}

fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = conditions(new, old);
    let path = Path::new("status");
    let (certificate, before) = (text(&new["status"], "certificate"), text(&old["status"], "certificate"));
    let at = path.child("certificate");
    if certificate != before && !certificate.is_empty() {
        let pem = String::from_utf8(crate::base64::decode(certificate)).unwrap_or_default();
        let mut kinds = pem.split("-----BEGIN ").skip(1).filter_map(|block| block.split_once("-----"));
        let wrong = match kinds.clone().find(|(kind, _)| *kind != "CERTIFICATE") {
            Some((kind, _)) => Some(format!("only CERTIFICATE PEM blocks are allowed, found {kind:?}")),
            None if kinds.next().is_none() => {
                Some("must contain at least one CERTIFICATE PEM block".to_owned())
            }
            None => None,
        };
        if let Some(rule) = wrong {
            errors.push(FieldError::invalid(&at, "<certificate data>", rule));
        }
    }
    for kind in ["Approved", "Denied"] {
        let count = |object: &Value| of_kind(items(&object["status"], "conditions"), kind);
        if count(new) > count(old) {
            let rule = format!("updates may not add a condition of type {kind:?}");
            errors.push(FieldError::forbidden(&path.child("conditions"), rule));
        }
    }
    if certificate != before && !before.is_empty() {
        errors.push(FieldError::forbidden(&at, "updates may not modify existing certificate content"));
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

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn a_status_decides_nothing_and_conditions_are_sound() {
        let of = |conditions: Value| json!({"status": {"conditions": conditions}});
        let approved = json!({"type": "Approved", "status": "True"});
        for (new, old, wanted) in [
            (
                json!([approved]),
                json!([]),
                "status.conditions: Forbidden: updates may not add a condition of type \"Approved\"",
            ),
            (
                json!([]),
                json!([approved]),
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\"",
            ),
            (json!([{"type": "A"}]), json!([]), "status.conditions[0].status: Required value"),
            (
                json!([{"type": "Failed", "status": "False"}]),
                json!([]),
                "status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\"",
            ),
            (json!([approved]), json!([approved]), ""),
        ] {
            let errors = validate_status(&of(new), &of(old));
            assert_eq!(if errors.is_empty() { String::new() } else { errors.to_string() }, wanted);
        }
        let signed = json!({"status": {"certificate": crate::base64::encode(b"x")}});
        assert_eq!(
            validate_status(&signed, &json!({})).to_string(),
            "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block"
        );
    }
}
