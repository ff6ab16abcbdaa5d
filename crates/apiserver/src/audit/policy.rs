//! The audit policy: which requests are written down, and how much of them.
//! <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/>

use coxswain_api::schema;
use coxswain_meta::json::{Value, from_value};
use serde::Deserialize;

use crate::authn::UserInfo;
use crate::request::RequestInfo;

/// How much of a request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what and when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// The request has come.
    RequestReceived,
    /// The head of an answer that takes long has been sent.
    ResponseStarted,
    /// The answer has been sent.
    ResponseComplete,
    /// The handler failed.
    Panic,
}

impl Stage {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A policy: the first rule that matches counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What a policy says about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How much.
    pub level: Level,
    /// Stages without an event.
    pub omitted: Vec<Stage>,
    /// Whether managed fields are left out of what is written.
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let (document, repeated) = schema::parse_yaml_strict(text)?;
        if let Some(field) = repeated.first() {
            return Err(format!("{field} is given twice"));
        }
        if document["apiVersion"] != "audit.k8s.io/v1" || document["kind"] != "Policy" {
            return Err("the file holds no audit.k8s.io/v1 Policy".to_owned());
        }
        let policy: Self = from_value(document).map_err(|error| error.to_string())?;
        if policy.rules.is_empty() {
            return Err("the policy has no rules".to_owned());
        }
        for rule in &policy.rules {
            let about_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if about_resources && !rule.non_resource_urls.is_empty() {
                return Err("a rule is about resources or about nonResourceURLs, not both".to_owned());
            }
            let is_bad =
                |url: &&String| url.trim_end_matches('*').contains('*') || !url.starts_with(['/', '*']);
            if let Some(url) = rule.non_resource_urls.iter().find(is_bad) {
                return Err(format!("{url:?}: nonResourceURLs begin with / and may end with *"));
            }
        }
        Ok(policy)
    }

    /// What the policy says about a request.
    pub fn decide(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        match self.rules.iter().find(|rule| rule.matches(user, info)) {
            Some(rule) => Decision {
                level: rule.level,
                omitted: rule.omit_stages.iter().chain(&self.omit_stages).copied().collect(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
            None => Decision::default(),
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

impl Rule {
    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let any = |list: &[String], wanted: &str| list.is_empty() || has(list, wanted);
        let grouped =
            self.user_groups.is_empty() || user.groups.iter().any(|group| has(&self.user_groups, group));
        if !any(&self.users, &user.name) || !grouped || !any(&self.verbs, info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && any(&self.namespaces, &info.namespace)
                && (self.resources.is_empty()
                    || self.resources.iter().any(|resources| resources.matches(info)));
        }
        let path = |url: &String| match url.strip_suffix('*') {
            Some(prefix) => info.path.starts_with(prefix),
            None => *url == info.path,
        };
        self.non_resource_urls.is_empty() || (!info.is_resource && self.non_resource_urls.iter().any(path))
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != "*" && self.group != info.group {
            return false;
        }
        let named = self.resource_names.is_empty() || has(&self.resource_names, &info.name);
        let resource = |wanted: &String| match wanted.split_once('/') {
            None => wanted == "*" || (info.subresource.is_empty() && *wanted == info.resource),
            Some(("*", sub)) => !info.subresource.is_empty() && sub == info.subresource,
            Some((main, "*")) => main == info.resource,
            Some((main, sub)) => main == info.resource && sub == info.subresource,
        };
        self.resources.is_empty() || (named && self.resources.iter().any(resource))
    }
}

/// Takes the managed fields out of an object or a list of objects.
pub fn without_managed_fields(document: &mut Value) {
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for item in document.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        without_managed_fields(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [system:kube-proxy], verbs: [watch], resources: [{group: "", resources: [endpoints, services/status]}]}
- {level: None, nonResourceURLs: ["/healthz*", /version]}
- {level: Request, resources: [{group: "", resources: [configmaps], resourceNames: [special]}], namespaces: [kube-system], omitStages: [ResponseStarted]}
- {level: RequestResponse, resources: [{group: "", resources: ["pods/*", "*/scale"]}], omitManagedFields: true}
- {level: Metadata, userGroups: ["system:authenticated"]}
"#;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let level = |user: &UserInfo, method: &str, url: &str| {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            policy
                .decide(user, &RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query)))
                .level
        };
        let (proxy, ann) = (UserInfo::new("system:kube-proxy", &[]), UserInfo::new("ann", &[]));
        assert_eq!(level(&proxy, "GET", "/api/v1/endpoints?watch=1"), Level::None);
        assert_eq!(level(&proxy, "GET", "/api/v1/services?watch=1"), Level::Metadata);
        assert_eq!(level(&ann, "GET", "/healthz/etcd"), Level::None);
        assert_eq!(level(&ann, "GET", "/versions"), Level::Metadata);
        assert_eq!(level(&ann, "GET", "/api/v1/namespaces/kube-system/configmaps/special"), Level::Request);
        assert_eq!(level(&ann, "GET", "/api/v1/namespaces/default/configmaps/special"), Level::Metadata);
        assert_eq!(level(&ann, "GET", "/api/v1/namespaces/a/pods/b/log"), Level::RequestResponse);
        assert_eq!(level(&ann, "GET", "/api/v1/namespaces/a/pods/b"), Level::RequestResponse);
        assert_eq!(level(&UserInfo::anonymous(), "GET", "/api/v1/nodes"), Level::None);
        let info = RequestInfo::parse(
            &http::Method::GET,
            "/api/v1/namespaces/kube-system/configmaps/special",
            &Query::default(),
        );
        assert_eq!(policy.decide(&ann, &info).omitted, [Stage::ResponseStarted, Stage::RequestReceived]);
    }

    #[test]
    fn a_policy_that_says_nothing_or_nonsense_is_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (rules, why) in [
            ("rules: []", "no rules"),
            ("rules: [{level: All}]", "All"),
            ("rules: [{level: None, user: [a]}]", "user"),
            ("rules: [{level: None, nonResourceURLs: [\"/a*b\"]}]", "nonResourceURLs"),
            ("rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]", "not both"),
        ] {
            let error = Policy::parse(format!("{head}{rules}").as_bytes()).unwrap_err();
            assert!(error.contains(why), "{rules}: {error}");
        }
        assert!(Policy::parse(b"kind: Policy").is_err());
    }
}
