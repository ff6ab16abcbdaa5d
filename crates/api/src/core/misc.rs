//! The core kinds that need little: ServiceAccount, LimitRange, ResourceQuota, PodTemplate, ComponentStatus.

use coxswain_meta::ErrorList;
use serde_json::Value;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::prepare;
use crate::table::{self, AGE, CONTAINERS, IMAGES, NAME, age, column, containers, labels, name};
use crate::value::{child, entries, items, items_mut, text};

pub(crate) const SERVICE_ACCOUNT: Kind = Kind {
    short_names: &["sa"],
    subresources: &[Subresource {
        name: "token",
        group: "authentication.k8s.io",
        version: "v1",
        kind: "TokenRequest",
        verbs: &["create"],
    }],
    ..kind!("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount")
};

pub(crate) const LIMIT_RANGE: Kind = Kind {
    short_names: &["limits"],
    hooks: Hooks {
        default: default_limit_range,
        row: |v, _| vec![name(v), text(&v["metadata"], "creationTimestamp").into()],
        ..Hooks::PLAIN
    },
    columns: &[NAME, column("Created At", "When it was created.")],
    ..kind!("", "v1", "LimitRange", "limitranges", "limitrange")
};

/// Container limits: the default limit is the maximum; the default request the default limit, else the minimum.
fn default_limit_range(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for limit in items_mut(spec, "limits").iter_mut().filter(|l| l["type"] == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
            if let Some(Value::Object(target)) = child(limit, to) {
                source.into_iter().for_each(|(k, v)| {
                    target.entry(k).or_insert(v);
                });
            }
        }
    }
}

pub(crate) const RESOURCE_QUOTA: Kind = Kind {
    short_names: &["quota"],
    subresources: &[Subresource::status("", "v1", "ResourceQuota")],
    status: true,
    columns: QUOTA_COLUMNS,
    hooks: Hooks { row: quota_row, ..Hooks::STATUS },
    ..kind!("", "v1", "ResourceQuota", "resourcequotas", "resourcequota")
};
const QUOTA_COLUMNS: &[Column] = &[
    NAME,
    column("Request", "Used and hard amounts of requests."),
    column("Limit", "Used and hard amounts of limits."),
    AGE,
];

fn quota_row(quota: &Value, now: i64) -> Vec<Value> {
    let used = &quota["status"]["used"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in entries(&quota["status"], "hard") {
        let amount = |v: &Value| table::int_or_string(v, "0");
        let used = used.get(resource).map_or_else(|| "0".to_owned(), amount);
        let cell = format!("{resource}: {used}/{}", amount(hard));
        if resource.starts_with("limits.") { limits.push(cell) } else { requests.push(cell) }
    }
    vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
}

pub(crate) const POD_TEMPLATE: Kind = Kind {
    columns: &[NAME, CONTAINERS_SHOWN, IMAGES_SHOWN, column("Pod Labels", "Labels of the pods.")],
    hooks: Hooks {
        default: |v| {
            if let Some(template) = child(v, "template") {
                pod::default_template(template);
            }
        },
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: |v| {
            let mut errors = ErrorList::new();
            pod::validate_template(&mut errors, &v["template"], &coxswain_meta::Path::new("template"));
            errors
        },
        row: |v, _| {
            let [names, images] = containers(&v["template"]);
            vec![name(v), names, images, labels(&v["template"]["metadata"], "labels").into()]
        },
        ..Hooks::PLAIN
    },
    ..kind!("", "v1", "PodTemplate", "podtemplates", "podtemplate")
};
const CONTAINERS_SHOWN: Column = Column { priority: 0, ..CONTAINERS };
const IMAGES_SHOWN: Column = Column { priority: 0, ..IMAGES };

pub(crate) const COMPONENT_STATUS: Kind = Kind {
    short_names: &["cs"],
    namespaced: false,
    verbs: &["get", "list"],
    columns: &[
        NAME,
        column("Status", "Status of the component's conditions."),
        column("Message", "Message of the component's conditions."),
        column("Error", "Error of the component's conditions."),
    ],
    hooks: Hooks {
        row: |v, _| {
            let healthy = items(v, "conditions").iter().find(|c| c["type"] == "Healthy");
            let of = |key: &str| healthy.map_or("", |c| text(c, key));
            let status = match of("status") {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            };
            vec![name(v), status.into(), of("message").into(), of("error").into()]
        },
        ..Hooks::PLAIN
    },
    ..kind!("", "v1", "ComponentStatus", "componentstatuses", "componentstatus")
};
