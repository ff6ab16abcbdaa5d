//! LimitRange and ResourceQuota.

use std::collections::BTreeSet;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Quantity, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::texts;
use crate::table::{self, AGE, CREATED_AT, NAME, age, column, name};
use crate::value::{child, entries, filled, has, items, items_mut, set_default, text};

const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const MEASURED: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(crate) const LIMIT_RANGE: Kind = Kind {
    short_names: &["limits"],
    hooks: Hooks {
        default: default_limit_range,
        prepare_create: |v| {
            // Ranges were made without names once.
            let uid = v["metadata"]["uid"].clone();
            child(v, "metadata").into_iter().for_each(|metadata| set_default(metadata, "name", uid.clone()));
        },
        validate: validate_limit_range,
        row: |v, _| vec![name(v), text(&v["metadata"], "creationTimestamp").into()],
        ..Hooks::PLAIN
    },
    columns: &[NAME, CREATED_AT],
    create_on_update: true,
    ..kind!("", "v1", "LimitRange", "limitranges", "limitrange")
};

pub(crate) const RESOURCE_QUOTA: Kind = Kind {
    short_names: &["quota"],
    subresources: &[Subresource::status("", "v1", "ResourceQuota")],
    status: true,
    columns: QUOTA_COLUMNS,
    hooks: Hooks {
        validate: validate_quota,
        validate_update: validate_quota_update,
        row: quota_row,
        ..Hooks::STATUS
    },
    ..kind!("", "v1", "ResourceQuota", "resourcequotas", "resourcequota")
};
const QUOTA_COLUMNS: &[Column] = &[
    NAME,
    column("Request", "Used and hard amounts of requests."),
    column("Limit", "Used and hard amounts of limits."),
    AGE,
];

/// Container limits: the default limit is the maximum; the default request the default limit, else the minimum.
fn default_limit_range(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for limit in items_mut(spec, "limits").iter_mut().filter(|l| l["type"] == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let Some(source) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
            if let Some(Value::Object(target)) = child(limit, to) {
                source.into_iter().for_each(|(k, v)| {
                    target.entry(k).or_insert(v);
                });
            }
        }
    }
}

fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Checks the name of a resource of any kind.
fn resource_name(errors: &mut ErrorList, name: &str, at: &Path) {
    let broken = names::qualified_name(name);
    if !broken.is_empty() {
        errors.invalid_each(at, name, broken);
        return;
    }
    let standard = COUNTED.contains(&name)
        || MEASURED.contains(&name)
        || name == "storage"
        || is_hugepages(name)
        || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !standard {
        errors.push(FieldError::invalid(at, name, "must be a standard resource type or fully qualified"));
    }
}

pub(crate) fn container_resource_name(errors: &mut ErrorList, name: &str, at: &Path) {
    resource_name(errors, name, at);
    let extended = !name.contains("kubernetes.io/") && !name.starts_with("requests.");
    if !name.contains('/') && !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !is_hugepages(name) {
        errors.push(FieldError::invalid(at, name, "must be a standard resource for containers"));
    } else if name.contains('/') && !name.contains("kubernetes.io/") && !extended {
        errors.push(FieldError::invalid(at, name, "doesn't follow extended resource name standard"));
    }
}

fn validate_limit_range(range: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let limits = items(&range["spec"], "limits");
    for (i, limit) in limits.iter().enumerate() {
        let at = Path::new("spec").child("limits").index(i);
        let kind = text(limit, "type");
        let broken = names::qualified_name(kind);
        if broken.is_empty()
            && !kind.contains('/')
            && !["Pod", "Container", "PersistentVolumeClaim"].contains(&kind)
        {
            let rule = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid(&at.child("type"), kind, rule));
        }
        errors.invalid_each(&at.child("type"), kind, broken);
        if limits[..i].iter().any(|other| text(other, "type") == kind) {
            errors.push(FieldError::duplicate(&at.child("type"), kind));
        }
        validate_limit(&mut errors, limit, kind, &at);
    }
    errors
}

fn validate_limit(errors: &mut ErrorList, limit: &Value, kind: &str, at: &Path) {
    let mut names = BTreeSet::new();
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if list == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
            let bounded = ["min", "max"].iter().any(|list| has(&limit[*list], "storage"));
            if !bounded {
                let rule = "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(&at.child("limits"), rule));
            }
        }
        if kind == "Pod" && list.starts_with("default") {
            if filled(limit, list) {
                let rule = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(&at.child(list), rule));
            }
            continue;
        }
        for (name, _) in entries(limit, list) {
            let at = at.child(list).key(name);
            match kind {
                "Pod" | "Container" => container_resource_name(errors, name, &at),
                _ => resource_name(errors, name, &at),
            }
            names.insert(name);
        }
    }
    names.into_iter().for_each(|name| compare_limits(errors, limit, name, at));
}

