//! CustomResourceDefinition: names, versions and structural schemas of the kinds that users add.

use coxswain_meta::{ErrorList, FieldError, Path, names};
use serde_json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::objectmeta::immutable;
use crate::prepare;
use crate::table::{NAME, column, name};
use crate::value::{filled, flag, has, items, items_mut, present, set, set_default, text};

const GROUP: &str = "apiextensions.k8s.io";

pub(crate) const DEFINITION: Kind = Kind {
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::status(GROUP, "v1", "CustomResourceDefinition")],
    status: true,
    columns: COLUMNS,
    hooks: Hooks {
        default,
        prepare_create: |v| {
            prepare::create_counted(v);
            let stored = items(&v["spec"], "versions").iter().find(|version| flag(version, "storage"));
            let stored = json!(stored.map(|version| text(version, "name")).into_iter().collect::<Vec<_>>());
            let names = json!({"plural": "", "kind": ""});
            let none = Value::Array(Vec::new());
            set(v, "status", json!({"conditions": none, "acceptedNames": names, "storedVersions": stored}));
        },
        prepare_update: |new, old| {
            prepare::update_counted(new, old);
            let storage = items(&new["spec"], "versions").iter().find(|version| flag(version, "storage"));
            let Some(storage) = storage.map(|version| version["name"].clone()) else { return };
            if let Some(Value::Array(stored)) =
                new.get_mut("status").and_then(|s| s.get_mut("storedVersions"))
                && !stored.contains(&storage)
            {
                stored.push(storage);
            }
        },
        validate,
        validate_update,
        row: |v, _| vec![name(v), v["metadata"]["creationTimestamp"].clone()],
        ..Hooks::COUNTED
    },
    ..kind!(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition"
    )
};

const COLUMNS: &[Column] =
    &[NAME, Column { type_: "date", ..column("Created At", "When the definition was created.") }];

fn default(definition: &mut Value) {
    let Some(spec) = present(definition, "spec") else { return };
    if let Some(names) = present(spec, "names") {
        let kind = text(names, "kind").to_owned();
        set_default(names, "singular", kind.to_lowercase());
        set_default(names, "listKind", format!("{kind}List"));
    }
    if !has(spec, "conversion") {
        set(spec, "conversion", json!({"strategy": "None"}));
    }
    if let Some(conversion) = present(spec, "conversion")
        && let Some(webhook) = present(conversion, "webhook")
        && let Some(client) = present(webhook, "clientConfig")
        && let Some(service) = present(client, "service")
    {
        set_default(service, "port", 443);
    }
    for version in items_mut(spec, "versions") {
        if let Some(Value::Array(columns)) = version.get("additionalPrinterColumns")
            && columns.is_empty()
            && let Some(map) = version.as_object_mut()
        {
            map.remove("additionalPrinterColumns");
        }
    }
}

