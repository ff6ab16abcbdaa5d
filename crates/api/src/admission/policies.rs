//! Admission policies in CEL and their bindings.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, default_rule, default_selectors,
    match_conditions, rule, selectors, set_absent,
};
use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::{conditions, one_of, required_name, required_one_of, texts};
use crate::objectmeta;
use crate::prepare;
use crate::table::{AGE, NAME, age, column, count, name, or};
use crate::value::{filled, has, items, items_mut, present, text};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge"];
const MOST_ANNOTATIONS: usize = 20;

const fn columns(what: &'static str) -> [Column; 4] {
    [NAME, count(what, "Rules of the policy."), column("ParamKind", "The kind of its parameters."), AGE]
}
const VALIDATING_COLUMNS: &[Column] = &columns("Validations");
const MUTATING_COLUMNS: &[Column] = &columns("Mutations");
const BINDING_COLUMNS: &[Column] =
    &[NAME, column("PolicyName", "The policy."), column("ParamRef", "Its parameters."), AGE];

pub(crate) const VALIDATING: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    subresources: &[Subresource::status(GROUP, "v1", "ValidatingAdmissionPolicy")],
    status: true,
    columns: VALIDATING_COLUMNS,
    hooks: Hooks {
        default: default_policy,
        validate: validate_validating,
        validate_status: validate_validating_status,
        row: |v, now| policy_row(v, "validations", now),
        ..Hooks::COUNTED
    },
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy"
    )
};

pub(crate) const MUTATING: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    columns: MUTATING_COLUMNS,
    hooks: Hooks {
        default: default_policy,
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: validate_mutating,
        row: |v, now| policy_row(v, "mutations", now),
        ..Hooks::PLAIN
    },
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy"
    )
};

pub(crate) const VALIDATING_BINDING: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    columns: BINDING_COLUMNS,
    hooks: Hooks {
        default: default_binding,
        prepare_create: prepare::first_generation,
        prepare_update: prepare::raise_generation,
        validate: |v| {
            let mut errors = validate_binding(v);
            actions(&mut errors, &v["spec"], &Path::new("spec").child("validationActions"));
            errors
        },
        row: binding_row,
        ..Hooks::PLAIN
    },
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding"
    )
};

pub(crate) const MUTATING_BINDING: Kind = Kind {
    hooks: Hooks {
        validate: |v| {
            let mut errors = validate_binding(v);
            let path = Path::new("spec").child("matchResources");
            mutating_operations(&mut errors, &v["spec"]["matchResources"], &path);
            errors
        },
        ..VALIDATING_BINDING.hooks
    },
    namespaced: false,
    categories: &["api-extensions"],
    columns: BINDING_COLUMNS,
    ..kind!(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding"
    )
};

fn policy_row(policy: &Value, rules: &str, now: i64) -> Vec<Value> {
    let spec = &policy["spec"];
    let parameters = match has(spec, "paramKind") {
        true => format!("{}/{}", text(&spec["paramKind"], "apiVersion"), text(&spec["paramKind"], "kind")),
        false => "<unset>".into(),
    };
    vec![name(policy), items(spec, rules).len().into(), parameters.into(), age(policy, now)]
}

fn binding_row(binding: &Value, now: i64) -> Vec<Value> {
    let (spec, reference) = (&binding["spec"], &binding["spec"]["paramRef"]);
    let parameters = match (has(spec, "paramRef"), text(reference, "namespace"), text(reference, "name")) {
        (false, ..) => "<unset>".into(),
        (true, _, "") => "*".into(),
        (true, namespace, name) => format!("{}/{name}", or(namespace, "*")),
    };
    vec![name(binding), text(spec, "policyName").into(), parameters.into(), age(binding, now)]
}

fn default_resources(resources: &mut Value) {
    default_selectors(resources);
    for key in ["resourceRules", "excludeResourceRules"] {
        items_mut(resources, key).iter_mut().for_each(default_rule);
    }
}

fn default_policy(policy: &mut Value) {
    let Some(spec) = present(policy, "spec") else { return };
    set_absent(spec, "failurePolicy", "Fail".into());
    present(spec, "matchConstraints").into_iter().for_each(default_resources);
}

fn default_binding(binding: &mut Value) {
    let spec = present(binding, "spec");
    spec.and_then(|spec| present(spec, "matchResources")).into_iter().for_each(default_resources);
}

