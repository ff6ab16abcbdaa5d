//! What the server is told about who may come in: authentication, authorization, audit and limits besides its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit::{AuditConfig, AuditError, Auditor};
use crate::authn::{
    Anonymous, AnonymousRules, Authenticators, Authorities, Oidc, OidcConfig, OidcError, RequestHeaderConfig,
    TokenWebhook, TokenWebhookConfig,
};
use crate::authz::{AuthorizationWebhook, AuthorizationWebhookConfig, Chain, Mode, WebhookError};
use crate::configuration::{ConfigurationError, Followed};
use crate::remote::RemoteError;

/// The layers as they are configured.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// Front proxies that may name users.
    pub request_header: Option<RequestHeaderConfig>,
    /// The authority of users' certificates, PEM; needed beside front proxies.
    pub client_ca_pem: String,
    /// An OpenID Connect issuer.
    pub oidc: Option<OidcConfig>,
    /// Who may come without credentials; everybody may where neither this nor the file says otherwise.
    pub anonymous: Option<Anonymous>,
    /// An AuthenticationConfiguration, instead of the issuer before; who may come is said in one of both.
    pub authentication_file: Option<PathBuf>,
    /// A webhook that knows tokens.
    pub token_webhook: Option<TokenWebhookConfig>,
    /// Who decides, in this order.
    pub modes: Vec<Mode>,
    /// A webhook that decides.
    pub authorization_webhook: Option<AuthorizationWebhookConfig>,
    /// An AuthorizationConfiguration, instead of the two before.
    pub authorization_file: Option<PathBuf>,
    /// What is written down of requests.
    pub audit: Option<AuditConfig>,
    /// Requests that are no watches, streams or logs take no longer.
    pub request_timeout: Duration,
    /// How many requests run at once, of all priority levels together; 0 for no limit.
    pub max_requests_inflight: u32,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            request_header: None,
            client_ca_pem: String::new(),
            oidc: None,
            anonymous: None,
            authentication_file: None,
            token_webhook: None,
            modes: vec![Mode::Node, Mode::Rbac],
            authorization_webhook: None,
            authorization_file: None,
            audit: None,
            request_timeout: Duration::from_secs(60),
            max_requests_inflight: 600,
        }
    }
}

/// A layer cannot be configured so.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The authorities of certificates.
    #[error("the authorities of client certificates: {0}")]
    Authorities(String),
    /// OpenID Connect.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// A webhook of tokens.
    #[error(transparent)]
    Webhook(#[from] RemoteError),
    /// A webhook of authorization.
    #[error(transparent)]
    Authorizer(#[from] WebhookError),
    /// A structured file.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// Audit.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A webhook without its file, or the other way round.
    #[error("the authorization mode Webhook and its configuration file come together")]
    ModeWithoutWebhook,
    /// Nobody could do anything.
    #[error("at least one authorization mode must be given")]
    NoMode,
    /// A file.
    #[error("reading {0}: {1}")]
    File(PathBuf, std::io::Error),
}

/// The layers, ready to be used.
pub struct Access {
    /// Front proxies, their authorities and those of users.
    pub(crate) proxies: Option<(RequestHeaderConfig, Authorities, Authorities)>,
    pub(crate) authenticators: Followed<Authenticators>,
    pub(crate) token_webhook: Option<TokenWebhook>,
    pub(crate) authorizers: Followed<Chain>,
    pub(crate) audit: Option<Arc<Auditor>>,
    pub(crate) request_timeout: Duration,
    pub(crate) max_requests_inflight: u32,
}

impl Access {
    /// Reads files and checks what is configured.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn new(config: AccessConfig) -> Result<Self, AccessError> {
        if config.modes.is_empty() {
            return Err(AccessError::NoMode);
        }
        if config.modes.contains(&Mode::Webhook) != config.authorization_webhook.is_some() {
            return Err(AccessError::ModeWithoutWebhook);
        }
        let authorities = |pem: &str| Authorities::new(pem).map_err(AccessError::Authorities);
        let proxies = match config.request_header {
            Some(proxy) => {
                let trusted = (authorities(&proxy.ca_pem)?, authorities(&config.client_ca_pem)?);
                Some((proxy, trusted.0, trusted.1))
            }
            None => None,
        };
        let authenticators = match &config.authentication_file {
            Some(file) => {
                let rules = AnonymousRules::new(config.anonymous);
                Followed::file(file, move |text| rules.read(text))?
            }
            None => {
                let issuers = config.oidc.map(Oidc::new).transpose()?.into_iter().collect();
                Followed::fixed(Authenticators { issuers, anonymous: config.anonymous.unwrap_or_default() })
            }
        };
        let authorizers = match &config.authorization_file {
            Some(file) => Followed::file(file, Chain::parse)?,
            None => {
                let webhook = config.authorization_webhook.map(AuthorizationWebhook::new).transpose()?;
                Followed::fixed(Chain::new(&config.modes, webhook))
            }
        };
        Ok(Self {
            proxies,
            authenticators,
            token_webhook: config.token_webhook.as_ref().map(TokenWebhook::new).transpose()?,
            authorizers,
            audit: config.audit.map(Auditor::new).transpose()?.map(Arc::new),
            request_timeout: config.request_timeout,
            max_requests_inflight: config.max_requests_inflight,
        })
    }

    /// Follows the files that are read again when they change, and sends audit events, until the server stops.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        let audit = async {
            if let Some(auditor) = &self.audit {
                auditor.run_webhook(stop).await;
            }
        };
        tokio::join!(self.authenticators.follow(stop), self.authorizers.follow(stop), audit);
    }
}
