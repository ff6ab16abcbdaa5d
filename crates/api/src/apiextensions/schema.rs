//! Schemas of definitions: what they may say, and that they are structural.

use coxswain_meta::json::{Value, json};
use coxswain_meta::structural::{self, Structural};
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::check::texts;
use crate::value::{entries, filled, flag, has, items, text};

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
/// What a schema may say at its root where the status is a subresource.
const ROOT: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
const ROOT_RULE: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
/// What no schema may say.
const UNSUPPORTED: &[&str] =
    &["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"];
const UNSUPPORTED_SILENTLY: &str = "$schema";

/// Checks the schema of a version, or of all of them.
pub(super) fn validate(errors: &mut ErrorList, schema: &Value, with_status: bool, path: &Path) {
    let at = path.child("openAPIV3Schema");
    let mut own = ErrorList::new();
    if with_status {
        root_with_status(&mut own, schema, &at);
    }
    if flag(schema, "nullable") {
        own.push(FieldError::forbidden(&at.child("nullable"), "nullable cannot be true at the root"));
    }
    if !unreadable(schema) {
        let mut broken = ErrorList::new();
        invariants(&mut broken, schema, Level::Root, &at);
        complete(&mut broken, schema, schema, &at, &at);
        let mut patterns = ErrorList::new();
        let structural = Structural::parse(schema, &at, &mut patterns);
        let patterns = patterns.iter().filter(|error| error.field.ends_with(".pattern"));
        let mut broken: Vec<FieldError> = broken.iter().chain(patterns).cloned().collect();
        broken.sort_by_cached_key(ToString::to_string);
        if broken.is_empty() {
            defaults(&mut own, schema, &structural, &at);
        }
        broken.into_iter().for_each(|error| own.push(error));
    }
    let place = Place { root: true, ..Place::default() };
    said(&mut own, schema, &at, &place);
    errors.extend(own);
}

fn root_with_status(errors: &mut ErrorList, schema: &Value, at: &Path) {
    let kind = text(schema, "type");
    let mut other = entries_of(schema).filter(|(key, value)| !zero(value) && !ROOT.contains(key));
    let mut early = ["id", "$schema", "$ref"].iter().filter(|key| filled(schema, key));
    if early.next().is_none() && !kind.is_empty() && kind != "object" {
        let rule = r#"only "object" is allowed as the type at the root of the schema if the status subresource is enabled"#;
        errors.push(FieldError::invalid(&at.child("type"), kind, rule));
    } else if other.next().is_some() {
        let shown = crate::schema::internal(schema, SCHEMA);
        errors.push(FieldError::invalid_without_value(at, format!("{shown}: {ROOT_RULE}")));
    }
}

fn zero(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false)) || value == ""
}

fn entries_of(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Every schema inside of one that upstream visits, with its path.
fn inner<'a>(schema: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    let mut out = Vec::new();
    if schema["additionalProperties"].is_object() {
        out.push((&schema["additionalProperties"], path.child("additionalProperties")));
    }
    for (name, member) in entries(schema, "properties") {
        out.push((member, path.child("properties").key(name)));
    }
    if has(schema, "not") {
        out.push((&schema["not"], path.child("not")));
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        for (i, member) in items(schema, key).iter().enumerate() {
            out.push((member, path.child(key).index(i)));
        }
    }
    for (name, member) in entries(schema, "definitions") {
        out.push((member, path.child("definitions").key(name)));
    }
    if schema["items"].is_object() {
        out.push((&schema["items"], path.child("items")));
    }
    for (i, member) in items(schema, "items").iter().enumerate() {
        out.push((member, path.child("items").index(i)));
    }
    out
}

/// Whether upstream could not even read the schema as a structural one.
fn unreadable(schema: &Value) -> bool {
    let unsupported = UNSUPPORTED.iter().chain([&UNSUPPORTED_SILENTLY]).any(|key| filled(schema, key));
    unsupported
        || schema["items"].is_array()
        || schema["x-kubernetes-preserve-unknown-fields"] == false
        || inner(schema, &Path::root()).into_iter().any(|(schema, _)| unreadable(schema))
}

