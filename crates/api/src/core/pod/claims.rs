//! Validation of a pod's claims of devices, and of the containers' use of them.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::schema;
use crate::value::{items, text};

const CLAIM: &str = "io.k8s.api.core.v1.PodResourceClaim";

/// Checks `resourceClaims` of a spec at `path`.
pub(super) fn validate(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let mut taken: Vec<&str> = Vec::new();
    for (i, claim) in items(spec, "resourceClaims").iter().enumerate() {
        let (at, name) = (path.child("resourceClaims").index(i), text(claim, "name"));
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if taken.contains(&name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        } else {
            errors.invalid_each(&at.child("name"), name, names::dns1123_label(name));
            taken.push(name);
        }
        let sources =
            ["resourceClaimName", "resourceClaimTemplateName"].map(|key| (key, claim[key].as_str()));
        let rule = match sources.iter().filter(|(_, name)| name.is_some()).count() {
            0 => Some("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            1 => None,
            _ => Some("at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
        };
        if let Some(rule) = rule {
            let shown = schema::internal(claim, CLAIM);
            errors.push(FieldError::invalid_without_value(&at, format!("{shown}: {rule}")));
        }
        for (key, name) in sources {
            if let Some(name) = name {
                errors.invalid_each(&at.child(key), name, names::dns1123_subdomain(name));
            }
        }
    }
}

/// Checks `claims` of a container's resources, which name some of the pod's.
pub(super) fn validate_used(errors: &mut ErrorList, resources: &Value, path: &Path, of_pod: &[&str]) {
    let mut taken: Vec<String> = Vec::new();
    for (i, claim) in items(resources, "claims").iter().enumerate() {
        let (at, name, request) = (path.index(i), text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        if taken.iter().any(|taken| taken == name) {
            errors.push(FieldError::duplicate(&at, name));
        } else {
            if !request.is_empty() {
                errors.invalid_each(&at.child("request"), request, names::dns1123_label(request));
            }
            let within = |taken: &&String| taken.split_once('/').is_some_and(|(claim, _)| claim == name);
            let overlaps = if request.is_empty() { taken.iter().filter(within).count() } else { 0 };
            let again = usize::from(taken.contains(&key));
            (0..overlaps.max(again)).for_each(|_| errors.push(FieldError::duplicate(&at, key.as_str())));
            taken.push(key);
        }
        if !of_pod.contains(&name) {
            let mut known: Vec<&str> = of_pod.iter().copied().filter(|name| !name.is_empty()).collect();
            known.sort_unstable();
            known.dedup();
            let known =
                if known.is_empty() { " which is empty".into() } else { format!(": {}", known.join(", ")) };
            let mut error = FieldError::not_found(&at, name);
            error.detail = format!("must be one of the names in pod.spec.resourceClaims{known}");
            errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn claims_are_named_once_and_known() {
        let spec = json!({"resourceClaims": [{"name": "a", "resourceClaimName": "x"},
            {"name": "a", "resourceClaimTemplateName": "Bogus"}, {"name": "b"}]});
        let mut errors = ErrorList::new();
        validate(&mut errors, &spec, &Path::new("spec"));
        let used = json!({"claims": [{"name": "a", "request": "r"}, {"name": "a"}, {"name": "c"}]});
        validate_used(&mut errors, &used, &Path::new("claims"), &["b", "a"]);
        let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let invalid = "spec.resourceClaims[1].resourceClaimTemplateName: Invalid value: \"Bogus\": a lowercase RFC 1123 subdomain";
        assert_eq!(found.len(), 5, "{found:?}");
        assert_eq!(found[0], "spec.resourceClaims[1].name: Duplicate value: \"a\"");
        assert!(found[1].starts_with(invalid), "{}", found[1]);
        assert_eq!(
            found[2],
            "spec.resourceClaims[2]: Invalid value: {\"Name\":\"b\",\"ResourceClaimName\":null,\"ResourceClaimTemplateName\":null}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
        );
        assert_eq!(found[3], "claims[1]: Duplicate value: \"a\"");
        assert_eq!(
            found[4],
            "claims[2]: Not found: \"c\": must be one of the names in pod.spec.resourceClaims: a, b"
        );
    }
}
