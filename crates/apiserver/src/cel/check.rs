//! Expressions in objects that users write: those that cannot be compiled, or make something else than their place takes, are
//! refused with the object.

use std::collections::BTreeMap;

use coxswain_meta::field::{ErrorList, FieldError, Path};
use coxswain_meta::json::Value;

use super::Expression;
use super::typing::{CONDITIONS, DEVICES, Environment, Type, admission, authorized, composed};

const GROUP: &str = "admissionregistration.k8s.io";
const RESOURCES: &str = "resource.k8s.io";

/// Whether objects of a group may have expressions.
pub fn concerns(group: &str) -> bool {
    matches!(group, GROUP | RESOURCES)
}

/// The expressions of an object of a kind that cannot be compiled.
pub fn expressions(group: &str, plural: &str, object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    match (group, plural) {
        (GROUP, "validatingwebhookconfigurations" | "mutatingwebhookconfigurations") => {
            each(object, &Path::root(), "webhooks", |webhook, path| {
                each(webhook, &path, "matchConditions", |condition, path| {
                    check(condition, "expression", &path, &CONDITIONS, &[Type::Bool], &mut errors);
                });
            });
        }
        (GROUP, "validatingadmissionpolicies" | "mutatingadmissionpolicies") => {
            policy(&object["spec"], &Path::new("spec"), &mut errors);
        }
        (RESOURCES, "deviceclasses") => selectors(&object["spec"], &Path::new("spec"), &mut errors),
        (RESOURCES, "resourceclaims") => claim(&object["spec"], &Path::new("spec"), &mut errors),
        (RESOURCES, "resourceclaimtemplates") => {
            claim(&object["spec"]["spec"], &Path::new("spec").child("spec"), &mut errors);
        }
        _ => {}
    }
    errors
}

fn policy(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let with_params = |environment: Environment| match spec["paramKind"].is_object() {
        true => environment.with("params", Type::Dyn),
        false => environment,
    };
    let conditions = with_params(authorized(admission()));
    each(spec, path, "matchConditions", |condition, path| {
        check(condition, "expression", &path, &conditions, &[Type::Bool], errors);
    });
    let (mut known, composes) =
        (BTreeMap::new(), spec["variables"].as_array().is_some_and(|v| !v.is_empty()));
    let with_variables = |environment: Environment, known: &BTreeMap<String, Type>| match composes {
        true => environment.with("variables", composed(known.clone())),
        false => environment,
    };
    each(spec, path, "variables", |variable, path| {
        let environment = with_variables(with_params(authorized(admission())), &known);
        let ty = check(variable, "expression", &path, &environment, &[], errors);
        known.insert(variable["name"].as_str().unwrap_or_default().to_owned(), plain(&ty));
    });
    let anonymous = with_variables(with_params(admission()), &known);
    let whole = with_variables(with_params(authorized(admission())), &known);
    each(spec, path, "validations", |validation, path| {
        check(validation, "expression", &path, &whole, &[Type::Bool], errors);
        check(validation, "messageExpression", &path, &anonymous, &[Type::String], errors);
    });
    each(spec, path, "auditAnnotations", |annotation, path| {
        check(annotation, "valueExpression", &path, &whole, &[Type::String, Type::Null], errors);
    });
    let patches = whole.writing();
    each(spec, path, "mutations", |mutation, path| {
        let shape = |name: &str| patches.shape(name).map_or(Type::Dyn, Type::Object);
        let (part, wanted) = match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => ("applyConfiguration", shape("Object")),
            Some("JSONPatch") => ("jsonPatch", Type::list(shape("JSONPatch"))),
            _ => return,
        };
        check(&mutation[part], "expression", &path.child(part), &patches, &[wanted], errors);
    });
}

fn claim(spec: &Value, path: &Path, errors: &mut ErrorList) {
    each(&spec["devices"], &path.child("devices"), "requests", |request, path| {
        selectors(&request["exactly"], &path.child("exactly"), errors);
        each(request, &path, "firstAvailable", |choice, path| selectors(choice, &path, errors));
    });
}

/// Selectors of devices, whose attributes are of any type.
fn selectors(object: &Value, path: &Path, errors: &mut ErrorList) {
    each(object, path, "selectors", |selector, path| {
        let (path, selector) = (path.child("cel"), &selector["cel"]);
        let Some(source) = written(selector, "expression") else { return };
        let expression = Expression::compile(source, &DEVICES);
        let found = expression.ty();
        let why = match expression.fault() {
            Some(fault) => format!("compilation failed: {fault}"),
            None if found.is_dyn() || found.is(&Type::Bool) => return,
            None => format!("must evaluate to bool or the unknown type, not {}", found.declared()),
        };
        errors.push(FieldError::invalid(&path.child("expression"), source, why));
    });
}

/// What of a variable's type is known where it is used.
fn plain(ty: &Type) -> Type {
    match ty {
        Type::List(_) | Type::Map(..) => ty.with(&mut plain),
        Type::Kind(_) | Type::Optional(_) | Type::Object(_) | Type::Opaque(_) => Type::Dyn,
        other => other.clone(),
    }
}

fn each(object: &Value, path: &Path, list: &str, mut visit: impl FnMut(&Value, Path)) {
    for (at, item) in object[list].as_array().into_iter().flatten().enumerate() {
        visit(item, path.child(list).index(at));
    }
}

fn written<'a>(item: &'a Value, key: &str) -> Option<&'a str> {
    item[key].as_str().filter(|source| !source.trim().is_empty())
}

/// Checks an expression, which must be of one of the types where there are some; its type.
fn check(
    item: &Value,
    key: &str,
    path: &Path,
    environment: &Environment,
    wanted: &[Type],
    errors: &mut ErrorList,
) -> Type {
    let Some(source) = written(item, key) else { return Type::Dyn };
    let expression = Expression::compile(source, environment);
    let found = expression.ty();
    let why = match (expression.fault(), wanted) {
        (Some(fault), _) => format!("compilation failed: {fault}"),
        (None, []) => return found.clone(),
        (None, wanted) if wanted.iter().any(|wanted| found.is(wanted)) => return found.clone(),
        (None, [wanted]) => {
            format!("must evaluate to {} but got {}", wanted.declared(), found.declared())
        }
        (None, wanted) => {
            let names: Vec<String> = wanted.iter().map(Type::declared).collect();
            format!("must evaluate to one of [{}] but got {}", names.join(" "), found.declared())
        }
    };
    errors.push(FieldError::invalid(&path.child(key), source, why));
    Type::Dyn
}