/// Where in the whole a schema is.
#[derive(Clone, Default)]
struct Place {
    root: bool,
    inside_meta: bool,
    /// Why there may be no defaults.
    no_defaults: Option<String>,
}

/// Checks what a schema says, and those inside of it.
fn said(errors: &mut ErrorList, schema: &Value, path: &Path, place: &Place) {
    standard(errors, schema, path, place);
    if flag(schema, "uniqueItems") {
        let rule = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(&path.child("uniqueItems"), rule));
    }
    let additional = &schema["additionalProperties"];
    if filled(schema, "properties") && (additional.is_object() || additional == false) {
        let rule = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(&path.child("additionalProperties"), rule));
    }
    let embeds = place.root || flag(schema, "x-kubernetes-embedded-resource");
    for (member, at) in inner(schema, path) {
        let mut next = Place { root: false, ..place.clone() };
        if std::ptr::eq(member, additional) && place.inside_meta {
            next.no_defaults = Some(" inside additionalProperties applying to object metadata".to_owned());
        }
        for name in ["metadata", "kind", "apiVersion"] {
            if embeds && std::ptr::eq(member, &schema["properties"][name]) {
                next.inside_meta = true;
                if place.root {
                    next.no_defaults = Some(format!(" in top-level {name}"));
                }
            }
        }
        said(errors, member, &at, &next);
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(&at, false, "must be true or undefined"));
    }
    topology(errors, schema, path);
    rules(errors, schema, path);
}

fn standard(errors: &mut ErrorList, schema: &Value, path: &Path, place: &Place) {
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(&path.child("type"), kind, TYPES));
    }
    if let Some(reason) = place.no_defaults.as_ref().filter(|_| has(schema, "default")) {
        errors.push(FieldError::forbidden(&path.child("default"), format!("must not be set{reason}")));
    }
    for key in UNSUPPORTED {
        if filled(schema, key) {
            errors.push(FieldError::forbidden(&path.child(key), format!("{key} is not supported")));
        }
    }
    if kind == "null" {
        let rule = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(&path.child("type"), rule));
    }
    if schema["items"].is_array() {
        let rule = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(&path.child("items"), rule));
    }
    if place.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let rule = "must not be used inside of resource meta";
        errors.push(FieldError::forbidden(&path.child("x-kubernetes-embedded-resource"), rule));
    }
}

/// What kind of map or list it is.
fn topology(errors: &mut ErrorList, schema: &Value, path: &Path) {
    let kind = text(schema, "type");
    let known = [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
    ];
    for (key, needed, supported) in known {
        let Some(said) = schema[key].as_str() else { continue };
        let element = &schema["items"];
        if kind != needed {
            let (rule, at) = (format!("must be {needed} if {key} is specified"), path.child("type"));
            errors.push(match kind {
                "" => FieldError::required(&at, rule),
                kind => FieldError::invalid(&at, kind, rule),
            });
        } else if said == "set" && element.is_object() {
            let rule = "must be atomic as item of a list with x-kubernetes-list-type=set";
            let (key, needed) = match text(element, "type") {
                "array" => ("x-kubernetes-list-type", ["", "atomic"]),
                "object" => ("x-kubernetes-map-type", ["atomic", "atomic"]),
                _ => ("", [""; 2]),
            };
            if !key.is_empty() && !needed.contains(&text(element, key)) {
                let shown = element["x-kubernetes-list-type"].clone();
                errors.push(FieldError::invalid(&path.child("items").child(key), shown, rule));
            }
        }
        if !supported.contains(&said) {
            errors.push(FieldError::not_supported(&path.child(key), said, supported));
        }
    }
    map_list(errors, schema, path);
}

