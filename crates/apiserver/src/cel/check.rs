//! Expressions in objects that users write: those that cannot be compiled are refused with the object.

use coxswain_meta::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::{Expression, POLICY_VARIABLES, REQUEST_VARIABLES};

const GROUP: &str = "admissionregistration.k8s.io";

/// The expressions of an object of a kind that cannot be compiled.
pub fn expressions(group: &str, plural: &str, object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    match (group, plural) {
        (GROUP, "validatingwebhookconfigurations" | "mutatingwebhookconfigurations") => {
            each(object, &Path::root(), "webhooks", |webhook, path| {
                each(webhook, &path, "matchConditions", |condition, path| {
                    check(condition, "expression", &path, &REQUEST_VARIABLES, &mut errors);
                });
            });
        }
        (GROUP, "validatingadmissionpolicies" | "mutatingadmissionpolicies") => {
            let (spec, path) = (&object["spec"], Path::new("spec"));
            for (list, keys) in [
                ("matchConditions", &["expression"][..]),
                ("variables", &["expression"]),
                ("validations", &["expression", "messageExpression"]),
                ("auditAnnotations", &["valueExpression"]),
            ] {
                each(spec, &path, list, |item, path| {
                    for key in keys {
                        check(item, key, &path, &POLICY_VARIABLES, &mut errors);
                    }
                });
            }
            each(spec, &path, "mutations", |mutation, path| {
                for part in ["applyConfiguration", "jsonPatch"] {
                    check(&mutation[part], "expression", &path.child(part), &POLICY_VARIABLES, &mut errors);
                }
            });
        }
        _ => {}
    }
    errors
}

fn each(object: &Value, path: &Path, list: &str, mut visit: impl FnMut(&Value, Path)) {
    for (at, item) in object[list].as_array().into_iter().flatten().enumerate() {
        visit(item, path.child(list).index(at));
    }
}

fn check(item: &Value, key: &str, path: &Path, variables: &[&str], errors: &mut ErrorList) {
    let Some(source) = item[key].as_str().filter(|source| !source.trim().is_empty()) else { return };
    if let Some(fault) = Expression::compile(source, variables).fault() {
        errors.push(FieldError::invalid(&path.child(key), source, format!("compilation failed: {fault}")));
    }
}
