//! The pure part of RBAC: rules, bindings, and whether they allow a request.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_meta::labels::Selector;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attributes, RoleRules, labels_of};
use crate::object::Meta;

/// A policy rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, with `/subresource`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Object names; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are no resource; a trailing `*` matches any rest.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// The two rules of a superuser.
    pub fn everything() -> [Self; 2] {
        let all = || vec!["*".to_owned()];
        [
            Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() },
            Self { verbs: all(), non_resource_urls: all(), ..Self::default() },
        ]
    }

    /// Whether the rule allows it.
    pub fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => asked.path.starts_with(prefix),
                None => url == asked.path,
            });
        }
        has(&self.api_groups, asked.group)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == asked.name))
            && self.resources.iter().any(|resource| match resource.split_once('/') {
                _ if resource == "*" => true,
                Some(("*", sub)) => !asked.subresource.is_empty() && sub == asked.subresource,
                Some((main, sub)) => main == asked.resource && sub == asked.subresource,
                None => asked.subresource.is_empty() && resource == asked.resource,
            })
    }
}

/// Whom a binding means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user name.
    User(String),
    /// A group.
    Group(String),
    /// Namespace and name of a service account.
    ServiceAccount(String, String),
}

/// A decision and its reason. What is neither allowed nor denied is left to others, and in the end not allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Whether nobody else may allow it.
    pub denied: bool,
    /// Why; may be empty.
    pub reason: String,
}

impl Verdict {
    /// Allowed, without a reason.
    pub fn allowed() -> Self {
        Self { allowed: true, ..Self::default() }
    }

    /// Takes in the opinion of the next who is asked; true where it is the last word.
    pub fn follow(&mut self, next: Self) -> bool {
        let last = next.allowed || next.denied;
        if last {
            self.reason.clear();
        }
        if !self.reason.is_empty() && !next.reason.is_empty() {
            self.reason.push('\n');
        }
        self.reason.push_str(&next.reason);
        (self.allowed, self.denied) = (next.allowed, next.denied);
        last
    }
}

struct Grant {
    /// The namespace it holds in; none for all and the cluster scope.
    namespace: Option<String>,
    rules: Arc<[Rule]>,
    reason: String,
}

/// Every binding, by subject.
#[derive(Default)]
pub struct Grants(HashMap<Subject, Vec<Grant>>);

impl Grants {
    /// Indexes roles and bindings.
    pub fn build(
        cluster_roles: &[Value],
        cluster_bindings: &[Value],
        roles: &[Value],
        bindings: &[Value],
    ) -> Self {
        let cluster_rules: RoleRules = cluster_roles
            .iter()
            .map(|role| (role.name().to_owned(), rules_of_cluster_role(role, cluster_roles)))
            .collect();
        let key = |object: &Value, name: &str| format!("{}/{name}", object.namespace());
        let rules: RoleRules =
            roles.iter().map(|role| (key(role, role.name()), rules_in(role).into())).collect();
        let mut grants = Self::default();
        for binding in cluster_bindings.iter().chain(bindings) {
            let (role, namespace) =
                (binding["roleRef"]["name"].as_str().unwrap_or_default(), binding.namespace());
            let found = match binding["roleRef"]["kind"].as_str() {
                Some("Role") => rules.get(&key(binding, role)),
                _ => cluster_rules.get(role),
            };
            let Some(found) = found else { continue };
            for subject in binding["subjects"].as_array().into_iter().flatten() {
                let Some((subject, shown)) = subject_of(subject) else { continue };
                let kind = binding["roleRef"]["kind"].as_str().unwrap_or_default();
                let bound = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
                let of = if namespace.is_empty() {
                    binding.name().to_owned()
                } else {
                    key(binding, binding.name())
                };
                grants.0.entry(subject).or_default().push(Grant {
                    namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                    rules: found.clone(),
                    reason: format!("RBAC: allowed by {bound} \"{of}\" of {kind} \"{role}\" to {shown}"),
                });
            }
        }
        grants
    }

