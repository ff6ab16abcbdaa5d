//! Webhook configurations.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, default_rule, default_selectors,
    match_conditions, rule, selectors, set_absent,
};
use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::check::{fully_qualified, one_of, texts};
use crate::prepare;
use crate::table::{AGE, NAME, age, count, name};
use crate::value::{has, int, items, items_mut, present, text};

const COLUMNS: &[Column] = &[NAME, count("Webhooks", "Webhooks of the configuration."), AGE];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];

pub(crate) const VALIDATING_WEBHOOK: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| items_mut(v, "webhooks").iter_mut().for_each(default),
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate,
        row: |v, now| vec![name(v), items(v, "webhooks").len().into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration"
    )
};

pub(crate) const MUTATING_WEBHOOK: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| {
            for webhook in items_mut(v, "webhooks") {
                default(webhook);
                set_absent(webhook, "reinvocationPolicy", "Never".into());
            }
        },
        ..VALIDATING_WEBHOOK.hooks
    },
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration"
    )
};

fn default(webhook: &mut Value) {
    set_absent(webhook, "failurePolicy", "Fail".into());
    set_absent(webhook, "timeoutSeconds", 10.into());
    default_selectors(webhook);
    if let Some(service) = present(webhook, "clientConfig").and_then(|c| present(c, "service")) {
        set_absent(service, "port", 443.into());
    }
    items_mut(webhook, "rules").iter_mut().for_each(default_rule);
}

fn validate(configuration: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = Vec::new();
    for (i, webhook) in items(configuration, "webhooks").iter().enumerate() {
        let path = Path::new("webhooks").index(i);
        validate_webhook(&mut errors, webhook, &path);
        review_versions(&mut errors, webhook, &path.child("admissionReviewVersions"));
        let name = text(webhook, "name");
        if !name.is_empty() && seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        seen.push(name);
    }
    errors
}

fn validate_webhook(errors: &mut ErrorList, webhook: &Value, path: &Path) {
    fully_qualified(errors, text(webhook, "name"), &path.child("name"));
    for (i, one) in items(webhook, "rules").iter().enumerate() {
        rule(errors, one, &path.child("rules").index(i));
    }
    one_of(errors, webhook, "failurePolicy", FAILURE_POLICIES, path);
    one_of(errors, webhook, "matchPolicy", MATCH_POLICIES, path);
    if !has(webhook, "sideEffects") {
        let message = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
        errors.push(FieldError::required(&path.child("sideEffects"), message));
    }
    one_of(errors, webhook, "sideEffects", SIDE_EFFECTS, path);
    if let Some(seconds) = int(webhook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let message = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(&path.child("timeoutSeconds"), seconds, message));
    }
    selectors(errors, webhook, path);
    one_of(errors, webhook, "reinvocationPolicy", REINVOCATION_POLICIES, path);
    let (config, at) = (&webhook["clientConfig"], path.child("clientConfig"));
    match (has(config, "url"), has(config, "service")) {
        (true, false) => url(errors, text(config, "url"), &at.child("url")),
        (false, true) => service(errors, &config["service"], &at.child("service")),
        _ => errors.push(FieldError::required(&at, "exactly one of url or service is required")),
    }
    match_conditions(errors, webhook, path);
}

fn review_versions(errors: &mut ErrorList, webhook: &Value, path: &Path) {
    let versions = texts(webhook, "admissionReviewVersions");
    if versions.is_empty() {
        let message = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::required(path, message));
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.push(FieldError::invalid(&path.index(i), *version, "duplicate version"));
            continue;
        }
        errors.invalid_each(&path.index(i), version, names::dns1035_label(version));
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let message = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::invalid(path, webhook["admissionReviewVersions"].clone(), message));
    }
}

/// The URL of a webhook: https, a host, and nothing that identifies a user or a question.
pub(crate) fn url(errors: &mut ErrorList, url: &str, path: &Path) {
    let form = "; desired format: https://host[/path]";
    let mut invalid = |value: &str, message: String| errors.push(FieldError::invalid(path, value, message));
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        invalid(scheme, format!("'https' is the only allowed URL scheme{form}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        invalid("", format!("host must be specified{form}"));
    }
    for (value, message) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !value.is_empty() {
            invalid(value, message.into());
        }
    }
}

/// The service of a webhook.
pub(crate) fn service(errors: &mut ErrorList, service: &Value, path: &Path) {
    // Upstream reports one in the place of the other.
    for (key, reported) in [("namespace", "name"), ("name", "namespace")] {
        if text(service, key).is_empty() {
            errors.push(FieldError::required(&path.child(reported), ""));
        }
    }
    let port = int(service, "port").unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let message = format!("port is not valid: {}", names::range_error(1, 65535));
        errors.push(FieldError::invalid(&path.child("port"), port, message));
    }
    if !has(service, "path") {
        return;
    }
    let (url, at) = (text(service, "path"), path.child("path"));
    if matches!(url, "" | "/") {
        return;
    }
    if !url.starts_with('/') {
        errors.push(FieldError::invalid(&at, url, "must start with a '/'"));
    }
    let steps: Vec<&str> = url.get(1..).unwrap_or_default().trim_end_matches('/').split('/').collect();
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() {
            errors.push(FieldError::invalid(&at, url, format!("segment[{i}] may not be empty")));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errors.push(FieldError::invalid(&at, url, format!("segment[{i}]: {message}")));
        }
    }
}
