//! Reads the table of default roles into objects.

use coxswain_meta::json::{Value, json};
use serde::Deserialize;

use crate::authz::Rule;

const TABLE: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

fn split(list: &str) -> Vec<&str> {
    list.split(',').map(|item| if item == "core" { "" } else { item }).collect()
}

fn metadata(name: &str, label: Option<&str>) -> Value {
    let mut labels = json!({ "kubernetes.io/bootstrapping": "rbac-defaults" });
    if let Some((key, value)) = label.and_then(|label| label.split_once('=')) {
        labels[key] = value.into();
    }
    json!({ "name": name, "labels": labels, "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" } })
}

fn rule(line: &str) -> Option<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (verbs, rest) = words.split_first()?;
    Some(match rest {
        ["/*", ..] => json!({ "verbs": split(verbs), "nonResourceURLs": ["*"] }),
        [path, ..] if path.starts_with('/') => json!({ "verbs": split(verbs), "nonResourceURLs": rest }),
        [groups, resources] => {
            json!({ "verbs": split(verbs), "apiGroups": split(groups), "resources": split(resources) })
        }
        [groups, resources, names] => {
            json!({ "verbs": split(verbs), "apiGroups": split(groups), "resources": split(resources), "resourceNames": split(names) })
        }
        _ => return None,
    })
}

fn selector(label: &str) -> Value {
    let (key, value) = label.split_once('=').unwrap_or((label, ""));
    json!({ "clusterRoleSelectors": [{ "matchLabels": { key: value } }] })
}

/// The default roles and their bindings: plural and object.
pub fn objects() -> Vec<(&'static str, Value)> {
    let mut objects: Vec<(&str, Value)> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (line.starts_with(' '), words.as_slice()) {
            (true, _) => {
                let last = objects.last_mut().and_then(|(_, role)| role["rules"].as_array_mut());
                if let (Some(rules), Some(rule)) = (last, rule(line)) {
                    rules.push(rule);
                }
            }
            (false, ["role", name, label @ ..]) => {
                let (namespace, name) = home(name);
                let plural = if namespace.is_some() { "roles" } else { "clusterroles" };
                let mut metadata = metadata(name, label.first().copied());
                if let Some(namespace) = namespace {
                    metadata["namespace"] = namespace.into();
                }
                objects.push((plural, json!({ "metadata": metadata, "rules": [] })));
            }
            (false, ["aggregate", name, own, selected]) => {
                let own = Some(*own).filter(|own| *own != "-");
                objects.push((
                    "clusterroles",
                    json!({ "metadata": metadata(name, own), "aggregationRule": selector(selected), "rules": null }),
                ));
            }
            // A binding that upstream leaves to the administrator.
            (false, ["bind", role]) => objects.push(("clusterrolebindings", unbound(role))),
            (false, ["bind", role, kind, subject, name @ ..]) => {
                let plural = if home(role).0.is_some() { "rolebindings" } else { "clusterrolebindings" };
                let binding = binding(role, kind, subject, name.get(1).copied());
                let same = |(other, object): &&mut (&str, Value)| {
                    let part = |field: &str| object["metadata"][field] == binding["metadata"][field];
                    *other == plural && part("name") && part("namespace")
                };
                let known =
                    objects.iter_mut().find(same).and_then(|(_, object)| object["subjects"].as_array_mut());
                match (known, &binding["subjects"][0]) {
                    (Some(subjects), subject) => subjects.push(subject.clone()),
                    (None, _) => objects.push((plural, binding)),
                }
            }
            _ => {}
        }
    }
    objects
}

/// The rules of a default cluster role.
pub fn rules_of_role(name: &str) -> Vec<Rule> {
    let named =
        |(plural, object): &(&str, Value)| *plural == "clusterroles" && object["metadata"]["name"] == name;
    let role = objects().into_iter().find(named).map(|(_, role)| role).unwrap_or_default();
    Vec::deserialize(&role["rules"]).unwrap_or_default()
}

/// `namespace/name`, or a name of the cluster scope.
fn home(name: &str) -> (Option<&str>, &str) {
    name.split_once('/').map_or((None, name), |(namespace, name)| (Some(namespace), name))
}

fn unbound(role: &str) -> Value {
    json!({ "metadata": metadata(role, None), "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": role } })
}

/// A binding of a role to a subject, named after the role where it has no name of its own.
fn binding(role: &str, kind: &str, subject: &str, name: Option<&str>) -> Value {
    let (namespace, role) = home(role);
    let subject = match subject.split_once('/') {
        Some((namespace, name)) => json!({ "kind": kind, "namespace": namespace, "name": name }),
        None => json!({ "kind": kind, "apiGroup": GROUP, "name": subject }),
    };
    let mut metadata = metadata(name.unwrap_or(role), None);
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
    json!({ "metadata": metadata, "subjects": [subject],
        "roleRef": { "apiGroup": GROUP, "kind": kind, "name": role } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let rules = TABLE.lines().filter(|line| line.starts_with(' ')).count();
        let read: usize =
            objects().iter().filter_map(|(_, object)| object["rules"].as_array().map(Vec::len)).sum();
        assert_eq!(rules, read);
        let heads = TABLE
            .lines()
            .filter(|line| ["role ", "bind ", "aggregate "].iter().any(|head| line.starts_with(head)))
            .count();
        let more = |(_, object): &(&str, Value)| {
            object["subjects"].as_array().map_or(0, |list| list.len().max(1) - 1)
        };
        assert_eq!(heads, objects().iter().map(|object| 1 + more(object)).sum::<usize>());
    }
}