    fn holding<'a>(&'a self, subjects: &'a [Subject], namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let grants = subjects.iter().filter_map(|subject| self.0.get(subject)).flatten();
        grants.filter(move |grant| grant.namespace.as_deref().is_none_or(|of| of == namespace))
    }

    /// Whether one of the subjects may do it.
    pub fn decide(&self, subjects: &[Subject], asked: &Attributes) -> Verdict {
        let grant = self
            .holding(subjects, asked.namespace)
            .find(|grant| grant.rules.iter().any(|rule| rule.allows(asked)));
        Verdict {
            allowed: grant.is_some(),
            denied: false,
            reason: grant.map(|grant| grant.reason.clone()).unwrap_or_default(),
        }
    }

    /// The rules that hold for the subjects in a namespace.
    pub fn rules_of(&self, subjects: &[Subject], namespace: &str) -> Vec<Rule> {
        self.holding(subjects, namespace).flat_map(|grant| grant.rules.iter().cloned()).collect()
    }
}

fn rules_in(role: &Value) -> Vec<Rule> {
    Vec::<Rule>::deserialize(&role["rules"]).unwrap_or_default()
}

/// An aggregated role has the rules of the roles it selects, besides its own.
fn rules_of_cluster_role(role: &Value, all: &[Value]) -> Arc<[Rule]> {
    let mut rules = rules_in(role);
    for selector in role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten() {
        let Ok(selector) = Selector::from_label_selector(selector) else { continue };
        let selected =
            all.iter().filter(|other| other.name() != role.name() && selector.matches_json(labels_of(other)));
        rules.extend(selected.flat_map(rules_in));
    }
    rules.into()
}

fn subject_of(subject: &Value) -> Option<(Subject, String)> {
    let name = subject["name"].as_str()?.to_owned();
    Some(match subject["kind"].as_str()? {
        "User" => (Subject::User(name.clone()), format!("User \"{name}\"")),
        "Group" => (Subject::Group(name.clone()), format!("Group \"{name}\"")),
        "ServiceAccount" => {
            let namespace = subject["namespace"].as_str()?.to_owned();
            let shown = format!("ServiceAccount \"{name}/{namespace}\"");
            (Subject::ServiceAccount(namespace, name), shown)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked<'a>(verb: &'a str, resource: &'a str, namespace: &'a str) -> Attributes<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes { verb, resource, subresource, namespace, name: "n", ..Attributes::default() }
    }

    #[test]
    fn bindings_give_what_their_roles_say_and_where() {
        let reader = json!({"metadata": {"name": "reader", "labels": {"to": "all"}},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}]});
        let sum = json!({"metadata": {"name": "sum"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}});
        let bind = |role: &str, kind: &str, name: &str, namespace: &str| {
            json!({"metadata": {"name": "b", "namespace": namespace}, "roleRef": {"kind": "ClusterRole", "name": role},
                "subjects": [{"kind": kind, "name": name, "namespace": "home"}]})
        };
        let (everywhere, one) =
            (bind("sum", "Group", "ops", ""), bind("reader", "ServiceAccount", "bot", "a"));
        let grants = Grants::build(&[reader, sum], &[everywhere], &[], &[one]);
        let ops = [Subject::Group("ops".into())];
        let bot = [Subject::ServiceAccount("home".into(), "bot".into())];
        for (who, verb, resource, namespace, allowed) in [
            (&ops, "get", "pods", "any", true),
            (&ops, "get", "pods/log", "", true),
            (&ops, "get", "pods/exec", "any", false),
            (&ops, "delete", "pods", "any", false),
            (&bot, "get", "pods", "a", true),
            (&bot, "get", "pods", "b", false),
        ] {
            assert_eq!(
                grants.decide(who, &asked(verb, resource, namespace)).allowed,
                allowed,
                "{verb} {resource} {namespace}"
            );
        }
    }
}