fn validate(definition: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&definition["spec"], Path::new("spec"));
    let wanted = format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group"));
    let called = crate::value::name(definition);
    if called != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), called, why));
    }
    validate_group(text(spec, "group"), &path.child("group"), &mut errors);
    match text(spec, "scope") {
        "" => errors.push(FieldError::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => {
            errors.push(FieldError::not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"]))
        }
    }
    validate_names(&spec["names"], &path.child("names"), &mut errors);
    validate_versions(spec, &path.child("versions"), &mut errors);
    validate_conversion(&spec["conversion"], &path.child("conversion"), &mut errors);
    errors
}

fn validate_group(group: &str, path: &Path, errors: &mut ErrorList) {
    if group.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    errors.invalid_each(path, group, names::dns1123_subdomain(group));
    if !group.contains('.') {
        errors.push(FieldError::invalid(path, group, "should be a domain with at least one dot"));
    }
}

fn validate_names(own: &Value, path: &Path, errors: &mut ErrorList) {
    for (field, lower) in [("plural", true), ("singular", true), ("kind", false), ("listKind", false)] {
        let (value, path) = (text(own, field), path.child(field));
        if value.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        if lower {
            errors.invalid_each(&path, value, names::dns1035_label(value));
        } else {
            let mixed = names::dns1035_label(&value.to_lowercase()).into_iter();
            let mixed = mixed.map(|why| format!("may have mixed case, but should otherwise match: {why}"));
            errors.invalid_each(&path, value, mixed.collect());
        }
    }
    for field in ["shortNames", "categories"] {
        for (at, value) in items(own, field).iter().filter_map(Value::as_str).enumerate() {
            errors.invalid_each(&path.child(field).index(at), value, names::dns1035_label(value));
        }
    }
    if filled(own, "kind") && text(own, "kind") == text(own, "listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(&path.child("listKind"), text(own, "listKind"), why));
    }
}

fn validate_versions(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let versions = items(spec, "versions");
    let mut seen: Vec<&str> = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        let (path, called) = (path.index(at), text(version, "name"));
        if seen.contains(&called) {
            errors.push(FieldError::invalid(&path, called, "must contain unique version names"));
        }
        seen.push(called);
        errors.invalid_each(&path.child("name"), called, names::dns1035_label(called));
        if !has(&version["schema"], "openAPIV3Schema") {
            errors.push(FieldError::required(
                &path.child("schema").child("openAPIV3Schema"),
                "schemas are required",
            ));
        }
        validate_subresources(&version["subresources"], &path.child("subresources"), errors);
        for (at, column) in items(version, "additionalPrinterColumns").iter().enumerate() {
            validate_column(column, &path.child("additionalPrinterColumns").index(at), errors);
        }
    }
    if versions.iter().filter(|version| flag(version, "storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(path, spec["versions"].clone(), why));
    }
}

fn validate_subresources(subresources: &Value, path: &Path, errors: &mut ErrorList) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    for (field, under, needed) in [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", "", false),
    ] {
        let (value, path) = (text(scale, field), path.child(&format!("scale.{field}")));
        let known = value.starts_with(under)
            && (needed || value.starts_with(".spec.") || value.starts_with(".status."));
        match value {
            "" if needed => errors.push(FieldError::required(&path, "")),
            "" => {}
            _ if known => {}
            _ => {
                let under = if needed { under } else { ".spec. or .status." };
                let why = format!("should be a json path under {}", under.trim_end_matches('.'));
                errors.push(FieldError::invalid(&path, value, why));
            }
        }
    }
}

fn validate_column(column: &Value, path: &Path, errors: &mut ErrorList) {
    if !filled(column, "name") {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    const TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];
    match text(column, "type") {
        "" => errors.push(FieldError::required(
            &path.child("type"),
            "must be one of integer,number,string,boolean,date",
        )),
        known if TYPES.contains(&known) => {}
        other => errors.push(FieldError::invalid(
            &path.child("type"),
            other,
            "must be one of integer,number,string,boolean,date",
        )),
    }
    if !filled(column, "jsonPath") {
        errors.push(FieldError::required(&path.child("jsonPath"), ""));
    }
}

fn validate_conversion(conversion: &Value, path: &Path, errors: &mut ErrorList) {
    match text(conversion, "strategy") {
        "None" => {
            if has(conversion, "webhook") {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(&path.child("webhook"), why));
            }
        }
        "Webhook" => {
            let (webhook, path) = (&conversion["webhook"], path.child("webhook"));
            if !webhook.is_object() {
                return errors.push(FieldError::required(
                    &path.child("clientConfig"),
                    "required when strategy is set to Webhook",
                ));
            }
            if !filled(webhook, "conversionReviewVersions") {
                errors.push(FieldError::required(&path.child("conversionReviewVersions"), ""));
            }
            let client = &webhook["clientConfig"];
            if has(client, "url") == has(client, "service") {
                let why = "exactly one of url or service is required";
                errors.push(FieldError::required(&path.child("clientConfig"), why));
            }
        }
        "" => errors.push(FieldError::required(&path.child("strategy"), "")),
        other => {
            errors.push(FieldError::not_supported(&path.child("strategy"), other, &["None", "Webhook"]));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec");
    immutable(&mut errors, &new["spec"], &old["spec"], "group", &path);
    let established = items(&old["status"], "conditions")
        .iter()
        .any(|condition| text(condition, "type") == "Established" && text(condition, "status") == "True");
    if established {
        immutable(&mut errors, &new["spec"], &old["spec"], "scope", &path);
        immutable(&mut errors, &new["spec"]["names"], &old["spec"]["names"], "kind", &path.child("names"));
    }
    immutable(&mut errors, &new["spec"]["names"], &old["spec"]["names"], "plural", &path.child("names"));
    for stored in items(&new["status"], "storedVersions").iter().filter_map(Value::as_str) {
        if !items(&new["spec"], "versions").iter().any(|version| text(version, "name") == stored) {
            let at = Path::new("status").child("storedVersions").index(0);
            let why = format!(
                "missing from spec.versions; {stored} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {stored} and removes {stored} from status.storedVersions"
            );
            errors.push(FieldError::invalid(&at, stored, why));
        }
    }
    errors
}
