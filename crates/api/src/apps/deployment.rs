//! Deployment.

use coxswain_meta::json::Value;
use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path};

use super::{
    at_most_all, count_or_percent, counts, fixed_selector, is_none, not_negative, selector_and_template,
};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::schema;
use crate::table::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, column, containers, name, number};
use crate::value::{child, has, int, set_default, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::SCALE, Subresource::status("apps", "v1", "Deployment")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks {
        default,
        validate,
        validate_update: fixed_selector,
        validate_status: |new, _| {
            counts(
                new,
                &["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas"],
            )
        },
        row,
        ..Hooks::COUNTED
    },
    ..kind!("apps", "v1", "Deployment", "deployments", "deployment")
};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Pods that are ready, of those wanted."),
    column("Up-to-date", "Pods of the current template."),
    column("Available", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn default(deployment: &mut Value) {
    let Some(spec) = child(deployment, "spec") else { return };
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        set_default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set_default(rolling, "maxUnavailable", "25%");
            set_default(rolling, "maxSurge", "25%");
        }
    }
    if let Some(template) = child(spec, "template") {
        pod::default_template(template);
    }
}

fn validate(deployment: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&deployment["spec"], Path::new("spec"));
    not_negative(&mut errors, spec, "replicas", &path);
    selector_and_template(&mut errors, spec, &path);
    strategy(&mut errors, &spec["strategy"], &path.child("strategy"));
    for key in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        not_negative(&mut errors, spec, key, &path);
    }
    if let Some(deadline) = int(spec, "progressDeadlineSeconds")
        && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
    {
        let at = path.child("progressDeadlineSeconds");
        errors.push(FieldError::invalid(&at, deadline, "must be greater than minReadySeconds"));
    }
    errors
}

fn strategy(errors: &mut ErrorList, strategy: &Value, path: &Path) {
    let at = path.child("rollingUpdate");
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => {
            let rule = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&at, rule));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let rolling = &strategy["rollingUpdate"];
            count_or_percent(errors, rolling, "maxUnavailable", &at);
            count_or_percent(errors, rolling, "maxSurge", &at);
            if is_none(&rolling["maxUnavailable"]) && is_none(&rolling["maxSurge"]) {
                let rule = "may not be 0 when `maxSurge` is 0";
                let value = rolling["maxUnavailable"].clone();
                errors.push(FieldError::invalid(&at.child("maxUnavailable"), value, rule));
            }
            at_most_all(errors, rolling, "maxUnavailable", &at);
        }
        _ => {
            // Upstream shows its internal form of the strategy.
            let shown = schema::internal(strategy, "io.k8s.api.apps.v1.DeploymentStrategy");
            let known = "supported values: \"Recreate\", \"RollingUpdate\"";
            errors.push(FieldError::not_supported_shown(path, &shown, known));
        }
    }
}

fn row(deployment: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let [names, images] = containers(&spec["template"]);
    let selector =
        Selector::from_label_selector(&spec["selector"]).map_or("<invalid>".into(), |s| s.to_string());
    vec![
        name(deployment),
        format!("{}/{}", number(status, "readyReplicas"), number(spec, "replicas")).into(),
        number(status, "updatedReplicas"),
        number(status, "availableReplicas"),
        age(deployment, now),
        names,
        images,
        selector.into(),
    ]
}
