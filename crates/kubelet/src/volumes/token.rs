//! Service account tokens for pods, through TokenRequest; renewed at 80 % of their life, or a day.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};

use super::SourceError;
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::pod::containers::spec;

const LONGEST_USE: SignedDuration = SignedDuration::from_hours(24);

/// A token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// When it is to be renewed.
    pub refresh_at: Timestamp,
}

/// Pod UID, audience and lifetime.
type Key = (String, String, i64);

/// The tokens of the node's pods.
#[derive(Default)]
pub struct Tokens {
    tokens: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    fn tokens(&self) -> MutexGuard<'_, HashMap<Key, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of a projection; asks for one when there is none, or when it is time for a new one.
    pub async fn get(
        &self,
        kubelet: &Kubelet,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<Token, SourceError> {
        let id = PodId::of(pod);
        let audience = projection.audience.clone().unwrap_or_default();
        let seconds = projection.expiration_seconds.unwrap_or(3600);
        let key = (id.uid.clone(), audience.clone(), seconds);
        let now = Timestamp::now();
        let known = self.tokens().get(&key).cloned();
        if let Some(token) = known.filter(|token| token.refresh_at > now) {
            return Ok(token);
        }
        let account = spec(pod).service_account_name.clone().filter(|name| !name.is_empty());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(Some(audience).filter(|a| !a.is_empty()).into_iter().collect()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(id.name),
                    uid: Some(id.uid),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(kubelet.config.client.clone(), &id.namespace);
        let account = account.as_deref().unwrap_or("default");
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let status = answer.map_err(SourceError::Token)?.status.unwrap_or_default();
        let expires = status.expiration_timestamp.map_or(now, |time| time.0);
        let life = expires.duration_since(now).max(SignedDuration::from_secs(1));
        let refresh_at = now + (life * 8 / 10).min(LONGEST_USE);
        let token = Token { text: status.token.unwrap_or_default(), refresh_at };
        self.tokens().insert(key, token.clone());
        Ok(token)
    }

    /// Forgets the tokens of a pod.
    pub fn release(&self, pod_uid: &str) {
        self.tokens().retain(|(uid, ..), _| uid != pod_uid);
    }
}
