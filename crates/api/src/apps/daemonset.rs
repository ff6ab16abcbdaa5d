//! DaemonSet.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path};

use super::{at_most_all, count_or_percent, fixed_selector, is_empty, is_none, not_negative, selector_of};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::objectmeta;
use crate::prepare;
use crate::schema;
use crate::table::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, column, containers, count, labels, name, number, selector,
};
use crate::value::{self, child, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::status("apps", "v1", "DaemonSet")],
    status: true,
    own_annotations: &[TEMPLATE_GENERATION],
    columns: COLUMNS,
    hooks: Hooks {
        default,
        prepare_create,
        prepare_update,
        validate,
        validate_update: fixed_selector,
        row,
        ..Hooks::COUNTED
    },
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
    // Upstream decodes an annotation into every set.
    if let Some(annotations) = child(set, "metadata").and_then(|m| child(m, "annotations")) {
        set_default(annotations, TEMPLATE_GENERATION, "0");
    }
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

/// The number of the template, which older clients read from an annotation.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn prepare_create(set: &mut Value) {
    prepare::create_counted(set);
    if let Some(annotations) = child(set, "metadata").and_then(|m| child(m, "annotations")) {
        value::set(annotations, TEMPLATE_GENERATION, "1");
    }
}

fn prepare_update(new: &mut Value, old: &Value) {
    prepare::update_counted(new, old);
    let before = text(&old["metadata"]["annotations"], TEMPLATE_GENERATION).parse::<i64>().unwrap_or(0);
    let generation = before + i64::from(new["spec"]["template"] != old["spec"]["template"]);
    if let Some(annotations) = child(new, "metadata").and_then(|m| child(m, "annotations")) {
        value::set(annotations, TEMPLATE_GENERATION, generation.to_string());
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&set["spec"], Path::new("spec"));
    let (selector, at) = (&spec["selector"], path.child("selector"));
    let (template, template_at) = (&spec["template"], path.child("template"));
    objectmeta::label_selector(&mut errors, selector, &at);
    if let Some(parsed) = selector_of(selector) {
        pod::validate_selected(&mut errors, template, &parsed, &template_at);
    }
    if selector.is_object() && is_empty(selector) {
        errors.push(FieldError::invalid(&at, json!({}), "empty selector is invalid for daemonset"));
    }
    pod::validate_template(&mut errors, template, &template_at);
    pod::validate_lasting(&mut errors, template, "DaemonSet", &template_at);
    not_negative(&mut errors, spec, "minReadySeconds", &path);
    let (strategy, at) = (&spec["updateStrategy"], path.child("updateStrategy"));
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            rolling_update(&mut errors, &strategy["rollingUpdate"], &at.child("rollingUpdate"));
        }
        _ => {
            let shown = schema::internal(strategy, "io.k8s.api.apps.v1.DaemonSetUpdateStrategy");
            let known = "supported values: \"RollingUpdate\", \"OnDelete\"";
            errors.push(FieldError::not_supported_shown(&at, &shown, known));
        }
    }
    not_negative(&mut errors, spec, "revisionHistoryLimit", &path);
    errors
}

fn rolling_update(errors: &mut ErrorList, rolling: &Value, at: &Path) {
    for key in ["maxUnavailable", "maxSurge"] {
        count_or_percent(errors, rolling, key, at);
        at_most_all(errors, rolling, key, at);
    }
    match (is_none(&rolling["maxUnavailable"]), is_none(&rolling["maxSurge"])) {
        (false, false) => {
            let rule = "may not be set when maxUnavailable is non-zero";
            errors.push(FieldError::invalid(&at.child("maxSurge"), rolling["maxSurge"].clone(), rule));
        }
        (true, true) => {
            let rule = "cannot be 0 when maxSurge is 0";
            errors.push(FieldError::required(&at.child("maxUnavailable"), rule));
        }
        _ => {}
    }
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
