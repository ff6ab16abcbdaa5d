//! Dynamic resource allocation: device classes, claims, their templates and the slices that drivers publish.

use std::collections::BTreeMap;

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::required_name;
use crate::objectmeta;
use crate::prepare;
use crate::storage::driver_name;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{filled, flag, has, int, items, items_mut, present, set, text};

const GROUP: &str = "resource.k8s.io";
const MOST_REQUESTS: usize = 32;
const MOST_DEVICES: usize = 128;
const CLAIM_SPEC: &str = "io.k8s.api.resource.v1.ResourceClaimSpec";
/// What the parser of expressions says of none.
const NO_EXPRESSION: &str = "compilation failed: ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
const TEMPLATE_SPEC: &str = "io.k8s.api.resource.v1.ResourceClaimTemplateSpec";

pub(crate) const CLASS: Kind = Kind {
    namespaced: false,
    hooks: Hooks {
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: |v| {
            let mut errors = ErrorList::new();
            selectors(&mut errors, &v["spec"], &Path::new("spec"));
            configurations(&mut errors, &v["spec"], &Path::new("spec"), None);
            if let Some(name) = v["spec"]["extendedResourceName"].as_str().filter(|name| !is_extended(name)) {
                let at = Path::new("spec.extendedResourceName");
                errors.push(FieldError::invalid(&at, name, "must be a valid extended resource name"));
            }
            errors
        },
        ..Hooks::PLAIN
    },
    ..kind!("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", "deviceclass")
};

pub(crate) const CLAIM: Kind = Kind {
    subresources: &[Subresource::status(GROUP, "v1", "ResourceClaim")],
    status: true,
    columns: &[NAME, column("State", "Whether it is allocated and reserved."), AGE],
    hooks: Hooks {
        default: |v| present(v, "spec").into_iter().for_each(default_claim),
        validate_new: |v| {
            let mut errors = ErrorList::new();
            validate_claim(&mut errors, &v["spec"], &Path::new("spec"));
            errors
        },
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            objectmeta::immutable_struct(&mut errors, new, old, "spec", CLAIM_SPEC, &Path::root());
            errors
        },
        row: claim_row,
        ..Hooks::STATUS
    },
    ..kind!("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", "resourceclaim")
};

pub(crate) const TEMPLATE: Kind = Kind {
    hooks: Hooks {
        default: |v| {
            let spec = present(v, "spec").and_then(|spec| present(spec, "spec"));
            spec.into_iter().for_each(default_claim);
        },
        validate: |v| {
            let mut errors = ErrorList::new();
            let (spec, path) = (&v["spec"], Path::new("spec"));
            objectmeta::labels(&mut errors, &spec["metadata"], "labels", &path.child("metadata"));
            objectmeta::annotations(&mut errors, &spec["metadata"], &path.child("metadata"));
            validate_claim(&mut errors, &spec["spec"], &path.child("spec"));
            errors
        },
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            objectmeta::immutable_struct(&mut errors, new, old, "spec", TEMPLATE_SPEC, &Path::root());
            errors
        },
        ..Hooks::PLAIN
    },
    ..kind!(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate"
    )
};

pub(crate) const SLICE: Kind = Kind {
    namespaced: false,
    selectable: &["spec.driver", "spec.nodeName"],
    columns: SLICE_COLUMNS,
    hooks: Hooks {
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: validate_slice,
        validate_update: |new, old| {
            let (mut errors, path) = (ErrorList::new(), Path::new("spec"));
            objectmeta::immutable(&mut errors, &new["spec"], &old["spec"], "driver", &path);
            let (new, old) = (&new["spec"], &old["spec"]);
            if new["pool"]["name"] != old["pool"]["name"] {
                objectmeta::immutable(&mut errors, &new["pool"], &old["pool"], "name", &path.child("pool"));
            }
            objectmeta::immutable(&mut errors, new, old, "nodeName", &path);
            errors
        },
        selectable: |v| {
            let field = |key: &str| text(&v["spec"], key).to_owned();
            vec![("spec.driver", field("driver")), ("spec.nodeName", field("nodeName"))]
        },
        row: |v, now| {
            let spec = &v["spec"];
            let texts = [text(spec, "nodeName"), text(spec, "driver"), text(&spec["pool"], "name")];
            let mut row = vec![name(v)];
            row.extend(texts.map(Value::from));
            row.push(age(v, now));
            row
        },
        ..Hooks::PLAIN
    },
    ..kind!("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", "resourceslice")
};
const SLICE_COLUMNS: &[Column] = &[
    NAME,
    column("Node", "The node that has the devices."),
    column("Driver", "The driver of the devices."),
    column("Pool", "The pool that the slice is part of."),
    AGE,
];

