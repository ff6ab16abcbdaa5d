//! Events, as the core group and as events.k8s.io serve them. Both are stored in the core form.

use coxswain_meta::json::{Map, Value};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::objectmeta::{IMMUTABLE, immutable_struct};
use crate::table::{NAME, column, number, or, since, wide};
use crate::value::{has, int, name, text};

pub(crate) const KIND: Kind = Kind {
    short_names: &["ev"],
    columns: COLUMNS,
    selectable: SELECTABLE,
    hooks: Hooks { validate, selectable, row, ..Hooks::PLAIN },
    create_on_update: true,
    ..kind!("", "v1", "Event", "events", "event")
};

pub(crate) const NEW_KIND: Kind = Kind {
    group: "events.k8s.io",
    selectable: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    field_aliases: &[("regarding.", "involvedObject."), ("reportingController", "reportingComponent")],
    hooks: Hooks {
        validate: validate_newer,
        validate_new,
        validate_update,
        to_storage,
        from_storage,
        ..KIND.hooks
    },
    ..KIND
};

const SELECTABLE: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

const COLUMNS: &[Column] = &[
    column("Last Seen", "Time since it was last seen."),
    column("Type", "Normal or Warning."),
    column("Reason", "Machine-readable reason."),
    column("Object", "What it is about."),
    wide("Subobject", "The part of the object."),
    wide("Source", "Who saw it."),
    column("Message", "What happened."),
    wide("First Seen", "Time since it was first seen."),
    wide("Count", "How often it was seen."),
    Column { priority: 1, ..NAME },
];

