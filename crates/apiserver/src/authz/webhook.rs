//! A webhook that decides about requests.
//! <https://kubernetes.io/docs/reference/access-authn-authz/webhook/>

use std::path::PathBuf;
use std::time::Duration;

use coxswain_meta::json::{Value, json};

use super::{Attributes, Verdict};
use crate::authn::UserInfo;
use crate::cache::{Cache, question};
use crate::cel::{Budget, Expression, Scope, of_json, typing};
use crate::configuration::ConfigurationError;
use crate::remote::{Remote, RemoteError};

/// What the server is told of the webhook.
#[derive(Clone, Debug)]
pub struct AuthorizationWebhookConfig {
    /// A file in the form of a kubeconfig.
    pub file: PathBuf,
    /// The version of SubjectAccessReview that it is sent.
    pub version: String,
    /// How long it counts that something is allowed; nothing is remembered for no time.
    pub authorized_ttl: Duration,
    /// How long it counts that something is not.
    pub unauthorized_ttl: Duration,
    /// How long its answer is waited for.
    pub timeout: Duration,
    /// Whether nobody else is asked where it does not answer.
    pub deny_on_failure: bool,
    /// CEL over `request`, the SubjectAccessReview's spec: it is asked only where all hold.
    pub conditions: Vec<String>,
}

impl AuthorizationWebhookConfig {
    /// What holds for the webhook of flags.
    pub fn new(file: PathBuf, version: String, authorized_ttl: Duration, unauthorized_ttl: Duration) -> Self {
        Self {
            file,
            version,
            authorized_ttl,
            unauthorized_ttl,
            timeout: Duration::from_secs(30),
            deny_on_failure: false,
            conditions: Vec::new(),
        }
    }
}

/// A webhook cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// Its file.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A condition.
    #[error(transparent)]
    Condition(#[from] ConfigurationError),
}

/// The webhook.
pub struct AuthorizationWebhook {
    remote: Remote,
    config: AuthorizationWebhookConfig,
    conditions: Vec<Expression>,
    cache: Cache<Verdict>,
}

impl AuthorizationWebhook {
    /// Compiles its conditions and reads its file.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn new(config: AuthorizationWebhookConfig) -> Result<Self, WebhookError> {
        let compile = |source: &String| Expression::compile(source, &typing::REVIEWS);
        let conditions: Vec<Expression> = config.conditions.iter().map(compile).collect();
        let faulty = conditions.iter().enumerate().find_map(|(number, one)| Some((number, one.fault()?)));
        if let Some((number, fault)) = faulty {
            let at = format!("matchConditions[{number}].expression");
            return Err(ConfigurationError::at(&at, &format!("compilation failed: {fault}")).into());
        }
        if let Some(number) = conditions.iter().position(|one| !one.ty().is(&typing::Type::Bool)) {
            let at = format!("matchConditions[{number}].expression");
            return Err(ConfigurationError::at(&at, "must evaluate to bool").into());
        }
        let remote = Remote::from_kubeconfig(&config.file)?;
        Ok(Self { remote, config, conditions, cache: Cache::default() })
    }

    /// What it says. It has no opinion about what its conditions leave out; one that does not answer has the opinion that
    /// its failure policy gives it.
    pub async fn decide(&self, user: &UserInfo, asked: &Attributes<'_>) -> Verdict {
        match self.concerns(user, asked) {
            Ok(true) => {}
            Ok(false) => return Verdict::default(),
            Err(why) => return self.failed(&why),
        }
        let spec = spec(user, asked, &self.config.version);
        let key = question(&spec.to_string());
        if let Some(verdict) = self.cache.get(&key) {
            return verdict;
        }
        let review = json!({ "kind": "SubjectAccessReview", "spec": spec,
            "apiVersion": format!("authorization.k8s.io/{}", self.config.version),
            "metadata": { "creationTimestamp": null } });
        match self.remote.post(&review, self.config.timeout).await {
            Ok(answer) => {
                let verdict = verdict_in(&answer["status"]);
                let life =
                    if verdict.allowed { self.config.authorized_ttl } else { self.config.unauthorized_ttl };
                if !life.is_zero() {
                    self.cache.put(key, verdict.clone(), life);
                }
                verdict
            }
            Err(error) => self.failed(&error.to_string()),
        }
    }

    /// Whether all conditions hold: one that does not outweighs errors of others.
    fn concerns(&self, user: &UserInfo, asked: &Attributes) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let mut scope = Scope::empty();
        scope.set("request", of_json(&shown_to_conditions(user, asked)));
        let mut failed = None;
        for condition in &self.conditions {
            match condition.is_true(&scope, &mut Budget::one()) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => failed = failed.or(Some(format!("{}: {why}", condition.source()))),
            }
        }
        failed.map_or(Ok(true), Err)
    }

    fn failed(&self, why: &str) -> Verdict {
        tracing::warn!(why, "the webhook of authorization did not answer");
        match self.config.deny_on_failure {
            true => {
                Verdict { denied: true, reason: "webhook authorizer failed".to_owned(), ..Verdict::default() }
            }
            false => Verdict::default(),
        }
    }
}

/// The spec of a SubjectAccessReview with all of its texts, also where they are empty.
fn shown_to_conditions(user: &UserInfo, asked: &Attributes) -> Value {
    let mut shown = json!({ "user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra });
    if asked.resource.is_empty() {
        shown["nonResourceAttributes"] = json!({ "path": asked.path, "verb": asked.verb });
    } else {
        shown["resourceAttributes"] = json!({ "namespace": asked.namespace, "verb": asked.verb, "group": asked.group,
            "version": asked.version, "resource": asked.resource, "subresource": asked.subresource, "name": asked.name });
    }
    shown
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
