//! Webhook configurations.

use serde_json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::prepare;
use crate::table::{AGE, NAME, age, count, name};
use crate::value::{has, items, items_mut, present, set, set_default};

const COLUMNS: &[Column] = &[NAME, count("Webhooks", "Webhooks of the configuration."), AGE];

pub(crate) const VALIDATING_WEBHOOK: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    columns: COLUMNS,
    hooks: Hooks {
        default: |v| items_mut(v, "webhooks").iter_mut().for_each(default),
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
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
                set_default(webhook, "reinvocationPolicy", "Never");
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
    set_default(webhook, "failurePolicy", "Fail");
    set_default(webhook, "matchPolicy", "Equivalent");
    set_default(webhook, "timeoutSeconds", 10);
    for key in ["namespaceSelector", "objectSelector"] {
        if !has(webhook, key) {
            set(webhook, key, json!({}));
        }
    }
    if let Some(service) = present(webhook, "clientConfig").and_then(|c| present(c, "service")) {
        set_default(service, "port", 443);
    }
    for rule in items_mut(webhook, "rules") {
        set_default(rule, "scope", "*");
    }
}
