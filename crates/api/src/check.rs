//! Rules that the validation of many kinds is made of.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::value::{has, int, text};

/// A field that is there must hold one of some texts.
pub(crate) fn one_of(errors: &mut ErrorList, object: &Value, key: &str, supported: &[&str], path: &Path) {
    if has(object, key) && !supported.contains(&text(object, key)) {
        errors.push(FieldError::not_supported(&path.child(key), object[key].clone(), supported));
    }
}

/// A field that must be there, with one of some texts.
pub(crate) fn required_one_of(
    errors: &mut ErrorList,
    object: &Value,
    key: &str,
    supported: &[&str],
    path: &Path,
) {
    match text(object, key) {
        "" => errors.push(FieldError::required(&path.child(key), "")),
        _ => one_of(errors, object, key, supported, path),
    }
}

/// A text that must be there; `rule` judges it.
pub(crate) fn required_name(
    errors: &mut ErrorList,
    object: &Value,
    key: &str,
    rule: fn(&str) -> Vec<String>,
    path: &Path,
) {
    match text(object, key) {
        "" => errors.push(FieldError::required(&path.child(key), "")),
        name => errors.invalid_each(&path.child(key), name, rule(name)),
    }
}

/// A text that `rule` judges where it is there and not empty.
pub(crate) fn optional_name(
    errors: &mut ErrorList,
    object: &Value,
    key: &str,
    rule: fn(&str) -> Vec<String>,
    path: &Path,
) {
    let name = text(object, key);
    if !name.is_empty() {
        errors.invalid_each(&path.child(key), name, rule(name));
    }
}

/// A number that may not be negative.
pub(crate) fn not_negative(errors: &mut ErrorList, object: &Value, key: &str, path: &Path) {
    if let Some(n) = int(object, key).filter(|n| *n < 0) {
        errors.push(FieldError::invalid(&path.child(key), n, "must be greater than or equal to 0"));
    }
}

/// The texts of a list field.
pub(crate) fn texts<'a>(object: &'a Value, key: &str) -> Vec<&'a str> {
    crate::value::items(object, key).iter().map(|v| v.as_str().unwrap_or_default()).collect()
}

/// Conditions as the metadata package has them: of unique types, with a status, a time and a reason.
pub(crate) fn conditions(errors: &mut ErrorList, status: &Value, path: &Path) {
    let conditions = crate::value::items(status, "conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.child("conditions").index(i);
        let of_type = text(condition, "type");
        if conditions[..i].iter().any(|before| text(before, "type") == of_type) {
            errors.push(FieldError::duplicate(&at.child("type"), of_type));
        }
        errors.invalid_each(&at.child("type"), of_type, names::qualified_name(of_type));
        let known = &["False", "True", "Unknown"];
        if !known.contains(&text(condition, "status")) {
            errors.push(FieldError::not_supported(&at.child("status"), text(condition, "status"), known));
        }
        if let Some(n) = int(condition, "observedGeneration").filter(|n| *n < 0) {
            let rule = "must be greater than or equal to zero";
            errors.push(FieldError::invalid(&at.child("observedGeneration"), n, rule));
        }
        for field in ["lastTransitionTime", "reason"] {
            if text(condition, field).is_empty() {
                errors.push(FieldError::required(&at.child(field), ""));
            }
        }
    }
}

/// A Go value of a list or map that nobody set is written as null.
pub(crate) fn or_null(value: &Value) -> Value {
    match value {
        Value::Array(items) if items.is_empty() => Value::Null,
        other => other.clone(),
    }
}

/// A fully qualified name of at least three parts, as webhooks have.
pub(crate) fn fully_qualified(errors: &mut ErrorList, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let rules = names::dns1123_subdomain(name);
    if !rules.is_empty() {
        errors.push(FieldError::invalid(path, name, rules.join(",")));
        return;
    }
    if name.split('.').count() < 3 {
        let rule = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid(path, name, rule));
    }
}

/// A domain, a slash and a path, as names of controllers have.
pub(crate) fn domain_prefixed_path(errors: &mut ErrorList, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(d, r)| !d.is_empty() && !r.is_empty()) else {
        let rule = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(path, name, rule));
        return;
    };
    errors.invalid_each(path, domain, names::dns1123_subdomain(domain));
    let legal = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !rest.chars().all(legal) {
        let rule = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(FieldError::invalid(path, rest, rule));
    }
}
