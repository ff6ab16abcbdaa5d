//! Service account tokens: JWTs (RFC 7519) signed with ES256.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use coxswain_meta::json::{Value, json};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};

/// Clock difference that is forgiven.
const LEEWAY_SECONDS: i64 = 10;

/// Why a token was not made or not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key is no PKCS#8 P-256 key.
    #[error("the service account key is not a P-256 key")]
    Key,
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign,
    /// The token is no JWT of ours.
    #[error("the token is malformed")]
    Malformed,
    /// The signature, issuer or time is wrong.
    #[error("the token is not valid")]
    Invalid,
}

/// Name and uid of an object that a token is bound to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bound {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kubernetes {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Bound,
    /// The pod, for tokens of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// The pod's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    /// The secret, for tokens of secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
}

/// The claims of a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry; tokens kept in secrets have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Token id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    /// Not before.
    #[serde(default)]
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

/// Signs and verifies the tokens of the cluster.
pub struct TokenAuthority {
    /// `iss`, and the audience of the API server.
    pub issuer: String,
    key: EcdsaKeyPair,
    key_id: String,
}

impl TokenAuthority {
    /// An authority on a PKCS#8 (DER) P-256 key.
    ///
    /// # Errors
    /// [`TokenError::Key`].
    pub fn new(issuer: &str, pkcs8: &[u8]) -> Result<Self, TokenError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|_| TokenError::Key)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { issuer: issuer.to_owned(), key_id: BASE64.encode(digest), key })
    }

    /// A signed token.
    ///
    /// # Errors
    /// [`TokenError::Sign`].
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = json!({ "alg": "ES256", "kid": self.key_id }).to_string();
        let claims = serde_json::to_vec(claims).map_err(|_| TokenError::Sign)?;
        let mut token = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature =
            self.key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| TokenError::Sign)?;
        token.push('.');
        token.push_str(&BASE64.encode(signature.as_ref()));
        Ok(token)
    }

    /// The claims of a token whose signature, issuer and times hold. Audience and bound objects are the caller's to check.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], [`TokenError::Invalid`].
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let claims = signed.split_once('.').ok_or(TokenError::Malformed)?.1;
        let signature = BASE64.decode(signature).map_err(|_| TokenError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Invalid)?;
        let claims = BASE64.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        let now = epoch_seconds();
        let current =
            claims.nbf <= now + LEEWAY_SECONDS && claims.exp.is_none_or(|end| now - LEEWAY_SECONDS < end);
        if claims.iss == self.issuer && current { Ok(claims) } else { Err(TokenError::Invalid) }
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        json!({ "keys": [{ "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65]) }] })
    }
}

/// Seconds since the epoch.
pub fn epoch_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> TokenAuthority {
        let key =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        TokenAuthority::new("https://issuer", key.as_ref()).unwrap()
    }

    #[test]
    fn only_own_current_untouched_tokens_verify() {
        let (ours, theirs) = (authority(), authority());
        let claims = |end: i64| Claims {
            iss: "https://issuer".into(),
            sub: "s".into(),
            exp: Some(epoch_seconds() + end),
            ..Claims::default()
        };
        let token = ours.sign(&claims(60)).unwrap();
        assert_eq!(ours.verify(&token).unwrap().sub, "s");
        assert!(theirs.verify(&token).is_err());
        assert!(ours.verify(&ours.sign(&claims(-60)).unwrap()).is_err());
        let forged = format!("{}.{}", token.split_once('.').unwrap().0, "e30.AAAA");
        assert!(ours.verify(&forged).is_err() && ours.verify("x").is_err());
    }
}
