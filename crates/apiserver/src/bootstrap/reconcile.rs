//! What default roles and bindings become on a cluster that has them already: what is missing of a default is added, what
//! somebody added stays, and what says that it is nobody's default any more is left alone. Pure.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#auto-reconciliation>

use coxswain_meta::json::{Value, json};
use serde::Deserialize;

use crate::authz::{Rule, escalation};

const AUTO: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What is to be done with an object.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// It becomes this.
    Update(Value),
    /// It goes, and the default is made anew: a binding's role cannot be changed.
    Recreate,
}

/// Compares a role or a binding with its default.
pub fn step(known: &Value, default: &Value) -> Step {
    if known["metadata"]["annotations"][AUTO] == "false" {
        return Step::Keep;
    }
    if known["roleRef"] != default["roleRef"] {
        return Step::Recreate;
    }
    let mut new = known.clone();
    for map in ["labels", "annotations"] {
        for (key, value) in default["metadata"][map].as_object().into_iter().flatten() {
            if new["metadata"][map].get(key).is_none() {
                new["metadata"][map][key] = value.clone();
            }
        }
    }
    // The rules of an aggregated role are those of others.
    if default["aggregationRule"].is_null() {
        append(&mut new, "/rules", missing_rules(&known["rules"], &default["rules"]));
    }
    for list in ["/aggregationRule/clusterRoleSelectors", "/subjects"] {
        append(&mut new, list, missing_items(known.pointer(list), default.pointer(list)));
    }
    if new == *known { Step::Keep } else { Step::Update(new) }
}

fn missing_rules(known: &Value, default: &Value) -> Vec<Value> {
    if known == default {
        return Vec::new();
    }
    let rules = |value: &Value| Vec::<Rule>::deserialize(value).unwrap_or_default();
    let missing = escalation::uncovered(&rules(known), &rules(default));
    missing.into_iter().map(|rule| json!(rule)).collect()
}

fn missing_items(known: Option<&Value>, default: Option<&Value>) -> Vec<Value> {
    let items = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let known = items(known);
    items(default).into_iter().filter(|item| !known.contains(item)).collect()
}

fn append(object: &mut Value, list: &str, missing: Vec<Value>) {
    if missing.is_empty() {
        return;
    }
    let place = list.split('/').skip(1).fold(object, |value, field| &mut value[field]);
    match place.as_array_mut() {
        Some(items) => items.extend(missing),
        None => *place = missing.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(rules: Value, annotations: Value) -> Value {
        json!({"metadata": {"name": "r", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": annotations}, "rules": rules})
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_more_stays() {
        let get = |resource: &str, verbs: Value| json!({"verbs": verbs, "apiGroups": [""], "resources": [resource]});
        let default = role(
            json!([get("pods", json!(["get", "list"])), get("nodes", json!(["get"]))]),
            json!({AUTO: "true"}),
        );
        assert_eq!(step(&default, &default), Step::Keep);
        let more = role(
            json!([get("pods", json!(["*"])), get("nodes", json!(["get", "delete"]))]),
            json!({AUTO: "true", "own": "x"}),
        );
        assert_eq!(step(&more, &default), Step::Keep);
        let less = role(json!([get("pods", json!(["get"])), get("events", json!(["get"]))]), Value::Null);
        let Step::Update(new) = step(&less, &default) else { panic!("it is updated") };
        let rules = json!([
            get("pods", json!(["get"])),
            get("events", json!(["get"])),
            get("pods", json!(["list"])),
            get("nodes", json!(["get"]))
        ]);
        assert_eq!((&new["rules"], &new["metadata"]["annotations"]), (&rules, &json!({AUTO: "true"})));
        let own = role(json!([]), json!({AUTO: "false"}));
        assert_eq!(step(&own, &default), Step::Keep);
    }

    #[test]
    fn bindings_get_their_subjects_back_and_other_roles_are_left() {
        let binding = |role: &str, subjects: Value| json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": subjects});
        let (ann, group) = (json!({"kind": "User", "name": "ann"}), json!({"kind": "Group", "name": "g"}));
        let default = binding("a", json!([group]));
        let Step::Update(new) = step(&binding("a", json!([ann])), &default) else { panic!("it is updated") };
        assert_eq!(new["subjects"], json!([ann, group]));
        let Step::Update(new) = step(&binding("a", Value::Null), &default) else { panic!("it is updated") };
        assert_eq!(new["subjects"], json!([group]));
        assert_eq!(step(&binding("b", json!([group])), &default), Step::Recreate);
    }

    #[test]
    fn aggregated_roles_get_their_selectors_back() {
        let selector = |label: &str| json!({"matchLabels": {label: "true"}});
        let aggregated = |selectors: Value, rules: Value| json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": selectors}, "rules": rules});
        let default = aggregated(json!([selector("a")]), json!([]));
        let known = aggregated(json!([selector("b")]), json!([{"verbs": ["get"]}]));
        let Step::Update(new) = step(&known, &default) else { panic!("it is updated") };
        assert_eq!(new["aggregationRule"]["clusterRoleSelectors"], json!([selector("b"), selector("a")]));
        assert_eq!(new["rules"], known["rules"]);
    }
}
