//! Who asks: client certificates, front proxies and bearer tokens.

mod bootstrap;
mod impersonation;
mod jwks;
mod mapping;
mod oidc;
mod request_header;
mod structured;
mod token;
mod webhook;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

pub use oidc::{Oidc, OidcConfig, OidcError};
pub use request_header::{Authorities, RequestHeaderConfig};
pub use structured::{Anonymous, AnonymousRules, Authenticators};
pub use token::{Claims, TokenAuthority, TokenError, epoch_seconds};
pub use webhook::{TokenWebhook, TokenWebhookConfig};

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
        let mut user = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            user["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// The other end of a connection, as the handshake left it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The user of its certificate; none without one.
    pub user: Option<Arc<UserInfo>>,
    /// Whether it may name users in headers.
    pub is_proxy: bool,
    /// Its address; none for components of this process.
    pub address: Option<IpAddr>,
}

impl Peer {
    /// A component of this process.
    pub fn of(user: UserInfo) -> Self {
        Self { user: Some(Arc::new(user)), is_proxy: false, address: None }
    }
}

/// The user a verified client certificate names: CN is the name, every O a group.
fn from_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut user = UserInfo::new(name, &groups);
    let print = ring::digest::digest(&ring::digest::SHA256, der);
    let print: String = print.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    user.extra
        .insert("authentication.kubernetes.io/credential-id".into(), vec![format!("X509SHA256={print}")]);
    Some(user)
}

/// The bearer token of a request; browsers, which cannot set headers of WebSockets, offer it as a protocol.
fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(header) = headers.get(AUTHORIZATION) {
        let (scheme, token) = header.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let mut offered = offered.flat_map(|list| list.split(','));
    let token = offered.find_map(|one| one.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

impl Server {
    /// The other end of a connection with a certificate that TLS has verified.
    pub(crate) fn peer(&self, chain: Option<&[CertificateDer<'_>]>, address: IpAddr) -> Peer {
        let address = Some(address);
        let Some((chain, leaf)) = chain.and_then(|chain| Some((chain, chain.first()?))) else {
            return Peer { address, ..Peer::default() };
        };
        let Some((proxy, of_proxies, of_users)) = &self.config.access.proxies else {
            return Peer { user: from_certificate(leaf).map(Arc::new), is_proxy: false, address };
        };
        // TLS takes certificates of either authority: what they are good for is told apart here.
        let is_proxy = of_proxies.signed(chain) && request_header::is_allowed(proxy, leaf);
        let user = of_users.signed(chain).then(|| from_certificate(leaf)).flatten();
        Peer { user: user.map(Arc::new), is_proxy, address }
    }

    /// The user of a request: whom a front proxy names, the connection's certificate, a bearer token, or else nobody.
    pub(crate) async fn authenticate(
        &self,
        peer: &Peer,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Arc<UserInfo>, Status> {
        let proxies = self.config.access.proxies.as_ref().filter(|_| peer.is_proxy);
        if let Some(user) = proxies.and_then(|(proxy, ..)| request_header::user_of(proxy, headers)) {
            return Ok(Arc::new(user));
        }
        if let Some(user) = &peer.user {
            return Ok(user.clone());
        }
        match bearer(headers) {
            Some(token) => {
                self.user_of_token(&token, &[]).await.map(Arc::new).ok_or_else(Status::unauthorized)
            }
            None if self.config.access.authenticators.get().anonymous.may_ask(path) => {
                Ok(Arc::new(UserInfo::anonymous()))
            }
            None => Err(Status::unauthorized()),
        }
    }

    /// The user of a bearer token that is valid for the API server (or one of `audiences`).
    pub(crate) async fn user_of_token(&self, token: &str, audiences: &[String]) -> Option<UserInfo> {
        let for_server = audiences.is_empty() || audiences.contains(&self.tokens.issuer);
        let account = self.user_of_account_token(token, audiences);
        let known = account.or_else(|| self.user_of_bootstrap_token(token).filter(|_| for_server));
        if known.is_some() {
            return known;
        }
        let access = &self.config.access;
        let authenticators = access.authenticators.get();
        for issuer in authenticators.issuers.iter().filter(|_| for_server) {
            if let Some(user) = issuer.user_of(token).await {
                return Some(user);
            }
        }
        match &access.token_webhook {
            Some(webhook) => webhook.user_of(token, audiences).await,
            None => None,
        }
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