/// The amounts of one resource must lie in their order.
fn compare_limits(errors: &mut ErrorList, limit: &Value, name: &str, at: &Path) {
    let get = |list: &str| limit[list].get(name).and_then(|v| Quantity::from_json(v).ok());
    let order = [
        ("min", "min", "max", "min value {a} is greater than max value {b}"),
        (
            "defaultRequest",
            "min",
            "defaultRequest",
            "min value {a} is greater than default request value {b}",
        ),
        (
            "defaultRequest",
            "defaultRequest",
            "max",
            "default request value {a} is greater than max value {b}",
        ),
        (
            "defaultRequest",
            "defaultRequest",
            "default",
            "default request value {a} is greater than default limit value {b}",
        ),
        ("default", "min", "default", "min value {a} is greater than default value {b}"),
        ("default", "default", "max", "default value {a} is greater than max value {b}"),
    ];
    for (reported, low, high, rule) in order {
        let (Some(a), Some(b)) = (get(low), get(high)) else { continue };
        if a > b {
            let shown = match (reported, low) {
                ("default", "min") => a,
                ("default", _) => b,
                _ => get(reported).unwrap_or(a),
            };
            let rule = rule.replace("{a}", &a.to_string()).replace("{b}", &b.to_string());
            errors.push(FieldError::invalid(&at.child(reported).key(name), shown.to_string(), rule));
        }
    }
    let Some(ratio) = get("maxLimitRequestRatio") else { return };
    let at = at.child("maxLimitRequestRatio").key(name);
    if ratio < Quantity::from_units(1) {
        let rule = format!("ratio {ratio} is less than 1");
        errors.push(FieldError::invalid(&at, ratio.to_string(), rule));
    }
    if let (Some(min), Some(max)) = (get("min"), get("max")) {
        let most = max.as_f64() / min.as_f64();
        if ratio.as_f64() > most {
            let rule = format!("ratio {ratio} is greater than max/min = {most:.6}");
            errors.push(FieldError::invalid(&at, ratio.to_string(), rule));
        }
    }
}

fn is_quota_name(name: &str) -> bool {
    COUNTED.contains(&name)
        || MEASURED.contains(&name)
        || is_hugepages(name)
        || name.starts_with("requests.hugepages-")
}

fn validate_quota(quota: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&quota["spec"], Path::new("spec"));
    for (name, amount) in entries(spec, "hard") {
        let at = path.child("hard").key(name);
        resource_name(&mut errors, name, &at);
        if !name.contains('/') && !is_quota_name(name) {
            errors.push(FieldError::invalid(&at, name, "must be a standard resource for quota"));
        }
        let Ok(amount) = Quantity::from_json(amount) else { continue };
        if amount.is_negative() {
            let rule = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&at, amount.to_string(), rule));
        }
        let whole = COUNTED.contains(&name) || (name.contains('/') && !name.contains("kubernetes.io/"));
        if whole && !amount.is_integer() {
            errors.push(FieldError::invalid(&at, amount.to_string(), "must be an integer"));
        }
    }
    scopes(&mut errors, spec, &path);
    if has(spec, "scopeSelector") {
        selected_scopes(&mut errors, spec, &path.child("scopeSelector.matchExpressions"));
    }
    errors
}

fn scope_fits(scope: &str, name: &str) -> bool {
    let pods = name == "pods";
    let compute =
        ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"].contains(&name);
    match scope {
        "BestEffort" => pods,
        "VolumeAttributesClass" => ["persistentvolumeclaims", "requests.storage"].contains(&name),
        _ if SCOPES.contains(&scope) => pods || compute,
        _ => true,
    }
}

fn scopes(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (list, at) = (texts(spec, "scopes"), path.child("scopes"));
    let mut invalid = |rule: &str| errors.push(FieldError::invalid(&at, spec["scopes"].clone(), rule));
    for scope in &list {
        if !SCOPES.contains(scope) {
            invalid("unsupported scope");
        }
        for (name, _) in entries(spec, "hard") {
            if is_quota_name(name) && !scope_fits(scope, name) {
                invalid("unsupported scope applied to resource");
            }
        }
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| list.contains(scope)) {
            invalid("conflicting scopes");
        }
    }
}

fn selected_scopes(errors: &mut ErrorList, spec: &Value, at: &Path) {
    let expressions = items(&spec["scopeSelector"], "matchExpressions");
    for expression in expressions {
        let (scope, operator) = (text(expression, "scopeName"), text(expression, "operator"));
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid(&at.child("scopeName"), scope, "unsupported scope"));
        }
        for (name, _) in entries(spec, "hard") {
            if is_quota_name(name) && !scope_fits(scope, name) {
                let shown = spec["scopeSelector"].clone();
                errors.push(FieldError::invalid(at, shown, "unsupported scope applied to resource"));
            }
        }
        if !["PriorityClass", "VolumeAttributesClass", ""].contains(&scope)
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            let rule = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(&at.child("operator"), operator, rule));
        }
        let values = at.child("values");
        match operator {
            "In" | "NotIn" if !filled(expression, "values") => {
                let rule = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(&values, rule));
            }
            "Exists" | "DoesNotExist" if filled(expression, "values") => {
                let rule = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(&values, expression["values"].clone(), rule));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let rule = "not a valid selector operator";
                errors.push(FieldError::invalid(&at.child("operator"), other, rule));
            }
        }
    }
    let named: Vec<&str> = expressions.iter().map(|e| text(e, "scopeName")).collect();
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| named.contains(scope)) {
            let shown = spec["scopeSelector"].clone();
            errors.push(FieldError::invalid(&Path::new("spec").child("scopes"), shown, "conflicting scopes"));
        }
    }
}

fn validate_quota_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let set = |quota: &Value| -> BTreeSet<String> {
        texts(&quota["spec"], "scopes").into_iter().map(str::to_owned).collect()
    };
    if set(new) != set(old) {
        let shown = new["spec"]["scopes"].clone();
        let at = Path::new("spec").child("scopes");
        errors.push(FieldError::invalid(&at, shown, crate::objectmeta::IMMUTABLE));
    }
    errors
}

fn quota_row(quota: &Value, now: i64) -> Vec<Value> {
    let used = &quota["status"]["used"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in entries(&quota["status"], "hard") {
        let amount = |v: &Value| table::int_or_string(v, "0");
        let used = used.get(resource).map_or_else(|| "0".to_owned(), amount);
        let cell = format!("{resource}: {used}/{}", amount(hard));
        if resource.starts_with("limits.") { limits.push(cell) } else { requests.push(cell) }
    }
    vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
}
