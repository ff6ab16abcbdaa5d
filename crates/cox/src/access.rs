//! Who may come in, as flags say: authentication, authorization, audit and limits, under kube-apiserver's names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Command, FromArgMatches, ValueEnum};
use coxswain_apiserver::{
    Access, AccessConfig, Anonymous, AuditConfig, AuditDelivery, AuditMode, AuditThrottle,
    AuditWebhookConfig, AuthorizationWebhookConfig, LogConfig, Mode, OidcConfig, RequestHeaderConfig,
    TokenWebhookConfig,
};

const MEGABYTE: u64 = 1 << 20;

/// Who may come in.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Authentication, authorization and audit")]
#[command(group = clap::ArgGroup::new("audit_backend").multiple(true).args(["audit_log_path", "audit_webhook_config_file"]))]
pub struct AccessArgs {
    /// Authorities of proxies that name users in headers.
    #[arg(long, env = "COX_REQUESTHEADER_CLIENT_CA_FILE", value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,

    /// Common names that such proxies may have; without any, every proxy of the authorities.
    #[arg(long, env = "COX_REQUESTHEADER_ALLOWED_NAMES", value_name = "NAME,…", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,

    /// Headers that name the user.
    #[arg(
        long,
        env = "COX_REQUESTHEADER_USERNAME_HEADERS",
        value_name = "HEADER,…",
        value_delimiter = ',',
        default_value = "X-Remote-User"
    )]
    pub requestheader_username_headers: Vec<String>,

    /// Headers that carry the user's uid.
    #[arg(
        long,
        env = "COX_REQUESTHEADER_UID_HEADERS",
        value_name = "HEADER,…",
        value_delimiter = ',',
        default_value = "X-Remote-Uid"
    )]
    pub requestheader_uid_headers: Vec<String>,

    /// Headers that list the user's groups.
    #[arg(
        long,
        env = "COX_REQUESTHEADER_GROUP_HEADERS",
        value_name = "HEADER,…",
        value_delimiter = ',',
        default_value = "X-Remote-Group"
    )]
    pub requestheader_group_headers: Vec<String>,

    /// What headers begin with that carry more of the user.
    #[arg(
        long,
        env = "COX_REQUESTHEADER_EXTRA_HEADERS_PREFIX",
        value_name = "PREFIX,…",
        value_delimiter = ',',
        default_value = "X-Remote-Extra-"
    )]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// Whether requests without credentials come in, as system:anonymous.
    #[arg(long, env = "COX_ANONYMOUS_AUTH", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,

    /// Issuers of tokens, as an AuthenticationConfiguration says, instead of OpenID Connect's flags; it may say who comes without
    /// credentials too, instead of --anonymous-auth.
    #[arg(long, env = "COX_AUTHENTICATION_CONFIG", value_name = "FILE", conflicts_with_all = [
        "oidc_issuer_url",
        "oidc_client_id",
        "oidc_username_claim",
        "oidc_username_prefix",
        "oidc_groups_claim",
        "oidc_groups_prefix",
        "oidc_ca_file",
        "oidc_signing_algs",
        "oidc_required_claim",
    ])]
    pub authentication_config: Option<PathBuf>,

    /// An OpenID Connect issuer whose ID tokens are taken.
    #[arg(long, env = "COX_OIDC_ISSUER_URL", value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,

    /// The audience that ID tokens must have.
    #[arg(long, env = "COX_OIDC_CLIENT_ID", value_name = "ID")]
    pub oidc_client_id: Option<String>,

    /// The claim that names the user.
    #[arg(long, env = "COX_OIDC_USERNAME_CLAIM", value_name = "CLAIM", default_value = "sub")]
    pub oidc_username_claim: String,

    /// What user names begin with; `-` for nothing.
    #[arg(long, env = "COX_OIDC_USERNAME_PREFIX", value_name = "PREFIX", default_value = "")]
    pub oidc_username_prefix: String,

    /// The claim that lists the user's groups.
    #[arg(long, env = "COX_OIDC_GROUPS_CLAIM", value_name = "CLAIM", default_value = "")]
    pub oidc_groups_claim: String,

    /// What group names begin with.
    #[arg(long, env = "COX_OIDC_GROUPS_PREFIX", value_name = "PREFIX", default_value = "")]
    pub oidc_groups_prefix: String,

    /// The issuer's authority; the machine's where none is given.
    #[arg(long, env = "COX_OIDC_CA_FILE", value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,

    /// Signing algorithms that are taken.
    #[arg(
        long,
        env = "COX_OIDC_SIGNING_ALGS",
        value_name = "ALG,…",
        value_delimiter = ',',
        default_value = "RS256"
    )]
    pub oidc_signing_algs: Vec<String>,

    /// Claims that ID tokens must have.
    #[arg(long, env = "COX_OIDC_REQUIRED_CLAIM", value_name = "CLAIM=VALUE,…", value_delimiter = ',', value_parser = pair)]
    pub oidc_required_claim: Vec<(String, String)>,

    /// A webhook that knows tokens: a file in the form of a kubeconfig.
    #[arg(long, env = "COX_AUTHENTICATION_TOKEN_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,

    /// The version of TokenReview that the webhook is sent.
    #[arg(long, env = "COX_AUTHENTICATION_TOKEN_WEBHOOK_VERSION", value_name = "VERSION", default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authentication_token_webhook_version: String,

    /// How long the webhook's answers count.
    #[arg(long, env = "COX_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL", value_name = "SPAN", default_value = "2m", value_parser = span)]
    pub authentication_token_webhook_cache_ttl: Duration,

    /// Who decides what is allowed, in this order.
    #[arg(
        long,
        env = "COX_AUTHORIZATION_MODE",
        value_name = "MODE,…",
        value_delimiter = ',',
        default_value = "Node,RBAC"
    )]
    pub authorization_mode: Vec<AuthorizationMode>,

    /// Who decides, as an AuthorizationConfiguration says, instead of the mode and the webhook's flags.
    #[arg(long, env = "COX_AUTHORIZATION_CONFIG", value_name = "FILE", conflicts_with_all = [
        "authorization_mode",
        "authorization_webhook_config_file",
        "authorization_webhook_version",
        "authorization_webhook_cache_authorized_ttl",
        "authorization_webhook_cache_unauthorized_ttl",
    ])]
    pub authorization_config: Option<PathBuf>,

    /// A webhook that decides: a file in the form of a kubeconfig.
    #[arg(long, env = "COX_AUTHORIZATION_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,

    /// The version of SubjectAccessReview that the webhook is sent.
    #[arg(long, env = "COX_AUTHORIZATION_WEBHOOK_VERSION", value_name = "VERSION", default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub authorization_webhook_version: String,

    /// How long it counts that the webhook allowed something.
    #[arg(long, env = "COX_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL", value_name = "SPAN", default_value = "5m", value_parser = span)]
    pub authorization_webhook_cache_authorized_ttl: Duration,

    /// How long it counts that the webhook did not.
    #[arg(long, env = "COX_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL", value_name = "SPAN", default_value = "30s", value_parser = span)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,

    /// What is written down of which requests: an audit.k8s.io/v1 Policy.
    #[arg(long, env = "COX_AUDIT_POLICY_FILE", value_name = "FILE", requires = "audit_backend")]
    pub audit_policy_file: Option<PathBuf>,

    /// Where it is written; `-` for standard output.
    #[arg(long, env = "COX_AUDIT_LOG_PATH", value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,

    /// The form of the audit log.
    #[arg(long, env = "COX_AUDIT_LOG_FORMAT", value_name = "FORMAT", default_value = "json", value_parser = ["json"])]
    pub audit_log_format: String,

    /// Older audit logs go after so many days; 0 keeps them.
    #[arg(long, env = "COX_AUDIT_LOG_MAXAGE", value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u64,

    /// So many older audit logs stay; 0 keeps all.
    #[arg(long, env = "COX_AUDIT_LOG_MAXBACKUP", value_name = "FILES", default_value_t = 0)]
    pub audit_log_maxbackup: usize,

    /// An audit log is turned over at this size; 0 for 100.
    #[arg(long, env = "COX_AUDIT_LOG_MAXSIZE", value_name = "MB", default_value_t = 0)]
    pub audit_log_maxsize: u64,

    /// Whether requests wait until it is written, and fail where it is not.
    #[arg(long, env = "COX_AUDIT_LOG_MODE", value_name = "MODE", default_value = "blocking")]
    pub audit_log_mode: DeliveryMode,

    /// So many events wait to be written; more are dropped.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_BUFFER_SIZE", value_name = "EVENTS", default_value_t = 10_000)]
    pub audit_log_batch_buffer_size: usize,

    /// So many are written at once.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_MAX_SIZE", value_name = "EVENTS", default_value_t = 1)]
    pub audit_log_batch_max_size: usize,

    /// How long they wait for others to be written with.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_MAX_WAIT", value_name = "SPAN", default_value = "0s", value_parser = span)]
    pub audit_log_batch_max_wait: Duration,

    /// Whether batches are written at a pace.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_THROTTLE_ENABLE", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub audit_log_batch_throttle_enable: bool,

    /// So many batches are written a second.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_THROTTLE_QPS", value_name = "BATCHES", default_value_t = 0.0)]
    pub audit_log_batch_throttle_qps: f64,

    /// So many are written at once after a silence.
    #[arg(long, env = "COX_AUDIT_LOG_BATCH_THROTTLE_BURST", value_name = "BATCHES", default_value_t = 0)]
    pub audit_log_batch_throttle_burst: u32,

    /// Whom it is sent to: a file in the form of a kubeconfig.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_CONFIG_FILE", value_name = "FILE", requires = "audit_policy_file")]
    pub audit_webhook_config_file: Option<PathBuf>,

    /// Whether requests wait until it is sent, and fail where it is not.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_MODE", value_name = "MODE", default_value = "batch")]
    pub audit_webhook_mode: DeliveryMode,

    /// So many events wait to be sent; more are dropped.
    #[arg(
        long,
        env = "COX_AUDIT_WEBHOOK_BATCH_BUFFER_SIZE",
        value_name = "EVENTS",
        default_value_t = 10_000
    )]
    pub audit_webhook_batch_buffer_size: usize,

    /// So many are sent at once.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_BATCH_MAX_SIZE", value_name = "EVENTS", default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,

    /// How long they wait for others to be sent with.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_BATCH_MAX_WAIT", value_name = "SPAN", default_value = "30s", value_parser = span)]
    pub audit_webhook_batch_max_wait: Duration,

    /// Whether batches go at a pace.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_BATCH_THROTTLE_ENABLE", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    pub audit_webhook_batch_throttle_enable: bool,

    /// So many batches are sent a second.
    #[arg(
        long,
        env = "COX_AUDIT_WEBHOOK_BATCH_THROTTLE_QPS",
        value_name = "BATCHES",
        default_value_t = 10.0
    )]
    pub audit_webhook_batch_throttle_qps: f64,

    /// So many are sent at once after a silence.
    #[arg(
        long,
        env = "COX_AUDIT_WEBHOOK_BATCH_THROTTLE_BURST",
        value_name = "BATCHES",
        default_value_t = 15
    )]
    pub audit_webhook_batch_throttle_burst: u32,

    /// How long is waited before they are sent again.
    #[arg(long, env = "COX_AUDIT_WEBHOOK_INITIAL_BACKOFF", value_name = "SPAN", default_value = "10s", value_parser = span)]
    pub audit_webhook_initial_backoff: Duration,

    /// How long requests may take that are no watches, streams or logs.
    #[arg(long, env = "COX_REQUEST_TIMEOUT", value_name = "SPAN", default_value = "60s", value_parser = span)]
    pub request_timeout: Duration,

    /// With the next, how many requests run at once: the seats of all priority levels.
    #[arg(long, env = "COX_MAX_REQUESTS_INFLIGHT", value_name = "COUNT", default_value_t = 400)]
    pub max_requests_inflight: u32,

    /// See --max-requests-inflight.
    #[arg(long, env = "COX_MAX_MUTATING_REQUESTS_INFLIGHT", value_name = "COUNT", default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,

    /// Whether requests wait for their turn by priority and fairness; without, nothing limits them.
    #[arg(long, env = "COX_ENABLE_PRIORITY_AND_FAIRNESS", value_parser = clap::value_parser!(bool), num_args = 0..=1, default_missing_value = "true", default_value = "true")]
    pub enable_priority_and_fairness: bool,
}

