//! Users of an OpenID Connect issuer: their ID tokens are bearer tokens.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>

use std::time::{Duration, Instant};

use coxswain_meta::json::Value;
use tokio::sync::RwLock;

use super::jwks::{ALGORITHMS, Jwt, KeySet};
use super::mapping::{Mappings, Source};
use super::{UserInfo, epoch_seconds};
use crate::remote::{Remote, RemoteError};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The keys are fetched anew for an unknown key id, but in this time not more often than this.
const FETCH_INTERVAL: Duration = Duration::from_secs(10);
const MOST_FETCHES: usize = 3;

/// What the server is told of the issuer.
#[derive(Clone, Debug, Default)]
pub struct OidcConfig {
    /// `iss`, and where its discovery document is.
    pub issuer_url: String,
    /// The audience that tokens must have.
    pub client_id: String,
    /// The claim that names the user.
    pub username_claim: String,
    /// What names begin with; `-` for nothing, empty for the issuer and `#` unless the claim is `email`.
    pub username_prefix: String,
    /// The claim that lists the groups; empty for none.
    pub groups_claim: String,
    /// What groups begin with.
    pub groups_prefix: String,
    /// The authority that the issuer is trusted by, PEM; the system's without it.
    pub ca_pem: Option<Vec<u8>>,
    /// Algorithms that are taken.
    pub signing_algs: Vec<String>,
    /// Claims and the values they must have.
    pub required_claims: Vec<(String, String)>,
}

/// What is wrong with the configuration or the issuer.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The URL is not one of https.
    #[error("oidc-issuer-url must be an https URL")]
    Issuer,
    /// Without an audience, everybody's tokens would do.
    #[error("oidc-client-id must be given with oidc-issuer-url")]
    ClientId,
    /// The algorithm cannot be verified.
    #[error(
        "unsupported signing algorithm {0}; known are RS256, RS384, RS512, ES256, ES384, PS256, PS384 and PS512"
    )]
    Algorithm(String),
    /// The issuer cannot be asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The issuer's documents say nothing of keys.
    #[error("the issuer's discovery document is not its own, or names no keys")]
    Discovery,
}

/// An issuer, and what its tokens must be and say.
pub struct Trust {
    /// `iss`.
    pub issuer_url: String,
    /// Where its discovery document is.
    pub discovery_url: String,
    /// Tokens have one of these.
    pub audiences: Vec<String>,
    /// The authority that the issuer is trusted by, PEM; the system's without it.
    pub ca_pem: Option<Vec<u8>>,
    /// Algorithms that are taken.
    pub signing_algs: Vec<String>,
    /// What claims become.
    pub mappings: Mappings,
}

/// The issuer, and the keys it was last known to sign with.
pub struct Oidc {
    trust: Trust,
    keys: RwLock<Fetched>,
}

#[derive(Default)]
struct Fetched {
    keys: KeySet,
    fetches: Vec<Instant>,
}

/// The discovery document of an issuer.
pub fn discovery_of(issuer_url: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer_url.trim_end_matches('/'))
}

impl Oidc {
    /// Checks the configuration of flags.
    ///
    /// # Errors
    /// [`OidcError::Issuer`], [`OidcError::ClientId`], [`OidcError::Algorithm`], [`OidcError::Remote`].
    pub fn new(config: OidcConfig) -> Result<Self, OidcError> {
        if !config.issuer_url.starts_with("https://") {
            return Err(OidcError::Issuer);
        }
        if config.client_id.is_empty() {
            return Err(OidcError::ClientId);
        }
        if let Some(other) = config.signing_algs.iter().find(|alg| !ALGORITHMS.contains(&alg.as_str())) {
            return Err(OidcError::Algorithm(other.clone()));
        }
        Self::trusting(trust(config))
    }

    /// Takes tokens of an issuer; it is asked when the first token comes.
    ///
    /// # Errors
    /// [`OidcError::Remote`].
    pub fn trusting(trust: Trust) -> Result<Self, OidcError> {
        Remote::new(&trust.discovery_url, trust.ca_pem.as_deref())?;
        Ok(Self { trust, keys: RwLock::default() })
    }

    /// The user of a token of this issuer; none for all others.
    pub async fn user_of(&self, token: &str) -> Option<UserInfo> {
        let jwt = Jwt::parse(token)?;
        let ours =
            jwt.claims["iss"] == *self.trust.issuer_url && self.trust.signing_algs.contains(&jwt.algorithm);
        if !ours {
            return None;
        }
        if !self.keys.read().await.keys.knows(&jwt.key_id)
            && let Err(error) = self.fetch().await
        {
            tracing::warn!(%error, issuer = self.trust.issuer_url, "the issuer's keys cannot be read");
        }
        let verified = self.keys.read().await.keys.verifies(&jwt);
        let user = if verified {
            user_of(&self.trust, &jwt.claims, epoch_seconds())
        } else {
            Err("signature".to_owned())
        };
        user.inspect_err(|why| tracing::debug!(why, "an ID token is refused")).ok()
    }

