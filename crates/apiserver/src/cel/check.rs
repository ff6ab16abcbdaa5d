//! Expressions in objects that users write: those that cannot be compiled, or make something else than their place takes, are
//! refused with the object.

use std::collections::BTreeMap;

use coxswain_meta::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::Expression;
use super::typing::{CONDITIONS, Environment, Type, admission, authorized, composed};

const GROUP: &str = "admissionregistration.k8s.io";

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
        _ => {}
    }
    errors
}

fn policy(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let with_params = |environment: Environment| match spec["paramKind"].is_object() {
        true => environment.with("params", Type::Dyn),
        false => environment,
    };
    // Conditions may name parameters that nobody gives.
    let conditions = authorized(admission()).with("params", Type::Dyn);
    each(spec, path, "matchConditions", |condition, path| {
        check(condition, "expression", &path, &conditions, &[Type::Bool], errors);
    });
    let mut known = BTreeMap::new();
    each(spec, path, "variables", |variable, path| {
        let environment = with_params(authorized(admission())).with("variables", composed(known.clone()));
        let ty = check(variable, "expression", &path, &environment, &[], errors);
        known.insert(variable["name"].as_str().unwrap_or_default().to_owned(), plain(&ty));
    });
    let anonymous = admission().with("params", Type::Dyn).with("variables", composed(known.clone()));
    let whole = with_params(authorized(admission())).with("variables", composed(known));
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
        for (part, wanted) in
            [("applyConfiguration", shape("Object")), ("jsonPatch", Type::list(shape("JSONPatch")))]
        {
            check(&mutation[part], "expression", &path.child(part), &patches, &[wanted], errors);
        }
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

/// Checks an expression, which must be of one of the types where there are some; its type.
fn check(
    item: &Value,
    key: &str,
    path: &Path,
    environment: &Environment,
    wanted: &[Type],
    errors: &mut ErrorList,
) -> Type {
    let Some(source) = item[key].as_str().filter(|source| !source.trim().is_empty()) else {
        return Type::Dyn;
    };
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