fn map_list(errors: &mut ErrorList, schema: &Value, path: &Path) {
    let (list_type, keys) =
        (text(schema, "x-kubernetes-list-type"), texts(schema, "x-kubernetes-list-map-keys"));
    let (element, keys_at) = (&schema["items"], path.child("x-kubernetes-list-map-keys"));
    let at = path.child("items");
    if !keys.is_empty() && list_type != "map" {
        let (at, rule) =
            (path.child("x-kubernetes-list-type"), "must be map if x-kubernetes-list-map-keys is non-empty");
        errors.push(match list_type {
            "" => FieldError::required(&at, rule),
            other => FieldError::invalid(&at, other, rule),
        });
    }
    if list_type == "map" {
        if keys.is_empty() {
            errors.push(FieldError::required(&keys_at, "must not be empty if x-kubernetes-list-type is map"));
        }
        match element {
            Value::Object(_) if text(element, "type") == "object" => {
                for (i, key) in keys.iter().enumerate() {
                    let property = &element["properties"][*key];
                    if !property.is_object() {
                        let rule = "entries must all be names of item properties";
                        errors.push(FieldError::invalid(&keys_at, keys.clone(), rule));
                    } else if ["array", "object"].contains(&text(property, "type")) {
                        let rule = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                        let at = at.child("properties").key(key).child("type");
                        errors.push(FieldError::invalid(&at, "object", rule));
                    }
                    if keys[..i].contains(key) {
                        let rule = "must not contain duplicate entries";
                        errors.push(FieldError::invalid(&keys_at, keys.clone(), rule));
                    }
                }
            }
            Value::Object(_) => {
                let rule = "must be object if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(&at.child("type"), text(element, "type"), rule));
            }
            Value::Null => {
                let rule = "must have a schema if x-kubernetes-list-type is map";
                errors.push(FieldError::required(&at, rule));
            }
            _ => {
                let rule = "must only have a single schema if x-kubernetes-list-type is map";
                errors.push(FieldError::invalid(&at, element.clone(), rule));
            }
        }
    }
    if !element.is_object() || !["set", "map"].contains(&list_type) {
        return;
    }
    if flag(element, "nullable") {
        let rule = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(FieldError::forbidden(&at.child("nullable"), rule));
    }
    let needed = texts(element, "required");
    for key in keys.iter().filter(|_| list_type == "map") {
        let (property, at) = (&element["properties"][*key], at.child("properties").key(key));
        if property.is_object() && !needed.contains(key) && !has(property, "default") {
            let rule = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(&at.child("default"), rule));
        }
        if flag(property, "nullable") {
            let rule = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(&at.child("nullable"), rule));
        }
    }
}