    /// Reads the keys again, unless the last few times were just now: whoever makes up key ids does not make us ask.
    async fn fetch(&self) -> Result<(), OidcError> {
        let mut known = self.keys.write().await;
        known.fetches.retain(|at| at.elapsed() < FETCH_INTERVAL);
        if known.fetches.len() >= MOST_FETCHES {
            return Ok(());
        }
        known.fetches.push(Instant::now());
        let ca = self.trust.ca_pem.as_deref();
        let document = Remote::new(&self.trust.discovery_url, ca)?.get(TIMEOUT).await?;
        let keys = document["jwks_uri"].as_str().filter(|_| document["issuer"] == *self.trust.issuer_url);
        let keys = Remote::new(keys.ok_or(OidcError::Discovery)?, ca)?.get(TIMEOUT).await?;
        known.keys = KeySet::of(&keys);
        Ok(())
    }
}

/// The flags as one issuer.
fn trust(config: OidcConfig) -> Trust {
    let prefix = match config.username_prefix.as_str() {
        "-" => String::new(),
        "" if config.username_claim != "email" => format!("{}#", config.issuer_url),
        prefix => prefix.to_owned(),
    };
    let groups = !config.groups_claim.is_empty();
    Trust {
        discovery_url: discovery_of(&config.issuer_url),
        issuer_url: config.issuer_url,
        audiences: vec![config.client_id],
        ca_pem: config.ca_pem,
        signing_algs: config.signing_algs,
        mappings: Mappings {
            required: config.required_claims,
            username: Source::Claim(config.username_claim, prefix),
            groups: groups.then_some(Source::Claim(config.groups_claim, config.groups_prefix)),
            ..Mappings::default()
        },
    }
}

/// The user of verified claims.
fn user_of(trust: &Trust, claims: &Value, now: i64) -> Result<UserInfo, String> {
    let known = |audience: &Value| trust.audiences.iter().any(|known| *audience == **known);
    let meant = match &claims["aud"] {
        Value::Array(audiences) => audiences.iter().any(known),
        audience => known(audience),
    };
    if !meant {
        return Err("audience".into());
    }
    let time = |claim: &str| claims[claim].as_f64();
    // Clocks differ: a token that is not valid yet is forgiven five minutes.
    if time("exp").is_none_or(|end| end <= now as f64)
        || time("nbf").is_some_and(|start| start > (now + 300) as f64)
    {
        return Err("time".into());
    }
    trust.mappings.user_of(claims)
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    fn config() -> OidcConfig {
        OidcConfig {
            issuer_url: "https://issuer".into(),
            client_id: "cox".into(),
            username_claim: "sub".into(),
            username_prefix: "https://issuer#".into(),
            groups_claim: "groups".into(),
            groups_prefix: "oidc:".into(),
            signing_algs: vec!["RS256".into()],
            required_claims: vec![("tenant".into(), "a".into())],
            ca_pem: None,
        }
    }

    #[test]
    fn claims_become_a_user() {
        let claims = json!({"aud": ["x", "cox"], "exp": 100, "sub": "me", "tenant": "a", "groups": ["dev"], "jti": "1"});
        let user = user_of(&trust(config()), &claims, 99).unwrap();
        assert_eq!(user.name, "https://issuer#me");
        assert_eq!(user.groups, ["oidc:dev", "system:authenticated"]);
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=1"]);
        for (field, value) in [
            ("aud", json!("other")),
            ("exp", json!(99)),
            ("exp", Value::Null),
            ("nbf", json!(1000)),
            ("sub", json!("")),
            ("tenant", json!("b")),
            ("groups", json!([1])),
        ] {
            let mut claims = claims.clone();
            claims[field] = value.clone();
            assert!(user_of(&trust(config()), &claims, 99).is_err(), "{field}: {value}");
        }
    }

    #[test]
    fn unverified_addresses_name_nobody() {
        let config =
            OidcConfig { username_claim: "email".into(), username_prefix: String::new(), ..config() };
        let claims = |verified: Value| json!({"aud": "cox", "exp": 100, "tenant": "a", "email": "a@b", "email_verified": verified});
        let trust = trust(config);
        assert_eq!(user_of(&trust, &claims(json!(true)), 1).unwrap().name, "a@b");
        assert!(user_of(&trust, &claims(json!(false)), 1).is_err());
    }

    #[test]
    fn a_configuration_that_trusts_everybody_is_refused() {
        let of = |issuer: &str, client: &str, alg: &str| {
            let config = OidcConfig {
                issuer_url: issuer.into(),
                client_id: client.into(),
                signing_algs: vec![alg.into()],
                ca_pem: Some(Vec::new()),
                ..config()
            };
            Oidc::new(config).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(of("http://issuer", "cox", "RS256").contains("https"));
        assert!(of("https://issuer", "", "RS256").contains("oidc-client-id"));
        assert!(of("https://issuer", "cox", "none").contains("unsupported signing algorithm none"));
    }
}
