//! Validation of resource requirements.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use super::claims;
use crate::value::entries;

/// Whether a name is one of the resources containers have by nature.
fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Whether a name is a resource that plugins advertise: with a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Checks `resources` of a container (or, without claims, of a pod).
pub(super) fn validate(errors: &mut ErrorList, resources: &Value, path: &Path, claims: &[&str]) {
    for list in ["limits", "requests"] {
        for (name, amount) in entries(resources, list) {
            let at = path.child(list).key(name);
            resource_name(errors, name, &at);
            quantity(errors, name, amount, &at);
        }
    }
    let limits = &resources["limits"];
    for (name, request) in entries(resources, "requests") {
        let at = path.child("requests");
        let Ok(request) = Quantity::from_json(request) else { continue };
        match limits.get(name).map(Quantity::from_json) {
            Some(Ok(limit)) if !overcommits(name) && request != limit => {
                let rule = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&at, request.to_string(), rule));
            }
            Some(Ok(limit)) if request > limit => {
                let rule = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&at, request.to_string(), rule));
            }
            None if !overcommits(name) => {
                let rule = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&path.child("limits"), rule));
            }
            _ => {}
        }
    }
    let has = |name: &str| ["limits", "requests"].iter().any(|list| resources[*list].get(name).is_some());
    let huge = ["limits", "requests"]
        .iter()
        .flat_map(|l| entries(resources, l))
        .any(|(n, _)| n.starts_with("hugepages-"));
    if huge && !has("cpu") && !has("memory") {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
    claims::validate_used(errors, resources, &path.child("claims"), claims);
}

/// Extended resources and huge pages cannot be promised twice.
fn overcommits(name: &str) -> bool {
    !is_extended(name) && !name.starts_with("hugepages-")
}

fn resource_name(errors: &mut ErrorList, name: &str, at: &Path) {
    let broken = names::qualified_name(name);
    if !broken.is_empty() {
        errors.invalid_each(at, name, broken);
    } else if !name.contains('/') && !is_standard(name) {
        errors.push(FieldError::invalid(at, name, "must be a standard resource type or fully qualified"));
        errors.push(FieldError::invalid(at, name, "must be a standard resource for containers"));
    } else if name.contains('/') && !is_extended(name) && !name.starts_with("kubernetes.io/") {
        errors.push(FieldError::invalid(at, name, "doesn't follow extended resource name standard"));
    }
}

/// Checks an amount: not negative, and whole where parts make no sense.
pub(super) fn quantity(errors: &mut ErrorList, name: &str, amount: &Value, at: &Path) {
    let Ok(amount) = Quantity::from_json(amount) else { return };
    if amount.is_negative() {
        let rule = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(at, amount.to_string(), rule));
    }
    if (is_extended(name) || name.starts_with("hugepages-")) && !amount.is_integer() {
        errors.push(FieldError::invalid(at, amount.to_string(), "must be an integer"));
    }
}
