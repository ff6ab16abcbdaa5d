//! DaemonSet.

use coxswain_meta::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::{count_or_percent, fixed_selector, is_none, not_negative, selector_and_template};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::table::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, column, containers, count, labels, name, number, selector,
};
use crate::value::{child, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::status("apps", "v1", "DaemonSet")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks { default, validate, validate_update: fixed_selector, row, ..Hooks::COUNTED },
    ..kind!("apps", "v1", "DaemonSet", "daemonsets", "daemonset")
};

const COLUMNS: &[Column] = &[
    NAME,
    count("Desired", "Nodes that should run a pod."),
    count("Current", "Nodes that run one."),
    count("Ready", "Nodes whose pod is ready."),
    count("Up-to-date", "Nodes whose pod is of the current template."),
    count("Available", "Nodes whose pod has been ready long enough."),
    column("Node Selector", "Labels of the nodes."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn default(set: &mut Value) {
    let Some(spec) = child(set, "spec") else { return };
    set_default(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        set_default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set_default(rolling, "maxUnavailable", 1);
            set_default(rolling, "maxSurge", 0);
        }
    }
    if let Some(template) = child(spec, "template") {
        pod::default_template(template);
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&set["spec"], Path::new("spec"));
    selector_and_template(&mut errors, spec, "empty selector is invalid for daemonset", &path);
    not_negative(&mut errors, spec, "minReadySeconds", &path);
    not_negative(&mut errors, spec, "revisionHistoryLimit", &path);
    let (strategy, at) = (&spec["updateStrategy"], path.child("updateStrategy"));
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (rolling, at) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
            count_or_percent(&mut errors, rolling, "maxUnavailable", false, &at);
            count_or_percent(&mut errors, rolling, "maxSurge", false, &at);
            let (unavailable, surge) = (is_none(&rolling["maxUnavailable"]), is_none(&rolling["maxSurge"]));
            if unavailable == surge {
                let value = rolling["maxSurge"].clone();
                let rule = if surge {
                    "cannot be 0 when maxUnavailable is 0"
                } else {
                    "may not be set when maxUnavailable is non-zero"
                };
                errors.push(FieldError::invalid(&at.child("maxSurge"), value, rule));
            }
        }
        other => {
            errors.push(FieldError::not_supported(&at.child("type"), other, &["OnDelete", "RollingUpdate"]));
        }
    }
    errors
}

fn row(set: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&set["spec"], &set["status"]);
    let [names, images] = containers(&spec["template"]);
    vec![
        name(set),
        number(status, "desiredNumberScheduled"),
        number(status, "currentNumberScheduled"),
        number(status, "numberReady"),
        number(status, "updatedNumberScheduled"),
        number(status, "numberAvailable"),
        labels(&spec["template"]["spec"], "nodeSelector").into(),
        age(set, now),
        names,
        images,
        selector(&spec["selector"]).into(),
    ]
}
