//! Roles and bindings.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, kind};
use crate::objectmeta;
use crate::table::{AGE, CREATED_AT, NAME, age, column, name, wide};
use crate::value::{child, filled, has, items, items_mut, set_default, text};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(crate) const ROLE: Kind = Kind {
    columns: ROLE_COLUMNS,
    hooks: Hooks {
        name: objectmeta::path_segment,
        validate: |v| rules(v, true),
        row: |v, _| vec![name(v), text(&v["metadata"], "creationTimestamp").into()],
        ..Hooks::PLAIN
    },
    create_on_update: true,
    ..kind!("rbac.authorization.k8s.io", "v1", "Role", "roles", "role")
};

pub(crate) const CLUSTER_ROLE: Kind = Kind {
    namespaced: false,
    columns: ROLE_COLUMNS,
    hooks: Hooks {
        validate: |v| {
            let mut errors = rules(v, false);
            errors.extend(aggregation(v));
            errors
        },
        ..ROLE.hooks
    },
    create_on_update: true,
    ..kind!("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "clusterrole")
};
const ROLE_COLUMNS: &[Column] = &[NAME, CREATED_AT];

pub(crate) const ROLE_BINDING: Kind = Kind {
    columns: BINDING_COLUMNS,
    hooks: Hooks {
        name: objectmeta::path_segment,
        default: default_binding,
        validate: |v| binding(v, true),
        validate_update: fixed_role,
        row: binding_row,
        ..Hooks::PLAIN
    },
    create_on_update: true,
    ..kind!("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "rolebinding")
};

pub(crate) const CLUSTER_ROLE_BINDING: Kind = Kind {
    namespaced: false,
    columns: BINDING_COLUMNS,
    hooks: Hooks { validate: |v| binding(v, false), ..ROLE_BINDING.hooks },
    create_on_update: true,
    ..kind!(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding"
    )
};
const BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("Role", "The role that is given."),
    AGE,
    wide("Users", "Users who get it."),
    wide("Groups", "Groups that get it."),
    wide("ServiceAccounts", "Service accounts that get it."),
];

fn rules(role: &Value, namespaced: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, rule) in items(role, "rules").iter().enumerate() {
        let at = Path::new("rules").index(i);
        if !filled(rule, "verbs") {
            errors.push(FieldError::required(&at.child("verbs"), "verbs must contain at least one value"));
        }
        if filled(rule, "nonResourceURLs") {
            let urls = rule["nonResourceURLs"].clone();
            let at = at.child("nonResourceURLs");
            if namespaced {
                let text = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&at, urls.clone(), text));
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|key| filled(rule, key)) {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&at, urls, text));
            }
            continue;
        }
        for (key, text) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if !filled(rule, key) {
                errors.push(FieldError::required(&at.child(key), text));
            }
        }
    }
    errors
}

fn aggregation(role: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if !has(role, "aggregationRule") {
        return errors;
    }
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let selectors = items(&role["aggregationRule"], "clusterRoleSelectors");
    if selectors.is_empty() {
        let rule = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(&path, rule));
    }
    for (i, selector) in selectors.iter().enumerate() {
        let before = errors.len();
        crate::objectmeta::label_selector(&mut errors, selector, &path.index(i));
        if errors.len() > before {
            errors.push(FieldError::invalid(&path.index(i), Value::Null, "invalid label selector."));
        }
    }
    errors
}

fn default_binding(binding: &mut Value) {
    if let Some(role) = child(binding, "roleRef") {
        set_default(role, "apiGroup", GROUP);
    }
    for subject in items_mut(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set_default(subject, "apiGroup", GROUP);
        }
    }
}

fn binding(binding: &Value, namespaced: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let (role, at) = (&binding["roleRef"], Path::new("roleRef"));
    if text(role, "apiGroup") != GROUP {
        errors.push(FieldError::not_supported(&at.child("apiGroup"), text(role, "apiGroup"), &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, "kind")) {
        errors.push(FieldError::not_supported(&at.child("kind"), text(role, "kind"), kinds));
    }
    match text(role, "name") {
        "" => errors.push(FieldError::required(&at.child("name"), "")),
        name => errors.invalid_each(&at.child("name"), name, names::path_segment_name(name)),
    }
    for (i, subject) in items(binding, "subjects").iter().enumerate() {
        validate_subject(&mut errors, subject, namespaced, &Path::new("subjects").index(i));
    }
    errors
}

fn validate_subject(errors: &mut ErrorList, subject: &Value, namespaced: bool, at: &Path) {
    let (kind, name, group) = (text(subject, "kind"), text(subject, "name"), text(subject, "apiGroup"));
    if name.is_empty() {
        errors.push(FieldError::required(&at.child("name"), ""));
    }
    let known = match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.invalid_each(&at.child("name"), name, names::dns1123_subdomain(name));
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(&at.child("apiGroup"), group, &[""]));
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.push(FieldError::required(&at.child("namespace"), ""));
            }
            return;
        }
        "User" | "Group" => GROUP,
        other => {
            errors.push(FieldError::not_supported(
                &at.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            ));
            return;
        }
    };
    if group != known {
        errors.push(FieldError::not_supported(&at.child("apiGroup"), group, &[known]));
    }
}

fn fixed_role(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if new["roleRef"] != old["roleRef"] {
        let shown = crate::schema::internal(&new["roleRef"], "io.k8s.api.rbac.v1.RoleRef");
        let rule = format!("{shown}: cannot change roleRef");
        errors.push(FieldError::invalid_without_value(&Path::new("roleRef"), rule));
    }
    errors
}

fn binding_row(binding: &Value, now: i64) -> Vec<Value> {
    let role = &binding["roleRef"];
    let of = |kind: &str| -> Value {
        let subjects = items(binding, "subjects").iter().filter(|s| text(s, "kind") == kind);
        let shown: Vec<String> = subjects
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", text(s, "namespace"), text(s, "name")),
                _ => text(s, "name").to_owned(),
            })
            .collect();
        shown.join(", ").into()
    };
    vec![
        name(binding),
        format!("{}/{}", text(role, "kind"), text(role, "name")).into(),
        age(binding, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
