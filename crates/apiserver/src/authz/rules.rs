//! The pure part of RBAC: rules, bindings, and whether they allow a request.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use coxswain_meta::json::Value;
use coxswain_meta::labels::Selector;
use serde::{Deserialize, Serialize};

use super::Attributes;
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

/// A role, as it was read.
pub struct Role {
    key: String,
    rules: Arc<[Rule]>,
    labels: Value,
    /// It has the rules of the roles that one of these matches, besides its own.
    aggregates: Vec<Selector>,
}

impl Role {
    /// Reads a role.
    pub fn read(role: &Value) -> Self {
        let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
        Self {
            key: key(role.namespace(), role.name()),
            rules: Vec::<Rule>::deserialize(&role["rules"]).unwrap_or_default().into(),
            labels: role.meta()["labels"].clone(),
            aggregates: selectors.filter_map(|one| Selector::from_label_selector(one).ok()).collect(),
        }
    }

    fn rules(&self, all: &[Arc<Role>]) -> Arc<[Rule]> {
        if self.aggregates.is_empty() {
            return self.rules.clone();
        }
        let mut rules = self.rules.to_vec();
        for selector in &self.aggregates {
            let others = all.iter().filter(|other| other.key != self.key);
            let selected = others.filter(|other| selector.matches_json(&other.labels));
            rules.extend(selected.flat_map(|other| other.rules.iter().cloned()));
        }
        rules.into()
    }
}

/// A binding, as it was read.
pub struct Binding {
    name: String,
    /// Where it holds; empty for everywhere.
    namespace: String,
    role_kind: String,
    role: String,
    subjects: Vec<Subject>,
}

impl Binding {
    /// Reads a binding.
    pub fn read(binding: &Value) -> Self {
        let role = |part: &str| binding["roleRef"][part].as_str().unwrap_or_default().to_owned();
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        Self {
            name: binding.name().to_owned(),
            namespace: binding.namespace().to_owned(),
            role_kind: role("kind"),
            role: role("name"),
            subjects: subjects.filter_map(Subject::read).collect(),
        }
    }

    /// The key of its role.
    fn role(&self) -> String {
        match self.role_kind.as_str() {
            "Role" => format!("{}/{}", self.namespace, self.role),
            _ => self.role.clone(),
        }
    }

    /// Why it allows something to a subject.
    fn reason(&self, subject: &Subject) -> String {
        let bound = if self.namespace.is_empty() {
            format!("ClusterRoleBinding {:?}", self.name)
        } else {
            format!("RoleBinding {:?}", key(&self.namespace, &self.name))
        };
        format!("RBAC: allowed by {bound} of {} {:?} to {subject}", self.role_kind, self.role)
    }
}

/// What a namespace and a name are called together; no namespace for the cluster scope.
fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

struct Grant {
    binding: Arc<Binding>,
    rules: Arc<[Rule]>,
}

/// Every binding, by subject.
#[derive(Default)]
pub struct Grants(HashMap<Subject, Vec<Grant>>);

impl Grants {
    /// Indexes roles and bindings, of the cluster and of its namespaces each.
    pub fn build(cluster_roles: &[Arc<Role>], roles: &[Arc<Role>], bindings: &[Arc<Binding>]) -> Self {
        let of_cluster = cluster_roles.iter().map(|role| (role.key.as_str(), role.rules(cluster_roles)));
        let of_namespaces = roles.iter().map(|role| (role.key.as_str(), role.rules.clone()));
        let rules: HashMap<&str, Arc<[Rule]>> = of_cluster.chain(of_namespaces).collect();
        let mut grants = Self::default();
        for binding in bindings {
            let Some(rules) = rules.get(binding.role().as_str()) else { continue };
            for subject in &binding.subjects {
                let grant = Grant { binding: binding.clone(), rules: rules.clone() };
                grants.0.entry(subject.clone()).or_default().push(grant);
            }
        }
        grants
    }

    fn holding<'a>(
        &'a self,
        subjects: &'a [Subject],
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Subject, &'a Grant)> {
        let grants = subjects
            .iter()
            .flat_map(|subject| self.0.get(subject).into_iter().flatten().map(move |grant| (subject, grant)));
        grants.filter(move |(_, grant)| {
            grant.binding.namespace.is_empty() || grant.binding.namespace == namespace
        })
    }

    /// Whether one of the subjects may do it.
    pub fn decide(&self, subjects: &[Subject], asked: &Attributes) -> Verdict {
        let mut grants = self.holding(subjects, asked.namespace);
        let found = grants.find(|(_, grant)| grant.rules.iter().any(|rule| rule.allows(asked)));
        Verdict {
            allowed: found.is_some(),
            denied: false,
            reason: found.map(|(subject, grant)| grant.binding.reason(subject)).unwrap_or_default(),
        }
    }

    /// The rules that hold for the subjects in a namespace.
    pub fn rules_of(&self, subjects: &[Subject], namespace: &str) -> Vec<Rule> {
        self.holding(subjects, namespace).flat_map(|(_, grant)| grant.rules.iter().cloned()).collect()
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Self> {
        let name = subject["name"].as_str()?.to_owned();
        Some(match subject["kind"].as_str()? {
            "User" => Self::User(name),
            "Group" => Self::Group(name),
            "ServiceAccount" => Self::ServiceAccount(subject["namespace"].as_str()?.to_owned(), name),
            _ => return None,
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "User {name:?}"),
            Self::Group(name) => write!(f, "Group {name:?}"),
            Self::ServiceAccount(namespace, name) => write!(f, "ServiceAccount \"{name}/{namespace}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

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
        let roles = [reader, sum].map(|role| Role::read(&role).into());
        // There is no role of its own in that namespace, whatever roles of the cluster are called.
        let mut none = bind("reader", "User", "eve", "a");
        none["roleRef"]["kind"] = "Role".into();
        let grants = Grants::build(
            &roles,
            &[],
            &[everywhere, one, none].map(|binding| Binding::read(&binding).into()),
        );
        let ops = [Subject::Group("ops".into())];
        let bot = [Subject::ServiceAccount("home".into(), "bot".into())];
        let eve = [Subject::User("eve".into())];
        for (who, verb, resource, namespace, allowed) in [
            (&eve, "get", "pods", "a", false),
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
        assert_eq!(
            grants.decide(&bot, &asked("get", "pods", "a")).reason,
            r#"RBAC: allowed by RoleBinding "a/b" of ClusterRole "reader" to ServiceAccount "bot/home""#
        );
    }
}
