//! Signatures of JSON Web Tokens by the keys of a JSON Web Key Set (RFC 7515, RFC 7517, RFC 7518).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use coxswain_meta::json::Value;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

/// The algorithms that can be verified.
pub const ALGORITHMS: &[&str] = &["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];

/// A token, taken apart.
pub struct Jwt<'a> {
    /// `alg`.
    pub algorithm: String,
    /// `kid`; empty without one.
    pub key_id: String,
    /// The claims, not to be believed before the signature is.
    pub claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    /// Takes a token apart; none where it is no JWT.
    pub fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let document = |part: &str| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
        let (header, claims) = (document(header)?, document(claims)?);
        Some(Self {
            algorithm: header["alg"].as_str()?.to_owned(),
            key_id: header["kid"].as_str().unwrap_or_default().to_owned(),
            claims,
            signed,
            signature: BASE64.decode(signature).ok()?,
        })
    }
}

/// Public keys by their ids.
#[derive(Clone, Default)]
pub struct KeySet(Vec<Value>);

impl KeySet {
    /// The keys of a key set document.
    pub fn of(document: &Value) -> Self {
        Self(document["keys"].as_array().cloned().unwrap_or_default())
    }

    /// Whether a key of that id is known; any key will do for a token without one.
    pub fn knows(&self, key_id: &str) -> bool {
        self.candidates(key_id).next().is_some()
    }

    fn candidates<'a>(&'a self, key_id: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |key| key_id.is_empty() || key["kid"] == key_id)
    }

    /// Whether one of the keys signed the token.
    pub fn verifies(&self, token: &Jwt) -> bool {
        self.candidates(&token.key_id).any(|key| verifies(key, token).is_some())
    }
}

fn verifies(key: &Value, token: &Jwt) -> Option<()> {
    let (message, signature) = (token.signed.as_bytes(), &token.signature);
    let part = |name: &str| BASE64.decode(key[name].as_str()?.trim_end_matches('=')).ok();
    if key["use"].as_str().is_some_and(|meant| meant != "sig") {
        return None;
    }
    let rsa = |parameters: &RsaParameters| {
        let key = RsaPublicKeyComponents { n: part("n")?, e: part("e")? };
        key.verify(parameters, message, signature).ok()
    };
    let point = |curve: &str, bytes: usize| {
        let (x, y) = (part("x")?, part("y")?);
        (key["crv"] == curve && x.len() == bytes && y.len() == bytes).then(|| [&[4][..], &x, &y].concat())
    };
    match (key["kty"].as_str()?, token.algorithm.as_str()) {
        ("RSA", "RS256") => rsa(&RSA_PKCS1_2048_8192_SHA256),
        ("RSA", "RS384") => rsa(&RSA_PKCS1_2048_8192_SHA384),
        ("RSA", "RS512") => rsa(&RSA_PKCS1_2048_8192_SHA512),
        ("RSA", "PS256") => rsa(&RSA_PSS_2048_8192_SHA256),
        ("RSA", "PS384") => rsa(&RSA_PSS_2048_8192_SHA384),
        ("RSA", "PS512") => rsa(&RSA_PSS_2048_8192_SHA512),
        ("EC", "ES256") => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point("P-256", 32)?)
            .verify(message, signature)
            .ok(),
        ("EC", "ES384") => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point("P-384", 48)?)
            .verify(message, signature)
            .ok(),
        _ => None,
    }
}