fn match_resources(errors: &mut ErrorList, resources: &Value, path: &Path) {
    if resources.is_null() {
        return;
    }
    required_one_of(errors, resources, "matchPolicy", MATCH_POLICIES, path);
    selectors(errors, resources, path);
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, one) in items(resources, key).iter().enumerate() {
            let at = path.child(key).index(i);
            let names_of = texts(one, "resourceNames");
            for (j, name) in names_of.iter().enumerate() {
                let at = at.child("resourceNames").index(j);
                errors.invalid_each(&at, name, names::path_segment_name(name));
                if names_of[..j].contains(name) {
                    errors.push(FieldError::duplicate(&at, *name));
                }
            }
            rule(errors, one, &at);
        }
    }
}

fn mutating_operations(errors: &mut ErrorList, resources: &Value, path: &Path) {
    for one in items(resources, "resourceRules") {
        for operation in texts(one, "operations") {
            if !MUTATING_OPERATIONS.contains(&operation) {
                let at = path.child("resourceRules.operations");
                errors.push(FieldError::not_supported(&at, operation, MUTATING_OPERATIONS));
            }
        }
    }
}

/// What policies of both sorts share, up to their variables.
fn policy_head(errors: &mut ErrorList, spec: &Value, path: &Path, mutating: bool) {
    one_of(errors, spec, "failurePolicy", FAILURE_POLICIES, path);
    if has(spec, "paramKind") {
        param_kind(errors, &spec["paramKind"], &path.child("paramKind"));
    }
    let (constraints, at) = (&spec["matchConstraints"], path.child("matchConstraints"));
    if !has(spec, "matchConstraints") {
        errors.push(FieldError::required(&at, ""));
    } else {
        match_resources(errors, constraints, &at);
        if !filled(constraints, "resourceRules") {
            errors.push(FieldError::required(&at.child("resourceRules"), ""));
        }
        if mutating {
            mutating_operations(errors, constraints, &at);
        }
    }
    match_conditions(errors, spec, path);
    for (i, variable) in items(spec, "variables").iter().enumerate() {
        let at = path.child("variables").index(i);
        for key in ["name", "expression"] {
            if text(variable, key).trim().is_empty() {
                errors.push(FieldError::required(&at.child(key), format!("{key} is not specified")));
            }
        }
        let name = text(variable, "name");
        if !name.trim().is_empty() && !names::c_identifier(name).is_empty() {
            errors.push(FieldError::invalid(&at.child("name"), name, "must be a valid CEL identifier"));
        }
    }
}

fn param_kind(errors: &mut ErrorList, kind: &Value, path: &Path) {
    let version = text(kind, "apiVersion");
    let at = path.child("apiVersion");
    let (group, plain) = version.split_once('/').unwrap_or(("", version));
    if version.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else if plain.contains('/') {
        errors.push(FieldError::invalid(&at, version, format!("unexpected GroupVersion string: {version}")));
    } else {
        let rules = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        if !rules.is_empty() {
            errors.push(FieldError::invalid(&at, group, rules.join(",")));
        }
        let rules = names::dns1035_label(plain);
        if plain.is_empty() {
            errors.push(FieldError::invalid(&at, version, "version must be specified"));
        } else if !rules.is_empty() {
            errors.push(FieldError::invalid(&at, plain, rules.join(",")));
        }
    }
    let (kind, at) = (text(kind, "kind"), path.child("kind"));
    let rules = names::dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else if !rules.is_empty() {
        let rule = format!("may have mixed case, but should otherwise match: {}", rules.join(","));
        errors.push(FieldError::invalid(&at, kind, rule));
    }
}

/// What is found wrong with types is told, with its place.
fn validate_validating_status(policy: &Value, _old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (status, path) = (&policy["status"], Path::new("status"));
    let at = path.child("typeChecking").child("expressionWarnings");
    for (i, warning) in items(&status["typeChecking"], "expressionWarnings").iter().enumerate() {
        for field in ["warning", "fieldRef"] {
            if text(warning, field).is_empty() {
                errors.push(FieldError::required(&at.index(i).child(field), ""));
            }
        }
    }
    conditions(&mut errors, status, &path);
    errors
}

fn validate_validating(policy: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&policy["spec"], Path::new("spec"));
    policy_head(&mut errors, spec, &path, false);
    if !filled(spec, "validations") && !filled(spec, "auditAnnotations") {
        for key in ["validations", "auditAnnotations"] {
            let rule = "validations or auditAnnotations must contain at least one item";
            errors.push(FieldError::required(&path.child(key), rule));
        }
        return errors;
    }
    for (i, validation) in items(spec, "validations").iter().enumerate() {
        validation_rule(&mut errors, validation, &path.child("validations").index(i));
    }
    let annotations = items(spec, "auditAnnotations");
    let at = path.child("auditAnnotations");
    if annotations.len() > MOST_ANNOTATIONS {
        let rule = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        errors.push(FieldError::invalid(&at, annotations.to_vec(), rule));
    }
    for (i, annotation) in annotations.iter().enumerate() {
        let (at, key) = (at.index(i), text(annotation, "key"));
        let whole = format!("{}/{key}", crate::value::name(policy));
        errors.invalid_each(&at.child("key"), &whole, names::qualified_name(&whole));
        if text(annotation, "valueExpression").trim().is_empty() {
            let rule = "valueExpression is not specified";
            errors.push(FieldError::required(&at.child("valueExpression"), rule));
        }
        if annotations[..i].iter().any(|other| text(other, "key") == key) {
            errors.push(FieldError::duplicate(&at.child("key"), key));
        }
    }
    errors
}

