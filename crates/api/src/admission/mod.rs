//! The admissionregistration.k8s.io group: webhook configurations and admission policies.

mod policies;
pub(crate) mod webhooks;

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::check::{one_of, texts};
use crate::objectmeta;
use crate::value::{filled, has, items, set, text};

pub(crate) use policies::{MUTATING, MUTATING_BINDING, VALIDATING, VALIDATING_BINDING};
pub(crate) use webhooks::{MUTATING_WEBHOOK, VALIDATING_WEBHOOK};

const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
const MOST_CONDITIONS: usize = 64;

/// Fills a field in that is not there at all.
fn set_absent(object: &mut Value, key: &str, value: Value) {
    if !has(object, key) {
        set(object, key, value);
    }
}

fn default_selectors(object: &mut Value) {
    set_absent(object, "matchPolicy", "Equivalent".into());
    for key in ["namespaceSelector", "objectSelector"] {
        set_absent(object, key, json!({}));
    }
}

fn default_rule(rule: &mut Value) {
    set_absent(rule, "scope", "*".into());
}

/// Operations, groups, versions, resources and scope of a rule.
fn rule(errors: &mut ErrorList, rule: &Value, path: &Path) {
    let operations = texts(rule, "operations");
    let at = path.child("operations");
    if operations.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    alone(errors, rule, "operations", "operations", path);
    for (i, operation) in operations.iter().enumerate().filter(|(_, o)| !OPERATIONS.contains(o)) {
        errors.push(FieldError::not_supported(&at.index(i), *operation, OPERATIONS));
    }
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        if !filled(rule, key) {
            errors.push(FieldError::required(&path.child(key), ""));
        }
        alone(errors, rule, key, what, path);
    }
    for (i, _) in texts(rule, "apiVersions").iter().enumerate().filter(|(_, v)| v.is_empty()) {
        errors.push(FieldError::required(&path.child("apiVersions").index(i), ""));
    }
    resources(errors, rule, &path.child("resources"));
    one_of(errors, rule, "scope", &["*", "Cluster", "Namespaced"], path);
}

fn alone(errors: &mut ErrorList, rule: &Value, key: &str, what: &str, path: &Path) {
    let list = texts(rule, key);
    if list.len() > 1 && list.contains(&"*") {
        let message = format!("if '*' is present, must not specify other {what}");
        errors.push(FieldError::invalid(&path.child(key), rule[key].clone(), message));
    }
}

fn resources(errors: &mut ErrorList, rule: &Value, path: &Path) {
    let list = texts(rule, "resources");
    if list.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let (mut whole, mut subs) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (i, entry) in list.iter().enumerate() {
        if entry.is_empty() {
            errors.push(FieldError::required(&path.index(i), ""));
            continue;
        }
        let Some((resource, sub)) = entry.split_once('/') else {
            plain = *entry != "*";
            continue;
        };
        for (seen, part, present) in
            [(&whole, resource, format!("{resource}/*")), (&subs, sub, format!("*/{sub}"))]
        {
            if seen.contains(&part) {
                let message = format!("if '{present}' is present, must not specify {entry}");
                errors.push(FieldError::invalid(&path.index(i), *entry, message));
            }
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            subs.push(sub);
        }
    }
    if list.len() > 1 && list.contains(&"*/*") {
        let message = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, rule["resources"].clone(), message));
    }
    if list.contains(&"*") && plain {
        let message = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, rule["resources"].clone(), message));
    }
}

/// Names and expressions; what an expression means is checked where it is compiled.
fn match_conditions(errors: &mut ErrorList, object: &Value, path: &Path) {
    let (list, path) = (items(object, "matchConditions"), path.child("matchConditions"));
    if list.len() > MOST_CONDITIONS {
        errors.push(FieldError::too_many(&path, list.len(), MOST_CONDITIONS));
    }
    let mut seen = Vec::new();
    for (i, condition) in list.iter().enumerate() {
        let at = path.index(i);
        if text(condition, "expression").trim().is_empty() {
            errors.push(FieldError::required(&at.child("expression"), ""));
        }
        match text(condition, "name") {
            "" => errors.push(FieldError::required(&at.child("name"), "")),
            name => {
                errors.invalid_each(&at.child("name"), name, names::qualified_name(name));
                if seen.contains(&name) {
                    errors.push(FieldError::duplicate(&at.child("name"), name));
                }
                seen.push(name);
            }
        }
    }
}

fn selectors(errors: &mut ErrorList, object: &Value, path: &Path) {
    for key in ["namespaceSelector", "objectSelector"] {
        objectmeta::label_selector(errors, &object[key], &path.child(key));
    }
}
