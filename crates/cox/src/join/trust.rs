//! Whom a node believes before it has joined: the authority whose key has the pin in its token, as `kubeadm join` does.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469), `sha256:HEX` in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
        Ok(Self(digest.as_ref().try_into()?))
    }
}

impl FromStr for Pin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let hex = text.strip_prefix("sha256:").context("a pin starts with sha256:")?;
        anyhow::ensure!(hex.len() == 64 && hex.is_ascii(), "a pin has 64 hexadecimal digits");
        let mut pin = [0; 32];
        for (at, byte) in pin.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).context("a pin is hexadecimal")?;
        }
        Ok(Self(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The certificates of a PEM file as what to trust.
pub fn roots(pem: &str) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

/// Trusts a server that shows, besides its own, the pinned authority's certificate, and is certified by it.
#[derive(Debug)]
pub struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
    authority: OnceLock<CertificateDer<'static>>,
}

impl Pinned {
    /// Trusts the authority with this pin.
    pub fn new(pin: Pin) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Self { pin, provider, authority: OnceLock::new() }
    }

    /// The authority, once a server has shown it.
    pub fn authority_pem(&self) -> Option<String> {
        let encoded = BASE64_STANDARD.encode(self.authority.get()?);
        // Base64 is ASCII.
        let lines: Vec<_> = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        Some(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = others.iter().find(|other| Pin::of(other).is_ok_and(|pin| pin == self.pin));
        let authority = authority.ok_or_else(|| {
            Error::General("the server does not show the authority that the token names".to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(certificate, &[], name, ocsp, now)?;
        self.authority.get_or_init(|| authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
