//! Roles and bindings are written by those who hold what they give, or who may `escalate` or `bind`.

use coxswain_meta::Status;
use coxswain_meta::json::Value;
use serde::Deserialize;

use super::Admission;
use crate::authz::{Attributes, Rule, escalation};
use crate::object::Meta;

const GROUP: &str = "rbac.authorization.k8s.io";

/// A Role or ClusterRole.
pub fn role(admission: &Admission, role: &Value, old: Option<&Value>) -> Result<(), Status> {
    let same =
        |old: &Value| old["rules"] == role["rules"] && old["aggregationRule"] == role["aggregationRule"];
    let asked = Attributes {
        verb: "escalate",
        group: GROUP,
        resource: admission.kind.plural(),
        name: role.name(),
        namespace: role.namespace(),
        ..Attributes::default()
    };
    if old.is_some_and(same) || admission.server.decide(admission.user, &asked).allowed {
        return Ok(());
    }
    let mut given = rules_of(role);
    if !role["aggregationRule"].is_null() {
        // It may come to hold anything.
        given.extend(Rule::everything());
    }
    holds(admission, role, &given)
}

/// A RoleBinding or ClusterRoleBinding.
pub fn binding(admission: &Admission, binding: &Value, old: Option<&Value>) -> Result<(), Status> {
    let same = |old: &Value| old["roleRef"] == binding["roleRef"] && old["subjects"] == binding["subjects"];
    let (kind, name) = (&binding["roleRef"]["kind"], binding["roleRef"]["name"].as_str().unwrap_or_default());
    let (resource, home) = if kind == "Role" { ("roles", binding.namespace()) } else { ("clusterroles", "") };
    let asked = Attributes {
        verb: "bind",
        group: GROUP,
        resource,
        name,
        namespace: binding.namespace(),
        ..Attributes::default()
    };
    if old.is_some_and(same) || admission.server.decide(admission.user, &asked).allowed {
        return Ok(());
    }
    let Some(role) = admission.server.read(GROUP, resource, home, name) else {
        return Err(Status::not_found(GROUP, resource, name));
    };
    holds(admission, binding, &rules_of(&role))
}

fn rules_of(role: &Value) -> Vec<Rule> {
    Vec::<Rule>::deserialize(&role["rules"]).unwrap_or_default()
}

fn holds(admission: &Admission, object: &Value, given: &[Rule]) -> Result<(), Status> {
    let user = admission.user;
    let held = admission.server.rules_of(user, object.namespace());
    let Some(missing) = escalation::missing(&held, given) else { return Ok(()) };
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{missing}",
        user.name,
        escalation::quoted(&user.groups)
    );
    Err(admission.forbidden(object, &why))
}
