//! Which FlowSchema a request belongs to: pure functions over the objects' documents.

use std::hash::{DefaultHasher, Hash, Hasher};

use coxswain_meta::json::Value;
use serde::Deserialize;

use crate::authn::UserInfo;
use crate::object::Meta;
use crate::request::RequestInfo;

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Distinguisher {
    ByUser,
    ByNamespace,
}

/// The rules of a FlowSchema.
#[derive(Debug)]
pub struct Rules {
    /// The schema's name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The name of its level.
    pub level: String,
    /// The lowest counts.
    pub precedence: i64,
    distinguisher: Option<Distinguisher>,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    user: Option<Named>,
    group: Option<Named>,
    service_account: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rules {
    /// The rules of a FlowSchema.
    pub fn of(schema: &Value) -> Self {
        let spec = &schema["spec"];
        Self {
            name: schema.name().into(),
            uid: schema.meta_str("uid").to_owned(),
            level: spec["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default().to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: Distinguisher::deserialize(&spec["distinguisherMethod"]["type"]).ok(),
            rules: Vec::deserialize(&spec["rules"]).unwrap_or_default(),
        }
    }

    /// Whether a request is one of this schema.
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|subject| subject.is(user))
                && match info.is_resource {
                    true => rule.resource_rules.iter().any(|rule| rule.matches(info)),
                    false => rule.non_resource_rules.iter().any(|rule| rule.matches(info)),
                }
        })
    }

    /// What tells the flow of a request from others of the schema.
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher {
            Some(Distinguisher::ByUser) => &user.name,
            Some(Distinguisher::ByNamespace) => &info.namespace,
            None => "",
        }
    }

    /// The hash that the queues of a flow follow from.
    pub fn hash(&self, flow: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.name, flow).hash(&mut hasher);
        hasher.finish()
    }
}

impl Subject {
    fn is(&self, user: &UserInfo) -> bool {
        if let Some(named) = &self.user {
            return named.name == "*" || named.name == user.name;
        }
        if let Some(named) = &self.group {
            return named.name == "*" || user.groups.contains(&named.name);
        }
        let Some(named) = &self.service_account else { return false };
        let account = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        account.is_some_and(|(namespace, name)| {
            namespace == named.namespace && (named.name == "*" || named.name == name)
        })
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = self.resources.iter().any(|wanted| match wanted.split_once('/') {
            _ if wanted == "*" => true,
            Some((main, sub)) => main == info.resource && sub == info.subresource,
            None => info.subresource.is_empty() && *wanted == info.resource,
        });
        let scope = match info.namespace.is_empty() {
            true => self.cluster_scope,
            false => has(&self.namespaces, &info.namespace),
        };
        resource && scope && has(&self.verbs, info.verb) && has(&self.api_groups, &info.group)
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let below = |url: &String| {
            let prefix = url.trim_end_matches('*').trim_end_matches('/');
            info.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let path = self.urls.iter().any(|url| url == "*" || *url == info.path || below(url));
        path && has(&self.verbs, info.verb)
    }
}