/// Who decides what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum AuthorizationMode {
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is.
    AlwaysDeny,
    /// Kubelets may do what their pods need.
    Node,
    /// Roles and bindings.
    #[value(name = "RBAC")]
    Rbac,
    /// A webhook.
    Webhook,
}

impl From<AuthorizationMode> for Mode {
    fn from(mode: AuthorizationMode) -> Self {
        match mode {
            AuthorizationMode::AlwaysAllow => Self::AlwaysAllow,
            AuthorizationMode::AlwaysDeny => Self::AlwaysDeny,
            AuthorizationMode::Node => Self::Node,
            AuthorizationMode::Rbac => Self::Rbac,
            AuthorizationMode::Webhook => Self::Webhook,
        }
    }
}

/// How audit events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryMode {
    /// Many at once, and no request waits.
    Batch,
    /// Requests wait for each.
    Blocking,
    /// And fail where it cannot be told that they came.
    BlockingStrict,
}

impl From<DeliveryMode> for AuditMode {
    fn from(mode: DeliveryMode) -> Self {
        match mode {
            DeliveryMode::Batch => Self::Batch,
            DeliveryMode::Blocking => Self::Blocking,
            DeliveryMode::BlockingStrict => Self::BlockingStrict,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not claim=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A span such as `90s`, `2m` or `1h30m`.
fn span(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    span.try_into().map_err(|_| format!("{text:?} is less than nothing"))
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| file.display().to_string())
}

impl AccessArgs {
    /// What holds without flags.
    pub fn of_environment() -> anyhow::Result<Self> {
        let matches = Self::augment_args(Command::new("cox")).try_get_matches_from(["cox"])?;
        Ok(Self::from_arg_matches(&matches)?)
    }

    /// The authorities of all proxies, PEM, the server's own among them.
    pub fn proxy_authorities(&self, own_ca: &str) -> anyhow::Result<String> {
        Ok(self.request_header(own_ca)?.ca_pem)
    }

    /// The layers; `own_proxy_ca` is the authority of the server's own front proxy, `client_ca` that of users.
    pub fn layers(&self, client_ca: &str, own_proxy_ca: &str) -> anyhow::Result<Access> {
        let seats = self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight);
        let config = AccessConfig {
            request_header: Some(self.request_header(own_proxy_ca)?),
            client_ca_pem: client_ca.to_owned(),
            oidc: self.oidc()?,
            anonymous: self
                .anonymous_auth
                .map(|allowed| if allowed { Anonymous::Everywhere } else { Anonymous::Nowhere }),
            authentication_file: self.authentication_config.clone(),
            token_webhook: self.authentication_token_webhook_config_file.clone().map(|file| {
                TokenWebhookConfig {
                    file,
                    version: self.authentication_token_webhook_version.clone(),
                    cache_ttl: self.authentication_token_webhook_cache_ttl,
                }
            }),
            modes: self.authorization_mode.iter().map(|mode| (*mode).into()).collect(),
            authorization_webhook: self.authorization_webhook_config_file.clone().map(|file| {
                AuthorizationWebhookConfig::new(
                    file,
                    self.authorization_webhook_version.clone(),
                    self.authorization_webhook_cache_authorized_ttl,
                    self.authorization_webhook_cache_unauthorized_ttl,
                )
            }),
            authorization_file: self.authorization_config.clone(),
            audit: self.audit()?,
            request_timeout: self.request_timeout,
            max_requests_inflight: if self.enable_priority_and_fairness { seats } else { 0 },
        };
        Ok(Access::new(config)?)
    }

    /// The server's own front proxy is always trusted, and what aggregated servers are told says so.
    fn request_header(&self, own_ca: &str) -> anyhow::Result<RequestHeaderConfig> {
        let own = RequestHeaderConfig::standard(own_ca);
        let Some(file) = &self.requestheader_client_ca_file else { return Ok(own) };
        let given = String::from_utf8(read(file)?)?;
        let mut allowed_names = self.requestheader_allowed_names.clone();
        if !allowed_names.is_empty() {
            allowed_names.extend(own.allowed_names);
        }
        Ok(RequestHeaderConfig {
            ca_pem: format!("{}\n{own_ca}", given.trim_end()),
            allowed_names,
            username_headers: self.requestheader_username_headers.clone(),
            uid_headers: self.requestheader_uid_headers.clone(),
            group_headers: self.requestheader_group_headers.clone(),
            extra_headers_prefixes: self.requestheader_extra_headers_prefix.clone(),
        })
    }

    fn oidc(&self) -> anyhow::Result<Option<OidcConfig>> {
        let Some(issuer_url) = self.oidc_issuer_url.clone() else { return Ok(None) };
        Ok(Some(OidcConfig {
            issuer_url,
            client_id: self.oidc_client_id.clone().unwrap_or_default(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            ca_pem: self.oidc_ca_file.as_deref().map(read).transpose()?,
            signing_algs: self.oidc_signing_algs.clone(),
            required_claims: self.oidc_required_claim.clone(),
        }))
    }

    fn audit(&self) -> anyhow::Result<Option<AuditConfig>> {
        let Some(policy) = &self.audit_policy_file else { return Ok(None) };
        let log = self.audit_log_path.clone().map(|path| self.audit_log(path)).transpose()?;
        let webhook =
            self.audit_webhook_config_file.clone().map(|file| self.audit_webhook(file)).transpose()?;
        Ok(Some(AuditConfig { policy: read(policy)?, log, webhook }))
    }

    fn audit_log(&self, path: PathBuf) -> anyhow::Result<LogConfig> {
        let pace = AuditThrottle {
            per_second: self.audit_log_batch_throttle_qps,
            burst: self.audit_log_batch_throttle_burst,
        };
        let delivery = AuditDelivery {
            mode: self.audit_log_mode.into(),
            buffer_size: self.audit_log_batch_buffer_size,
            batch_size: self.audit_log_batch_max_size,
            max_wait: self.audit_log_batch_max_wait,
            throttle: self.audit_log_batch_throttle_enable.then_some(pace),
        };
        Ok(LogConfig {
            path,
            max_age_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size_bytes: if self.audit_log_maxsize == 0 { 100 } else { self.audit_log_maxsize } * MEGABYTE,
            delivery: checked("log", delivery)?,
        })
    }

    fn audit_webhook(&self, file: PathBuf) -> anyhow::Result<AuditWebhookConfig> {
        let pace = AuditThrottle {
            per_second: self.audit_webhook_batch_throttle_qps,
            burst: self.audit_webhook_batch_throttle_burst,
        };
        let delivery = AuditDelivery {
            mode: self.audit_webhook_mode.into(),
            buffer_size: self.audit_webhook_batch_buffer_size,
            batch_size: self.audit_webhook_batch_max_size,
            max_wait: self.audit_webhook_batch_max_wait,
            throttle: self.audit_webhook_batch_throttle_enable.then_some(pace),
        };
        let delivery = checked("webhook", delivery)?;
        Ok(AuditWebhookConfig { file, delivery, initial_backoff: self.audit_webhook_initial_backoff })
    }
}

/// What is used of it must be positive.
fn checked(backend: &str, delivery: AuditDelivery) -> anyhow::Result<AuditDelivery> {
    let of_throttle =
        delivery.throttle.map(|throttle| (throttle.per_second, f64::from(throttle.burst))).unzip();
    let positive = [
        ("buffer size", Some(delivery.buffer_size as f64)),
        ("max batch size", Some(delivery.batch_size as f64)),
        ("throttle QPS", of_throttle.0),
        ("throttle burst", of_throttle.1),
    ];
    let wrong =
        positive.into_iter().find(|(_, value)| value.is_some_and(|value| value.is_nan() || value <= 0.0));
    match (delivery.mode, wrong) {
        (AuditMode::Batch, Some((what, Some(value)))) => {
            anyhow::bail!("invalid audit batch {backend} {what} {value}, must be a positive number")
        }
        _ => Ok(delivery),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        access: AccessArgs,
    }

    #[test]
    fn flags_are_upstreams() {
        let line = Line::try_parse_from([
            "cox",
            "--authorization-mode=Node,RBAC",
            "--oidc-issuer-url=https://issuer",
            "--oidc-client-id=cox",
            "--oidc-required-claim=tenant=a",
            "--request-timeout=1m30s",
        ]);
        let access = line.unwrap().access;
        assert_eq!(access.authorization_mode, [AuthorizationMode::Node, AuthorizationMode::Rbac]);
        assert_eq!(access.request_timeout, Duration::from_secs(90));
        let oidc = access.oidc().unwrap().unwrap();
        assert_eq!(oidc.required_claims, [("tenant".to_owned(), "a".to_owned())]);
        for file in ["--authentication-config=a", "--authorization-config=a"] {
            assert!(Line::try_parse_from(["cox", file, "--anonymous-auth=false"]).is_ok(), "{file}");
            let both = ["cox", file, "--authorization-mode=RBAC", "--oidc-client-id=a"];
            assert!(Line::try_parse_from(both).is_err(), "{file}");
        }
        let strict = "--audit-webhook-mode=blocking-strict";
        let sent = ["cox", "--audit-policy-file=a", "--audit-webhook-config-file=b", strict];
        assert!(Line::try_parse_from(sent).is_ok(), "an audit webhook without a log");
        let paced = |flag: &str| {
            let line = Line::try_parse_from([sent[0], sent[1], sent[2], flag]).unwrap();
            line.access
                .audit_webhook("b".into())
                .map(|config| config.delivery.throttle.map(|pace| (pace.per_second, pace.burst)))
        };
        assert_eq!(paced("--audit-webhook-mode=batch").unwrap(), Some((10.0, 15)));
        assert_eq!(paced("--audit-webhook-batch-throttle-enable=false").unwrap(), None);
        let wrong = paced("--audit-webhook-batch-throttle-qps=0").unwrap_err().to_string();
        assert_eq!(wrong, "invalid audit batch webhook throttle QPS 0, must be a positive number");
        let logged = |flags: &[&str]| {
            let line = ["cox", "--audit-policy-file=a", "--audit-log-path=b"]
                .into_iter()
                .chain(flags.iter().copied());
            Line::try_parse_from(line).unwrap().access.audit_log("b".into()).map(|log| log.delivery)
        };
        assert_eq!(logged(&[]).unwrap().mode, AuditMode::Blocking);
        let batch = logged(&["--audit-log-mode=batch", "--audit-log-batch-max-size=7"]).unwrap();
        assert_eq!((batch.mode, batch.buffer_size, batch.batch_size), (AuditMode::Batch, 10_000, 7));
        let wrong = logged(&["--audit-log-mode=batch", "--audit-log-batch-throttle-enable"]).unwrap_err();
        assert_eq!(wrong.to_string(), "invalid audit batch log throttle QPS 0, must be a positive number");
        for wrong in [
            "--audit-policy-file=a",
            "--audit-webhook-mode=strict",
            "--authorization-mode=ABAC",
            "--audit-log-path=-",
            "--oidc-issuer-url=https://i",
        ] {
            assert!(Line::try_parse_from(["cox", wrong]).is_err(), "{wrong}");
        }
    }
}