fn claim_row(claim: &Value, now: i64) -> Vec<Value> {
    let status = &claim["status"];
    let mut states = Vec::new();
    if claim["metadata"]["deletionTimestamp"].is_string() {
        states.push("deleted");
    }
    if has(status, "allocation") {
        states.push("allocated");
    } else if !claim["metadata"]["deletionTimestamp"].is_string() {
        states.push("pending");
    }
    if filled(status, "reservedFor") {
        states.push("reserved");
    }
    vec![name(claim), states.join(",").into(), age(claim, now)]
}

fn default_claim(spec: &mut Value) {
    let Some(devices) = present(spec, "devices") else { return };
    for request in items_mut(devices, "requests") {
        present(request, "exactly").into_iter().for_each(default_request);
        items_mut(request, "firstAvailable").iter_mut().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    if text(request, "allocationMode").is_empty() {
        set(request, "allocationMode", "ExactCount");
    }
    if text(request, "allocationMode") == "ExactCount" && int(request, "count").unwrap_or(0) == 0 {
        set(request, "count", 1);
    }
}

/// The names that constraints and configurations may use: requests, each with its alternatives.
type Names<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn validate_claim(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (devices, path) = (&spec["devices"], path.child("devices"));
    let requests = items(devices, "requests");
    let known: Names<'_> = requests
        .iter()
        .map(|r| (text(r, "name"), items(r, "firstAvailable").iter().map(|s| text(s, "name")).collect()))
        .collect();
    set_of(errors, requests, "name", &path.child("requests"));
    for (i, request) in requests.iter().enumerate() {
        validate_request(errors, request, &path.child("requests").index(i));
    }
    for (i, constraint) in items(devices, "constraints").iter().enumerate() {
        let at = path.child("constraints").index(i);
        request_references(errors, constraint, &known, &at);
        let attribute = ["matchAttribute", "distinctAttribute"].into_iter().find(|k| has(constraint, k));
        match attribute {
            Some(key) => qualified(errors, text(constraint, key), true, &at.child(key)),
            None => {
                let rule = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                errors.push(FieldError::required(&at, rule));
            }
        }
    }
    configurations(errors, devices, &path, Some(&known));
}

fn set_of(errors: &mut ErrorList, list: &[Value], key: &str, path: &Path) {
    if list.len() > MOST_REQUESTS {
        errors.push(FieldError::too_many(path, list.len(), MOST_REQUESTS));
    }
    for (i, item) in list.iter().enumerate() {
        if list[..i].iter().any(|other| other[key] == item[key]) {
            errors.push(FieldError::duplicate(&path.index(i), item[key].clone()));
        }
    }
}

fn validate_request(errors: &mut ErrorList, request: &Value, path: &Path) {
    label(errors, text(request, "name"), &path.child("name"));
    let rule = "exactly one of `exactly` or `firstAvailable` is required";
    match (has(request, "exactly"), filled(request, "firstAvailable")) {
        (false, false) => errors.push(FieldError::required(path, rule)),
        (true, true) => {
            let rule = format!("{rule}, but multiple fields are set");
            errors.push(FieldError::invalid(path, Value::Null, rule));
        }
        (true, false) => exact(errors, &request["exactly"], &path.child("exactly")),
        (false, true) => {
            let list = items(request, "firstAvailable");
            set_of(errors, list, "name", &path.child("firstAvailable"));
            for (i, sub) in list.iter().enumerate() {
                let at = path.child("firstAvailable").index(i);
                label(errors, text(sub, "name"), &at.child("name"));
                exact(errors, sub, &at);
            }
        }
    }
}

fn label(errors: &mut ErrorList, name: &str, path: &Path) {
    errors.invalid_each(path, name, names::dns1123_label(name));
}

fn exact(errors: &mut ErrorList, request: &Value, path: &Path) {
    required_name(errors, request, "deviceClassName", names::dns1123_subdomain, path);
    selectors(errors, request, path);
    let (mode, count) = (text(request, "allocationMode"), int(request, "count").unwrap_or(0));
    match mode {
        "All" if count != 0 => {
            let rule = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(&path.child("count"), count, rule));
        }
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(&path.child("count"), count, "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        other => {
            let at = path.child("allocationMode");
            errors.push(FieldError::not_supported(&at, other, &["All", "ExactCount"]));
        }
    }
}