/// `(core field, events.k8s.io field)`
const RENAMED: &[(&str, &str)] = &[
    ("message", "note"),
    ("involvedObject", "regarding"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn rename(map: &mut Map, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

fn to_storage(event: &mut Value) {
    if let Value::Object(map) = event {
        RENAMED.iter().for_each(|(core, new)| rename(map, new, core));
        map.insert("apiVersion", "v1".into());
    }
}

fn from_storage(event: &mut Value) {
    if let Value::Object(map) = event {
        RENAMED.iter().for_each(|(core, new)| rename(map, core, new));
        // The older form always has them.
        for key in ["reportingController", "reportingInstance"] {
            if map.get(key).is_some_and(|value| value == "") {
                map.remove(key);
            }
        }
        map.insert("apiVersion", "events.k8s.io/v1".into());
    }
}

/// What both forms must satisfy, in the core form; `controller` is what the form at hand calls the reporting controller.
fn common(event: &Value, controller: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    let namespace = text(&event["metadata"], "namespace");
    let involved = text(&event["involvedObject"], "namespace");
    // Events about cluster-scoped objects live in the default namespace (or kube-system, for nodes of old).
    let new = has(event, "eventTime");
    let fits = match involved {
        "" => namespace == "default" || namespace.is_empty() || (new && namespace == "kube-system"),
        involved => new || involved == namespace,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(FieldError::invalid(&path, involved, "does not match event.namespace"));
    }
    if !new {
        return errors;
    }
    let reporter = text(event, "reportingComponent");
    if reporter.is_empty() {
        errors.push(FieldError::required(&Path::new(controller), ""));
    }
    errors.invalid_each(&Path::new(controller), reporter, names::qualified_name(reporter));
    for (key, most) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let value = text(event, key);
        if value.is_empty() && key != "message" {
            errors.push(FieldError::required(&Path::new(key), ""));
        }
        if value.len() > most {
            let rule = format!("can have at most {most} characters");
            errors.push(FieldError::invalid(&Path::new(key), "", rule));
        }
    }
    errors
}

fn validate(event: &Value) -> ErrorList {
    common(event, "reportingComponent")
}

/// Objects come here in the served form.
fn in_core_form(event: &Value) -> Value {
    let mut core = event.clone();
    to_storage(&mut core);
    core
}

fn validate_newer(event: &Value) -> ErrorList {
    common(&in_core_form(event), "reportingController")
}

fn series(errors: &mut ErrorList, event: &Value) {
    if !has(event, "series") {
        return;
    }
    if int(&event["series"], "count").unwrap_or(0) < 2 {
        errors.push(FieldError::invalid(&Path::new("series.count"), "", "should be at least 2"));
    }
    if !has(&event["series"], "lastObservedTime") {
        errors.push(FieldError::required(&Path::new("series.lastObservedTime"), ""));
    }
}

fn validate_new(event: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let event = in_core_form(event);
    series(&mut errors, &event);
    if !has(&event, "eventTime") {
        errors.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    if !matches!(text(&event, "type"), "Normal" | "Warning") {
        let rule = format!("has invalid value: {}", text(&event, "type"));
        errors.push(FieldError::invalid(&Path::new("type"), "", rule));
    }
    let unset = |key: &str| match key {
        "count" => int(&event, key).unwrap_or(0) == 0,
        "source" => ["component", "host"].iter().all(|part| text(&event["source"], part).is_empty()),
        key => !has(&event, key),
    };
    for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !unset(key) {
            errors.push(FieldError::invalid(&Path::new(key), "", "needs to be unset"));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, old) = (in_core_form(new), in_core_form(old));
    if new["series"] != old["series"] {
        series(&mut errors, &new);
    }
    let reference = "io.k8s.api.core.v1.ObjectReference";
    immutable_struct(&mut errors, &new, &old, "involvedObject", reference, &Path::root());
    for (key, reported) in [
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if new.get(key) != old.get(key) {
            // Texts that are gone are empty in Go.
            let empty = if matches!(key, "related" | "eventTime") { Value::Null } else { "".into() };
            let shown = new.get(key).cloned().unwrap_or(empty);
            errors.push(FieldError::invalid(&Path::new(reported), shown, IMMUTABLE));
        }
    }
    errors
}

fn selectable(event: &Value) -> Vec<(&'static str, String)> {
    let source = text(&event["source"], "component");
    let source = or(source, text(event, "reportingComponent"));
    SELECTABLE
        .iter()
        .map(|field| {
            let value = match field.strip_prefix("involvedObject.") {
                Some(inner) => text(&event["involvedObject"], inner),
                None if *field == "source" => source,
                None => text(event, field),
            };
            (*field, value.to_owned())
        })
        .collect()
}

fn row(event: &Value, now: i64) -> Vec<Value> {
    // The new form arrives here too: tables are made from what is served.
    let mut core = event.clone();
    if has(event, "regarding") {
        to_storage(&mut core);
    }
    let event = &core;
    let first_key = if has(event, "firstTimestamp") { "firstTimestamp" } else { "eventTime" };
    let first = since(event, first_key, now);
    let mut last =
        if has(event, "lastTimestamp") { since(event, "lastTimestamp", now) } else { first.clone() };
    let mut count = int(event, "count").filter(|n| *n > 0).map_or_else(|| 1.into(), Value::from);
    if has(event, "series") {
        last = since(&event["series"], "lastObservedTime", now);
        count = number(&event["series"], "count");
    }
    let object = &event["involvedObject"];
    let kind = text(object, "kind").to_lowercase();
    let target = match text(object, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(text(&event["source"], "component"), text(event, "reportingComponent"));
    let source = match or(text(&event["source"], "host"), text(event, "reportingInstance")) {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    vec![
        last.into(),
        text(event, "type").into(),
        text(event, "reason").into(),
        target.into(),
        text(object, "fieldPath").into(),
        source.into(),
        text(event, "message").trim().into(),
        first.into(),
        count,
        name(event).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_meta::json::json;

    #[test]
    fn forms_convert_both_ways() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"kind": "Pod"},
            "reportingController": "c", "deprecatedCount": 2});
        let mut event = new.clone();
        to_storage(&mut event);
        assert_eq!(
            event,
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"kind": "Pod"},
                "reportingComponent": "c", "count": 2})
        );
        from_storage(&mut event);
        assert_eq!(event, new);
    }
}
