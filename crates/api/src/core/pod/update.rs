//! What may change in a pod, and the quality of service its resources give it.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use super::{names_of, resource_names};
use crate::schema;
use crate::value::{has, int, items, items_mut, remove, set, text};

const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
     `spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks a change of the main resource.
pub(super) fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("spec");
    let (new, old) = (&new["spec"], &old["spec"]);
    if new == old {
        return ErrorList::new();
    }
    let mut errors = super::validate_spec(new);
    for list in ["containers", "initContainers"] {
        if items(new, list).len() != items(old, list).len() {
            let rule = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&path.child(list), rule));
            return errors;
        }
    }
    deadline(&mut errors, new, old, &path.child("activeDeadlineSeconds"));
    tolerations(&mut errors, new, old, &path.child("tolerations"));
    let before = names_of(old, "schedulingGates");
    for (i, gate) in names_of(new, "schedulingGates").iter().enumerate() {
        if !before.contains(gate) {
            let rule = format!("only deletion is allowed, but found new scheduling gate '{gate}'");
            errors.push(FieldError::forbidden(&path.child("schedulingGates").index(i).child("name"), rule));
        }
    }
    let masked = mask(new, old);
    if masked != *old {
        let rule = format!(
            "pod updates may not change fields other than {CHANGEABLE}\n{}",
            schema::changes(old, &masked, "io.k8s.api.core.v1.PodSpec", "")
        );
        errors.push(FieldError::forbidden(&path, rule));
    }
    errors
}

/// The new spec with the changeable fields as they were.
fn mask(new: &Value, old: &Value) -> Value {
    let mut masked = new.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in items_mut(&mut masked, list).iter_mut().zip(items(old, list)) {
            set(container, "image", before["image"].clone());
        }
    }
    let gated = !items(old, "schedulingGates").is_empty();
    let mut keys = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    if gated {
        // A gated pod is not placed yet: its placement may still be narrowed.
        keys.extend(["nodeSelector", "affinity"]);
    }
    if int(old, "terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && int(new, "terminationGracePeriodSeconds") == Some(1)
    {
        keys.push("terminationGracePeriodSeconds");
    }
    for key in keys {
        match old.get(key) {
            Some(value) => set(&mut masked, key, value.clone()),
            None => remove(&mut masked, key),
        }
    }
    masked
}

fn deadline(errors: &mut ErrorList, new: &Value, old: &Value, at: &Path) {
    let key = "activeDeadlineSeconds";
    match (int(new, key), int(old, key)) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            errors.push(FieldError::invalid(at, now, names::range_error(0, i64::from(i32::MAX))));
        }
        (Some(now), Some(before)) if before < now => {
            errors.push(FieldError::invalid(at, now, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            let rule = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(at, Value::Null, rule));
        }
        _ => {}
    }
}

fn tolerations(errors: &mut ErrorList, new: &Value, old: &Value, at: &Path) {
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        remove(&mut bare, "tolerationSeconds");
        bare
    };
    let now: Vec<Value> = items(new, "tolerations").iter().map(bare).collect();
    if items(old, "tolerations").iter().any(|before| !now.contains(&bare(before))) {
        let rule = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(at, rule));
    }
}

/// Checks a status change: a terminated container of a pod that does not restart stays terminated.
pub(super) fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status");
    let nominated = text(&new["status"], "nominatedNodeName");
    if !nominated.is_empty() {
        errors.invalid_each(&path.child("nominatedNodeName"), nominated, names::dns1123_subdomain(nominated));
    }
    let policy = text(&new["spec"], "restartPolicy");
    if policy == "Always" {
        return errors;
    }
    for before in items(&old["status"], "containerStatuses") {
        let ended = &before["state"]["terminated"];
        if !ended.is_object() || (policy == "OnFailure" && int(ended, "exitCode") != Some(0)) {
            continue;
        }
        for (i, status) in items(&new["status"], "containerStatuses").iter().enumerate() {
            if text(status, "name") == text(before, "name") && !has(&status["state"], "terminated") {
                let at = path.child("containerStatuses").index(i).child("state");
                errors.push(FieldError::forbidden(&at, "may not be transitioned to non-terminated state"));
            }
        }
    }
    errors
}

/// Checks a write to the ephemeralcontainers subresource: containers are only added. `new` is the whole pod.
pub fn validate_ephemeral_containers(new: &Value, old: &Value) -> ErrorList {
    let mut errors = super::validate(new);
    let at = Path::new("spec").child("ephemeralContainers");
    let list = "ephemeralContainers";
    for before in items(&old["spec"], list) {
        let name = text(before, "name");
        match items(&new["spec"], list).iter().find(|c| text(c, "name") == name) {
            None => {
                let rule = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(&at, rule));
            }
            Some(now) if now != before => {
                let rule = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(&at, rule));
            }
            Some(_) => {}
        }
    }
    errors
}

/// Quality of service of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has equal requests and limits for CPU and memory.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

/// The quality of service that a (defaulted) pod's resources give it.
pub fn qos_class(pod: &Value) -> QosClass {
    let spec = &pod["spec"];
    let mut guaranteed = true;
    let mut any = false;
    let pod_level: &[Value] = if has(spec, "resources") { std::slice::from_ref(spec) } else { &[] };
    let containers = items(spec, "initContainers").iter().chain(items(spec, "containers"));
    let judged: Vec<&Value> =
        if pod_level.is_empty() { containers.collect() } else { pod_level.iter().collect() };
    for container in judged {
        for name in ["cpu", "memory"] {
            let amount = |list| {
                let found = resource_names(container, list).find(|(n, _)| *n == name);
                found.and_then(|(_, v)| Quantity::from_json(v).ok()).filter(|q| !q.is_zero())
            };
            let (limit, request) = (amount("limits"), amount("requests"));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (guaranteed, any) {
        (true, true) => QosClass::Guaranteed,
        (_, true) => QosClass::Burstable,
        (_, false) => QosClass::BestEffort,
    }
}