/// Whether a name is one of a resource that plugins advertise, of which there may be quotas.
fn is_extended(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// What an expression means is checked where it is compiled.
fn selectors(errors: &mut ErrorList, object: &Value, path: &Path) {
    for (i, selector) in items(object, "selectors").iter().enumerate() {
        if !has(selector, "cel") {
            errors.push(FieldError::required(&path.child("selectors").index(i).child("cel"), ""));
        } else if text(&selector["cel"], "expression").is_empty() {
            let at = path.child("selectors").index(i).child("cel.expression");
            errors.push(FieldError::invalid(&at, "", NO_EXPRESSION));
        }
    }
}

fn request_references(errors: &mut ErrorList, object: &Value, known: &Names<'_>, path: &Path) {
    for (i, reference) in items(object, "requests").iter().enumerate() {
        let (reference, at) = (reference.as_str().unwrap_or_default(), path.child("requests").index(i));
        let mut parts = reference.splitn(2, '/');
        let (request, sub) = (parts.next().unwrap_or_default(), parts.next());
        let found = known.get(request).is_some_and(|subs| sub.is_none_or(|sub| subs.contains(&sub)));
        if !sub.unwrap_or_default().contains('/') {
            label(errors, request, &at);
            sub.into_iter().for_each(|sub| label(errors, sub, &at));
        }
        if !found {
            let rule = "must be the name of a request in the claim or the name of a request and a subrequest \
                separated by '/'";
            errors.push(FieldError::invalid(&at, reference, rule));
        }
    }
}

fn configurations(errors: &mut ErrorList, object: &Value, path: &Path, known: Option<&Names<'_>>) {
    for (i, config) in items(object, "config").iter().enumerate() {
        let at = path.child("config").index(i);
        if let Some(known) = known {
            request_references(errors, config, known, &at);
        }
        let (opaque, at) = (&config["opaque"], at.child("opaque"));
        if !has(config, "opaque") {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        driver_name(errors, text(opaque, "driver"), &at.child("driver"));
        match &opaque["parameters"] {
            Value::Null => errors.push(FieldError::required(&at.child("parameters"), "")),
            Value::Object(_) => {}
            _ => {
                let rule = "must be a valid JSON object";
                errors.push(FieldError::invalid(&at.child("parameters"), "<value omitted>", rule));
            }
        }
    }
}

/// `domain/name`, or a name alone where no domain is needed.
fn qualified(errors: &mut ErrorList, whole: &str, full: bool, path: &Path) {
    if whole.is_empty() {
        errors.push(FieldError::required(path, "name required"));
        return;
    }
    let (domain, id) = match whole.split_once('/') {
        Some((domain, id)) => (Some(domain), id),
        None => (None, whole),
    };
    match domain {
        Some("") => errors.push(FieldError::required(path, "the prefix must not be empty")),
        Some(domain) => driver_name(errors, domain, path),
        None if full => {
            let rule = "a fully qualified name must be a domain and a name separated by a slash";
            errors.push(FieldError::invalid(path, whole, rule));
            return;
        }
        None => {}
    }
    match id {
        "" => errors.push(FieldError::required(path, "the name must not be empty")),
        id => errors.invalid_each(path, id, names::c_identifier(id)),
    }
}

fn validate_slice(slice: &Value) -> ErrorList {
    let (mut errors, spec, path) = (ErrorList::new(), &slice["spec"], Path::new("spec"));
    driver_name(&mut errors, text(spec, "driver"), &path.child("driver"));
    pool(&mut errors, &spec["pool"], &path.child("pool"));
    let ways: Vec<&str> = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"]
        .into_iter()
        .filter(|key| has(spec, key) && (spec[*key] != json!(false)))
        .collect();
    if let Some(node) = spec["nodeName"].as_str() {
        match node {
            "" => {
                let rule = "must be either unset or set to a non-empty string";
                errors.push(FieldError::invalid(&path.child("nodeName"), node, rule));
            }
            node => errors.invalid_each(&path.child("nodeName"), node, names::dns1123_subdomain(node)),
        }
    }
    for key in ["allNodes", "perDeviceNodeSelection"] {
        if has(spec, key) && !flag(spec, key) && key == "perDeviceNodeSelection" {
            let rule = "must be either unset or set to true";
            errors.push(FieldError::invalid(&path.child(key), false, rule));
        }
    }
    let rule = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match ways.len() {
        0 if !filled(spec, "sharedCounters") => errors.push(FieldError::required(&path, rule)),
        0 | 1 => {}
        _ => {
            let shown =
                format!("{{{}}}", ways.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "));
            errors.push(FieldError::invalid(&path, shown, format!("{rule}, but multiple fields are set")));
        }
    }
    let devices = items(spec, "devices");
    if devices.len() > MOST_DEVICES {
        errors.push(FieldError::too_many(&path.child("devices"), devices.len(), MOST_DEVICES));
    }
    for (i, device) in devices.iter().enumerate() {
        let at = path.child("devices").index(i);
        if devices[..i].iter().any(|other| other["name"] == device["name"]) {
            errors.push(FieldError::duplicate(&at, device["name"].clone()));
        }
        validate_device(&mut errors, device, &at);
    }
    errors
}

fn pool(errors: &mut ErrorList, pool: &Value, path: &Path) {
    match text(pool, "name") {
        "" => errors.push(FieldError::required(&path.child("name"), "")),
        whole => {
            for part in whole.split('/') {
                errors.invalid_each(&path.child("name"), part, names::dns1123_subdomain(part));
            }
        }
    }
    if int(pool, "resourceSliceCount").unwrap_or(0) <= 0 {
        let count = int(pool, "resourceSliceCount").unwrap_or(0);
        let rule = "must be greater than zero";
        errors.push(FieldError::invalid(&path.child("resourceSliceCount"), count, rule));
    }
    if let Some(generation) = int(pool, "generation").filter(|g| *g < 0) {
        let rule = "must be greater than or equal to zero";
        errors.push(FieldError::invalid(&path.child("generation"), generation, rule));
    }
}

fn validate_device(errors: &mut ErrorList, device: &Value, path: &Path) {
    label(errors, text(device, "name"), &path.child("name"));
    for (key, attribute) in device["attributes"].as_object().into_iter().flatten() {
        let at = path.child("attributes").key(key);
        qualified(errors, key, false, &at);
        let set: Vec<&str> = attribute.as_object().into_iter().flatten().map(|(k, _)| k).collect();
        match set.len() {
            1 => {}
            0 => errors.push(FieldError::invalid(&at, "", "exactly one value must be specified")),
            _ => {
                let rule = "exactly one value must be specified";
                errors.push(FieldError::invalid(&at, attribute.clone(), rule));
            }
        }
    }
    for (key, _) in device["capacity"].as_object().into_iter().flatten() {
        qualified(errors, key, false, &path.child("capacity").key(key));
    }
}
