//! Who asks: client certificates and bearer tokens.

mod bootstrap;
mod token;

use std::collections::BTreeMap;

use coxswain_meta::Status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use token::{Claims, TokenAuthority, TokenError, epoch_seconds};

use crate::Server;
use crate::object::Meta;

/// A user, as authentication found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name.
    pub name: String,
    /// Unique id, where the authenticator knows one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More facts.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of one group besides `system:authenticated`.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain(["system:authenticated"]).map(str::to_owned).collect();
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Nobody.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// As the review APIs show it.
    pub fn to_json(&self) -> Value {
        let mut user = serde_json::json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            user["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            user["extra"] = serde_json::json!(self.extra);
        }
        user
    }
}

/// The user a verified client certificate names: CN is the name, every O a group.
pub fn from_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(UserInfo::new(name, &groups))
}

impl Server {
    /// The user of a request: the connection's certificate, else a bearer token, else nobody.
    pub(crate) fn authenticate(
        &self,
        certificate: Option<&UserInfo>,
        headers: &HeaderMap,
    ) -> Result<UserInfo, Status> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(UserInfo::anonymous()) };
        let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        token.and_then(|token| self.user_of_token(token, &[])).ok_or_else(Status::unauthorized)
    }

    /// The user of a bearer token that is valid for the API server (or one of `audiences`).
    pub(crate) fn user_of_token(&self, token: &str, audiences: &[String]) -> Option<UserInfo> {
        let for_server = audiences.is_empty() || audiences.contains(&self.tokens.issuer);
        let account = self.user_of_account_token(token, audiences);
        account.or_else(|| self.user_of_bootstrap_token(token).filter(|_| for_server))
    }

    /// The user of a service account token whose objects exist.
    fn user_of_account_token(&self, token: &str, audiences: &[String]) -> Option<UserInfo> {
        let claims = self.tokens.verify(token).ok()?;
        let meant = if audiences.is_empty() {
            claims.aud.contains(&self.tokens.issuer)
        } else {
            audiences.iter().any(|audience| claims.aud.contains(audience))
        };
        let bound = &claims.kubernetes;
        let exists = |resource: &str, name: &str, uid: &str| {
            let object = self.read("", resource, &bound.namespace, name)?;
            (object.meta_str("uid") == uid).then_some(object)
        };
        let account = &bound.serviceaccount;
        exists("serviceaccounts", &account.name, &account.uid).filter(|_| meant)?;
        let mut extra = BTreeMap::new();
        if let Some(jti) = &claims.jti {
            extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={jti}")]);
        }
        if let Some(pod) = &bound.pod {
            exists("pods", &pod.name, &pod.uid)?;
            extra.insert("authentication.kubernetes.io/pod-name".into(), vec![pod.name.clone()]);
            extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![pod.uid.clone()]);
        }
        if let Some(node) = &bound.node {
            extra.insert("authentication.kubernetes.io/node-name".into(), vec![node.name.clone()]);
            extra.insert("authentication.kubernetes.io/node-uid".into(), vec![node.uid.clone()]);
        }
        let namespace_group = format!("system:serviceaccounts:{}", bound.namespace);
        let mut user = UserInfo::new(&claims.sub, &["system:serviceaccounts", &namespace_group]);
        (user.uid, user.extra) = (account.uid.clone(), extra);
        Some(user)
    }
}
