//! The core kinds that need little: ServiceAccount, PodTemplate, ComponentStatus.

use coxswain_meta::ErrorList;

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::prepare;
use crate::table::{CONTAINERS, IMAGES, NAME, column, containers, labels, name};
use crate::value::{child, items, text};

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
