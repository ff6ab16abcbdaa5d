//! Users that a webhook knows the tokens of.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#webhook-token-authentication>

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use coxswain_meta::json::{Value, json};

use super::UserInfo;
use crate::cache::{Cache, question};
use crate::remote::{Remote, RemoteError};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Tokens that are not known are asked for again after this.
const UNKNOWN_LIFE: Duration = Duration::from_secs(10);

/// What the server is told of the webhook.
#[derive(Clone, Debug)]
pub struct TokenWebhookConfig {
    /// A file in the form of a kubeconfig.
    pub file: PathBuf,
    /// The version of TokenReview that it is sent.
    pub version: String,
    /// How long its answers count.
    pub cache_ttl: Duration,
}

/// The webhook.
pub struct TokenWebhook {
    remote: Remote,
    version: String,
    cache_ttl: Duration,
    cache: Cache<Option<UserInfo>>,
}

impl TokenWebhook {
    /// Reads its file.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(config: &TokenWebhookConfig) -> Result<Self, RemoteError> {
        Ok(Self {
            remote: Remote::from_kubeconfig(&config.file)?,
            version: config.version.clone(),
            cache_ttl: config.cache_ttl,
            cache: Cache::default(),
        })
    }

    /// The user of a token for one of the audiences; a webhook that does not answer knows nobody.
    pub async fn user_of(&self, token: &str, audiences: &[String]) -> Option<UserInfo> {
        let key = question(&format!("{token}\n{audiences:?}"));
        if let Some(answer) = self.cache.get(&key) {
            return answer;
        }
        let review = json!({ "kind": "TokenReview", "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": { "creationTimestamp": null }, "spec": { "token": token, "audiences": audiences } });
        let answer = match self.remote.post(&review, TIMEOUT).await {
            Ok(answer) => user_in(&answer["status"], audiences),
            Err(error) => {
                tracing::warn!(%error, "the webhook of token authentication did not answer");
                return None;
            }
        };
        let life = if answer.is_some() { self.cache_ttl } else { UNKNOWN_LIFE };
        self.cache.put(key, answer.clone(), life);
        answer
    }
}

/// The user of an answer. One that names no audiences means the API server's own.
fn user_in(status: &Value, audiences: &[String]) -> Option<UserInfo> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let meant = texts(&status["audiences"]);
    let fits = audiences.is_empty() || meant.is_empty() || meant.iter().any(|one| audiences.contains(one));
    if status["authenticated"] != true || !fits {
        return None;
    }
    let user = &status["user"];
    let groups = texts(&user["groups"]);
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut found = UserInfo::new(user["username"].as_str()?, &groups);
    found.uid = user["uid"].as_str().unwrap_or_default().to_owned();
    let extra = user["extra"].as_object().into_iter().flatten();
    found.extra = extra.map(|(key, values)| (key.to_owned(), texts(values))).collect::<BTreeMap<_, _>>();
    Some(found)
}
