//! Certificates in DER (RFC 5280), signed with the cluster's authority.
//!
//! Subject, key and names are taken over from the request byte for byte, however often an attribute is repeated.

use std::fmt;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::{Pem, parse_x509_pem};

use super::plan::Request;

/// Clocks of those who read the certificate may be this far behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
/// The encoded `true` of a critical extension.
const CRITICAL: &[u8] = &[0x01, 0x01, 0xff];
/// AlgorithmIdentifier of ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// The authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its certificate cannot be read.
    #[error("the authority's certificate cannot be read")]
    Certificate,
    /// Its key cannot be read.
    #[error("the authority's key is not a P-256 key in PKCS#8")]
    Key,
    /// The authority itself has expired.
    #[error("the authority's certificate has expired")]
    Expired,
    /// No randomness, or the key refused.
    #[error("the certificate could not be signed")]
    Sign,
}

/// What certificates are signed with.
pub struct Authority {
    /// The subject of its certificate, DER.
    name: Vec<u8>,
    /// Its key's id; empty where the certificate names none.
    key_id: Vec<u8>,
    expires: Timestamp,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority of a certificate in PEM and its key in PKCS#8 (DER, P-256).
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`], [`AuthorityError::Key`].
    pub fn new(certificate_pem: &str, key: &[u8]) -> Result<Self, AuthorityError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key, &random);
        let key = key.map_err(|_| AuthorityError::Key)?;
        let unreadable = AuthorityError::Certificate;
        let Ok((_, pem)) = parse_x509_pem(certificate_pem.as_bytes()) else { return Err(unreadable) };
        let certificate = Pem::parse_x509(&pem).map_err(|_| AuthorityError::Certificate)?;
        let key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        let expires = Timestamp::from_second(certificate.validity().not_after.timestamp());
        Ok(Self {
            name: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_default(),
            expires: expires.map_err(|_| AuthorityError::Certificate)?,
            key,
            random,
        })
    }

    /// A certificate in PEM for what a request asks, valid for a while, but never longer than the authority.
    ///
    /// # Errors
    /// [`AuthorityError::Expired`], [`AuthorityError::Sign`].
    pub fn issue(
        &self,
        request: &Request,
        usages: &[String],
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<String, AuthorityError> {
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let end = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX).min(self.expires);
        let start = now.saturating_sub(BACKDATE).unwrap_or(now);
        if end <= now {
            return Err(AuthorityError::Expired);
        }
        let mut serial = [0; 16];
        self.random.fill(&mut serial).map_err(|_| AuthorityError::Sign)?;
        // Positive, and without leading zeros.
        serial[0] = serial[0] & 0x7f | 0x40;
        let signed = tlv(
            SEQUENCE,
            &[
                &[0xa0, 0x03, INTEGER, 0x01, 0x02],
                &tlv(INTEGER, &[&serial]),
                ECDSA_SHA256,
                &self.name,
                &tlv(SEQUENCE, &[&time(start), &time(end)]),
                &request.subject,
                &request.public_key,
                &tlv(0xa3, &[&tlv(SEQUENCE, &[&self.extensions(request, usages)])]),
            ],
        );
        let signature = self.key.sign(&self.random, &signed).map_err(|_| AuthorityError::Sign)?;
        let certificate =
            tlv(SEQUENCE, &[&signed, ECDSA_SHA256, &tlv(BIT_STRING, &[&[0], signature.as_ref()])]);
        Ok(pem(&certificate))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> Vec<u8> {
        let has = |usage: &str| usages.iter().any(|given| given == usage);
        let bits = if has("digital signature") { 0x80 } else { 0 }
            | if has("key encipherment") { 0x20_u8 } else { 0 };
        let mut extensions = Vec::new();
        if bits != 0 {
            let unused = bits.trailing_zeros().to_be_bytes()[3];
            extensions.extend(extension(KEY_USAGE, CRITICAL, &tlv(BIT_STRING, &[&[unused, bits]])));
        }
        let purposes: Vec<Vec<u8>> = [("server auth", SERVER_AUTH), ("client auth", CLIENT_AUTH)]
            .iter()
            .filter(|(usage, _)| has(usage))
            .map(|(_, purpose)| tlv(0x06, &[purpose]))
            .collect();
        if !purposes.is_empty() {
            extensions.extend(extension(EXTENDED_KEY_USAGE, &[], &tlv(SEQUENCE, &[&purposes.concat()])));
        }
        extensions.extend(extension(BASIC_CONSTRAINTS, CRITICAL, &tlv(SEQUENCE, &[])));
        if !self.key_id.is_empty() {
            let id = tlv(SEQUENCE, &[&tlv(0x80, &[&self.key_id])]);
            extensions.extend(extension(AUTHORITY_KEY, &[], &id));
        }
        if !request.alternative_names.is_empty() {
            extensions.extend(extension(ALTERNATIVE_NAMES, &[], &request.alternative_names));
        }
        extensions
    }
}

fn extension(id: &[u8], critical: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[&tlv(0x06, &[id]), critical, &tlv(OCTET_STRING, &[value])])
}

/// Tag, length and value.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let length = value.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut bytes = vec![tag];
    match significant {
        [] => bytes.push(0),
        [short] if *short < 0x80 => bytes.push(*short),
        // At most eight bytes.
        long => {
            bytes.push(0x80 | long.len().to_be_bytes()[7]);
            bytes.extend_from_slice(long);
        }
    }
    bytes.extend(value);
    bytes
}

/// UTCTime up to 2049, GeneralizedTime from then on.
fn time(at: Timestamp) -> Vec<u8> {
    let full = at.strftime("%Y%m%d%H%M%SZ").to_string();
    match full.as_str() < "2050" {
        true => tlv(0x17, &[&full.as_bytes()[2..]]),
        false => tlv(0x18, &[full.as_bytes()]),
    }
}

fn pem(der: &[u8]) -> String {
    let text = serde_json::to_value(k8s_openapi::ByteString(der.to_vec())).unwrap_or_default();
    let lines: Vec<&str> = text
        .as_str()
        .unwrap_or_default()
        .as_bytes()
        .chunks(64)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
