//! A webhook that decides about requests.
//! <https://kubernetes.io/docs/reference/access-authn-authz/webhook/>

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Attributes, Verdict};
use crate::authn::UserInfo;
use crate::cache::{Cache, question};
use crate::remote::{Remote, RemoteError};

const TIMEOUT: Duration = Duration::from_secs(30);

/// What the server is told of the webhook.
#[derive(Clone, Debug)]
pub struct AuthorizationWebhookConfig {
    /// A file in the form of a kubeconfig.
    pub file: PathBuf,
    /// The version of SubjectAccessReview that it is sent.
    pub version: String,
    /// How long it counts that something is allowed.
    pub authorized_ttl: Duration,
    /// How long it counts that something is not.
    pub unauthorized_ttl: Duration,
}

/// The webhook.
pub struct AuthorizationWebhook {
    remote: Remote,
    config: AuthorizationWebhookConfig,
    cache: Cache<Verdict>,
}

impl AuthorizationWebhook {
    /// Reads its file.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(config: AuthorizationWebhookConfig) -> Result<Self, RemoteError> {
        Ok(Self { remote: Remote::from_kubeconfig(&config.file)?, config, cache: Cache::default() })
    }

    /// What it says; a webhook that does not answer has no opinion.
    pub async fn decide(&self, user: &UserInfo, asked: &Attributes<'_>) -> Verdict {
        let spec = spec(user, asked, &self.config.version);
        let key = question(&spec.to_string());
        if let Some(verdict) = self.cache.get(&key) {
            return verdict;
        }
        let review = json!({ "kind": "SubjectAccessReview", "spec": spec,
            "apiVersion": format!("authorization.k8s.io/{}", self.config.version),
            "metadata": { "creationTimestamp": null } });
        match self.remote.post(&review, TIMEOUT).await {
            Ok(answer) => {
                let verdict = verdict_in(&answer["status"]);
                let life =
                    if verdict.allowed { self.config.authorized_ttl } else { self.config.unauthorized_ttl };
                self.cache.put(key, verdict.clone(), life);
                verdict
            }
            Err(error) => {
                tracing::warn!(%error, "the webhook of authorization did not answer");
                Verdict::default()
            }
        }
    }
}

fn verdict_in(status: &Value) -> Verdict {
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    let (allowed, denied) = (status["allowed"] == true, status["denied"] == true);
    // Who says both says nothing.
    Verdict { allowed: allowed && !denied, denied: denied && !allowed, reason }
}

fn spec(user: &UserInfo, asked: &Attributes, version: &str) -> Value {
    // The groups' name changed with v1.
    let groups = if version == "v1beta1" { "group" } else { "groups" };
    let mut spec = json!({ "user": user.name, groups: user.groups });
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    if asked.resource.is_empty() {
        spec["nonResourceAttributes"] = json!({ "path": asked.path, "verb": asked.verb });
        return spec;
    }
    let mut resource = json!({ "verb": asked.verb, "resource": asked.resource });
    for (field, value) in [
        ("group", asked.group),
        ("version", asked.version),
        ("subresource", asked.subresource),
        ("namespace", asked.namespace),
        ("name", asked.name),
    ] {
        if !value.is_empty() {
            resource[field] = value.into();
        }
    }
    spec["resourceAttributes"] = resource;
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_upstreams_and_contradictions_are_no_opinion() {
        let user = UserInfo::new("ann", &["dev"]);
        let asked = Attributes {
            verb: "get",
            resource: "pods",
            version: "v1",
            namespace: "a",
            ..Attributes::default()
        };
        let spec = spec(&user, &asked, "v1beta1");
        assert_eq!(
            spec,
            json!({"user": "ann", "group": ["dev", "system:authenticated"],
                "resourceAttributes": {"verb": "get", "resource": "pods", "version": "v1", "namespace": "a"}})
        );
        let verdict = verdict_in(&json!({"allowed": true, "denied": true}));
        assert!(!verdict.allowed && !verdict.denied);
        assert!(verdict_in(&json!({"denied": true})).denied);
    }
}