fn validation_rule(errors: &mut ErrorList, validation: &Value, path: &Path) {
    if text(validation, "expression").trim().is_empty() {
        errors.push(FieldError::required(&path.child("expression"), "expression is not specified"));
    }
    for key in ["messageExpression", "message"] {
        let message = text(validation, key);
        let rule = match message.trim() {
            "" if !message.is_empty() => "must be non-empty if specified",
            trimmed if key == "message" && trimmed.contains('\n') => "must not contain line breaks",
            _ => continue,
        };
        errors.push(FieldError::invalid(&path.child(key), message, rule));
    }
    one_of(errors, validation, "reason", REASONS, path);
}

fn validate_mutating(policy: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&policy["spec"], Path::new("spec"));
    policy_head(&mut errors, spec, &path, true);
    if !filled(spec, "mutations") {
        let rule = "mutations must contain at least one item";
        errors.push(FieldError::required(&path.child("mutations"), rule));
    }
    for (i, mutation) in items(spec, "mutations").iter().enumerate() {
        let at = path.child("mutations").index(i);
        let (kind, own, other) = match text(mutation, "patchType") {
            "" => {
                errors.push(FieldError::required(&at.child("patchType"), ""));
                continue;
            }
            "JSONPatch" => ("JSONPatch", "jsonPatch", "applyConfiguration"),
            "ApplyConfiguration" => ("ApplyConfiguration", "applyConfiguration", "jsonPatch"),
            unknown => {
                let known = &["ApplyConfiguration", "JSONPatch"];
                errors.push(FieldError::not_supported(&at.child("patchType"), unknown, known));
                continue;
            }
        };
        if !has(mutation, own) {
            let rule = format!("must be specified when patchType is {kind}");
            errors.push(FieldError::required(&at.child(own), rule));
        } else if text(&mutation[own], "expression").trim().is_empty() {
            errors.push(FieldError::required(&at.child(own).child("expression"), ""));
        }
        if has(mutation, other) {
            let rule = format!("must not be specified when patchType is {kind}");
            errors.push(FieldError::invalid(&at.child(other), format!("{{{other}}}"), rule));
        }
    }
    required_one_of(&mut errors, spec, "reinvocationPolicy", REINVOCATION_POLICIES, &path);
    errors
}

fn validate_binding(binding: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&binding["spec"], Path::new("spec"));
    required_name(&mut errors, spec, "policyName", names::dns1123_subdomain, &path);
    if has(spec, "paramRef") {
        param_ref(&mut errors, &spec["paramRef"], &path.child("paramRef"));
    }
    match_resources(&mut errors, &spec["matchResources"], &path.child("matchResources"));
    errors
}

fn param_ref(errors: &mut ErrorList, reference: &Value, path: &Path) {
    let (name, selects) = (text(reference, "name"), has(reference, "selector"));
    let both = "name and selector are mutually exclusive";
    if !name.is_empty() {
        errors.invalid_each(&path.child("name"), name, names::path_segment_name(name));
        if selects {
            errors.push(FieldError::forbidden(&path.child("name"), both));
        }
    }
    if selects {
        objectmeta::label_selector(errors, &reference["selector"], &path.child("selector"));
        if !name.is_empty() {
            errors.push(FieldError::forbidden(&path.child("selector"), both));
        }
    }
    if name.is_empty() && !selects {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    required_one_of(errors, reference, "parameterNotFoundAction", &["Deny", "Allow"], path);
}

fn actions(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let list = texts(spec, "validationActions");
    for (i, action) in list.iter().enumerate() {
        if !["Audit", "Deny", "Warn"].contains(action) {
            errors.push(FieldError::not_supported(&path.index(i), *action, &["Audit", "Deny", "Warn"]));
        }
        if list[..i].contains(action) {
            errors.push(FieldError::duplicate(&path.index(i), *action));
        }
    }
    if list.contains(&"Deny") && list.contains(&"Warn") {
        let rule = "must not contain both Deny and Warn (repeating the same validation failure information in the \
            API response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, spec["validationActions"].clone(), rule));
    }
    if list.is_empty() {
        errors.push(FieldError::required(path, "at least one validation action is required"));
    }
}