/// The rules in CEL, but for what they say in CEL.
fn rules(errors: &mut ErrorList, schema: &Value, path: &Path) {
    const REASONS: &[&str] =
        &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let lines = |text: &str| text.contains(['\n', '\r']);
    for (i, said) in items(schema, "x-kubernetes-validations").iter().enumerate() {
        let at = path.child("x-kubernetes-validations").index(i);
        let (rule, message) = (text(said, "rule").trim(), text(said, "message"));
        if rule.is_empty() {
            errors.push(FieldError::required(&at.child("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid(&at.child("message"), message, "must be non-empty if specified"));
        } else if lines(message.trim()) {
            errors.push(FieldError::invalid(&at.child("message"), message, "must not contain line breaks"));
        } else if lines(rule) && message.trim().is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(FieldError::required(&at.child("message"), why));
        }
        let expression = text(said, "messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(&at.child("messageExpression"), why));
        }
        if let Some(reason) = said["reason"].as_str().filter(|reason| !REASONS.contains(reason)) {
            errors.push(FieldError::not_supported(&at.child("reason"), reason, REASONS));
        }
        let field = text(said, "fieldPath");
        if !field.is_empty() && field.trim().is_empty() {
            errors.push(FieldError::invalid(&at.child("fieldPath"), field, "must be non-empty if specified"));
        }
        if lines(field) {
            errors.push(FieldError::invalid(&at.child("fieldPath"), field, "must not contain line breaks"));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

fn int_or_string(any_of: &Value) -> bool {
    *any_of == json!([{"type": "integer"}, {"type": "string"}])
}

/// What makes a schema structural.
fn invariants(errors: &mut ErrorList, schema: &Value, level: Level, path: &Path) {
    let (kind, at) = (text(schema, "type"), path.child("type"));
    if kind == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(&path.child("items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(errors, &schema["items"], Level::Item, &path.child("items"));
    }
    for (name, member) in entries(schema, "properties") {
        invariants(errors, member, Level::Field, &path.child("properties").key(name));
    }
    let additional = path.child("additionalProperties");
    if has(schema, "additionalProperties") {
        if level == Level::Root {
            errors.push(FieldError::forbidden(&additional, "must not be used at the root"));
        }
        if schema["additionalProperties"].is_object() {
            invariants(errors, &schema["additionalProperties"], Level::Field, &additional);
        }
    }
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let preserves = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let either = flag(schema, "x-kubernetes-int-or-string");
    let rule = "must be false if x-kubernetes-int-or-string is true";
    for (key, set) in
        [("x-kubernetes-preserve-unknown-fields", preserves), ("x-kubernetes-embedded-resource", embedded)]
    {
        if either && set {
            errors.push(FieldError::invalid(&path.child(key), true, rule));
        }
    }
    let skip = int_or_string(&schema["anyOf"]);
    let skip_first = int_or_string(&schema["allOf"][0]["anyOf"]);
    junctors(errors, schema, skip, skip_first, path);
    if embedded && kind != "object" {
        let rule = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(&at, rule),
            kind => FieldError::invalid(&at, kind, rule),
        });
    } else if kind.is_empty() && !either && !preserves {
        let rule = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(&at, rule));
    }
    if embedded && has(schema, "additionalProperties") {
        let rule = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(&additional, rule));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(&at, kind, "must be object at the root"));
    }
    metadata(errors, schema, level, path);
    if embedded && !preserves && !filled(schema, "properties") {
        let rule = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(&path.child("properties"), rule));
    }
}

fn metadata(errors: &mut ErrorList, schema: &Value, level: Level, path: &Path) {
    let checked = level == Level::Root || flag(schema, "x-kubernetes-embedded-resource");
    for (name, needed) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let member = &schema["properties"][name];
        let at = path.child("properties").key(name);
        if checked && member.is_object() && text(member, "type") != needed {
            let rule = format!("must be {needed}");
            errors.push(FieldError::invalid(&at.child("type"), text(member, "type"), rule));
        }
    }
    let member = &schema["properties"]["metadata"];
    let names = |value: &Value| entries_of(value).all(|(key, _)| key == "name" || key == "generateName");
    let more = entries_of(member).any(|(key, value)| match key {
        "type" | "default" => false,
        "properties" => !names(value),
        _ => !zero(value),
    });
    if level == Level::Root && more {
        let rule = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(FieldError::forbidden(&path.child("properties").key("metadata"), rule));
    }
}

/// What is said under anyOf, allOf, oneOf and not.
fn junctors(errors: &mut ErrorList, schema: &Value, skip: bool, skip_first: bool, path: &Path) {
    for key in ["anyOf", "allOf", "oneOf"] {
        for (i, member) in items(schema, key).iter().enumerate() {
            if key != "anyOf" || !skip {
                let skip = key == "allOf" && i == 0 && skip_first;
                nested(errors, member, skip, &path.child(key).index(i));
            }
        }
    }
    if has(schema, "not") {
        nested(errors, &schema["not"], false, &path.child("not"));
    }
}

