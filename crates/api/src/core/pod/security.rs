//! Validation of security contexts.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::value::{flag, has, int, items, text};

fn id(errors: &mut ErrorList, context: &Value, key: &str, path: &Path) {
    if let Some(id) = int(context, key) {
        id_value(errors, id, &path.child(key));
    }
}

fn id_value(errors: &mut ErrorList, id: i64, at: &Path) {
    let max = i64::from(i32::MAX);
    if !(0..=max).contains(&id) {
        errors.push(FieldError::invalid(at, id, names::range_error(0, max)));
    }
}

fn profile(errors: &mut ErrorList, profile: &Value, path: &Path) {
    if !profile.is_object() {
        return;
    }
    let local = text(profile, "localhostProfile");
    match text(profile, "type") {
        "Localhost" if local.is_empty() => {
            let rule = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(&path.child("localhostProfile"), rule));
        }
        "Localhost" => super::volumes::descending_path(errors, local, &path.child("localhostProfile")),
        "RuntimeDefault" | "Unconfined" if has(profile, "localhostProfile") => {
            let rule = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(&path.child("localhostProfile"), local, rule));
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => {
            let rule = "type is required when seccompProfile is set";
            errors.push(FieldError::required(&path.child("type"), rule));
        }
        other => {
            let supported = &["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(FieldError::not_supported(&path.child("type"), other, supported));
        }
    }
}

/// Checks the pod-wide security context and the sharing of host namespaces.
pub(super) fn validate_pod(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (context, at) = (&spec["securityContext"], path.child("securityContext"));
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, context, key, &at);
    }
    for (i, group) in items(context, "supplementalGroups").iter().enumerate() {
        id_value(errors, group.as_i64().unwrap_or(-1), &at.child("supplementalGroups").index(i));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let rule = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(&at.child("shareProcessNamespace"), true, rule));
    }
    sysctls(errors, items(context, "sysctls"), &at.child("sysctls"));
    one_of(errors, context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], &at);
    one_of(errors, context, "supplementalGroupsPolicy", &["Merge", "Strict"], &at);
    profile(errors, &context["seccompProfile"], &at.child("seccompProfile"));
    if spec["hostUsers"] == false {
        for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
            if flag(spec, key) {
                errors.push(FieldError::forbidden(&path.child(shown), "when `hostUsers` is false"));
            }
        }
    }
}

fn one_of(errors: &mut ErrorList, context: &Value, key: &str, supported: &[&str], path: &Path) {
    let value = text(context, key);
    if !value.is_empty() && !supported.contains(&value) {
        errors.push(FieldError::not_supported(&path.child(key), value, supported));
    }
}

fn sysctls(errors: &mut ErrorList, sysctls: &[Value], path: &Path) {
    let form = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
    for (i, sysctl) in sysctls.iter().enumerate() {
        let (name, at) = (text(sysctl, "name"), path.index(i).child("name"));
        let fine = |part: &str| {
            let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(edge)
                && bytes.last().copied().is_some_and(edge)
                && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_'))
        };
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if name.len() > 253 || !name.split(['.', '/']).all(fine) {
            let rule = format!("must have at most 253 characters and match regex {form}");
            errors.push(FieldError::invalid(&at, name, rule));
        } else if sysctls[..i].iter().any(|s| text(s, "name") == name) {
            errors.push(FieldError::duplicate(&at, name));
        }
    }
}

/// Checks a container's security context.
pub(super) fn validate_container(errors: &mut ErrorList, context: &Value, at: &Path, host_users: bool) {
    if !context.is_object() {
        return;
    }
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, context, key, at);
    }
    one_of(errors, context, "procMount", &["Default", "Unmasked"], at);
    if text(context, "procMount") == "Unmasked" && host_users {
        let rule = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(&at.child("procMount"), "Unmasked", rule));
    }
    profile(errors, &context["seccompProfile"], &at.child("seccompProfile"));
    if context["allowPrivilegeEscalation"] == false {
        let shown = crate::schema::internal(context, "io.k8s.api.core.v1.SecurityContext");
        let mut contradiction = |other: &str| {
            let rule = format!("{shown}: cannot set `allowPrivilegeEscalation` to false and {other}");
            errors.push(FieldError::invalid_without_value(at, rule));
        };
        if flag(context, "privileged") {
            contradiction("`privileged` to true");
        }
        if items(&context["capabilities"], "add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            contradiction("`capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}