fn nested(errors: &mut ErrorList, schema: &Value, skip: bool, path: &Path) {
    junctors(errors, schema, skip, false, path);
    if schema["items"].is_object() {
        nested(errors, &schema["items"], false, &path.child("items"));
    }
    for (name, member) in entries(schema, "properties") {
        nested(errors, member, false, &path.child("properties").key(name));
    }
    let mut forbid = |key: &str, rule: &str| {
        if !schema.get(key).is_none_or(zero) && schema[key] != json!([]) {
            errors.push(FieldError::forbidden(&path.child(key), format!("{rule} to be structural")));
        }
    };
    forbid("type", "must be empty");
    forbid("additionalProperties", "must be undefined");
    forbid("default", "must be undefined");
    forbid("title", "must be empty");
    forbid("description", "must be empty");
    forbid("nullable", "must be false");
    forbid("x-kubernetes-preserve-unknown-fields", "must be false");
    forbid("x-kubernetes-embedded-resource", "must be false");
    forbid("x-kubernetes-int-or-string", "must be false");
    forbid("x-kubernetes-list-map-keys", "must be empty");
    forbid("x-kubernetes-list-type", "must be undefined");
    forbid("x-kubernetes-map-type", "must be undefined");
    forbid("x-kubernetes-validations", "must be empty");
    if has(&schema["properties"], "metadata") {
        let rule = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(&path.child("properties").key("metadata"), rule));
    }
}

/// That what a junctor speaks of is also specified outside of it.
fn complete(errors: &mut ErrorList, said: &Value, schema: &Value, at: &Path, said_at: &Path) {
    let mut members = Vec::new();
    if has(said, "not") {
        members.push((&said["not"], said_at.child("not")));
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        members.extend(items(said, key).iter().enumerate().map(|(i, m)| (m, said_at.child(key).index(i))));
    }
    for (member, said_at) in members {
        complete_nested(errors, member, schema, at, &said_at);
    }
}

fn complete_nested(errors: &mut ErrorList, said: &Value, schema: &Value, at: &Path, said_at: &Path) {
    let missing = |at: &Path, said_at: &Path| {
        FieldError::required(at, format!("because it is defined in {}", said_at.as_str()))
    };
    complete(errors, said, schema, at, said_at);
    if said["items"].is_object() {
        let (at, said_at) = (at.child("items"), said_at.child("items"));
        match schema["items"].is_object() {
            true => complete_nested(errors, &said["items"], &schema["items"], &at, &said_at),
            false => errors.push(missing(&at, &said_at)),
        }
    }
    for (name, member) in entries(said, "properties") {
        let (at, said_at) = (at.child("properties").key(name), said_at.child("properties").key(name));
        match schema["properties"].get(name) {
            Some(known) => complete_nested(errors, member, known, &at, &said_at),
            None => errors.push(missing(&at, &said_at)),
        }
    }
}

/// That defaults hold to the schemas they are in.
fn defaults(errors: &mut ErrorList, schema: &Value, structural: &Structural, path: &Path) {
    if let Some(value) = &structural.default {
        let at = path.child("default");
        let mut kept = value.clone();
        if !structural::prune(&mut kept, structural).is_empty() && kept != *value {
            errors.push(FieldError::invalid(&at, value.clone(), "must not have unknown fields"));
        } else {
            for mut error in structural::validate(value, structural, &at).iter().cloned() {
                // Upstream knows no path inside of the text.
                error.detail = error.detail.strip_prefix(at.as_str()).unwrap_or(&error.detail).to_owned();
                error.detail = error.detail.strip_prefix('.').unwrap_or(&error.detail).to_owned();
                errors.push(error);
            }
        }
    }
    if let Some(items) = &structural.items {
        defaults(errors, &schema["items"], items, &path.child("items"));
    }
    for (name, member) in &structural.properties {
        defaults(errors, &schema["properties"][name], member, &path.child("properties").key(name));
    }
    if let Some(inner) = &structural.additional {
        defaults(errors, &schema["additionalProperties"], inner, &path.child("additionalProperties"));
    }
}
