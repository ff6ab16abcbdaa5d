//! Users that a front proxy names in headers, under a certificate that is trusted for that.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#authenticating-proxy>

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::UserInfo;

/// Which proxies are trusted, and what they write where.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderConfig {
    /// The authorities of the proxies' certificates, PEM.
    pub ca_pem: String,
    /// The names that proxies may have; empty for any.
    pub allowed_names: Vec<String>,
    /// Headers that name the user; the first that is there counts.
    pub username_headers: Vec<String>,
    /// Headers that carry the user's uid.
    pub uid_headers: Vec<String>,
    /// Headers that list groups.
    pub group_headers: Vec<String>,
    /// What headers begin with that carry extra facts.
    pub extra_headers_prefixes: Vec<String>,
}

impl RequestHeaderConfig {
    /// The server's own proxy, and the headers that everybody uses.
    pub fn standard(ca_pem: &str) -> Self {
        let of = |name: &str| vec![name.to_owned()];
        Self {
            ca_pem: ca_pem.to_owned(),
            allowed_names: of("front-proxy-client"),
            username_headers: of("X-Remote-User"),
            uid_headers: of("X-Remote-Uid"),
            group_headers: of("X-Remote-Group"),
            extra_headers_prefixes: of("X-Remote-Extra-"),
        }
    }
}

/// Proofs of certificates against one set of authorities.
#[derive(Clone)]
pub struct Authorities(Arc<dyn ClientCertVerifier>);

impl Authorities {
    /// The authorities of a PEM bundle.
    ///
    /// # Errors
    /// What cannot be read of the bundle.
    pub fn new(pem: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self(verifier.map_err(|error| error.to_string())?))
    }

    /// Whether they signed a certificate, the first of its chain, for a client.
    pub fn signed(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((certificate, intermediates)) = chain.split_first() else { return false };
        self.0.verify_client_cert(certificate, intermediates, UnixTime::now()).is_ok()
    }
}

/// Whether a proxy of this certificate may name users.
pub fn is_allowed(config: &RequestHeaderConfig, certificate: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    config.allowed_names.is_empty()
        || config.allowed_names.iter().any(|allowed| Some(allowed.as_str()) == name)
}

/// The user that headers name, and the headers taken for that.
pub fn user_of(config: &RequestHeaderConfig, headers: &HeaderMap) -> Option<UserInfo> {
    let values = |name: &String| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let first = |names: &[String]| {
        names.iter().flat_map(values).map(str::trim).find(|value| !value.is_empty()).map(str::to_owned)
    };
    let name = first(&config.username_headers)?;
    let groups: Vec<&str> = config.group_headers.iter().flat_map(values).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        let prefix = config
            .extra_headers_prefixes
            .iter()
            .find_map(|prefix| header.as_str().strip_prefix(prefix.to_ascii_lowercase().as_str()));
        if let (Some(key), Ok(value)) = (prefix, value.to_str()) {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_default().push(value.to_owned());
        }
    }
    let mut user = UserInfo::new(name, &groups);
    (user.uid, user.extra) = (first(&config.uid_headers).unwrap_or_default(), extra);
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_the_user() {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let config = RequestHeaderConfig {
            username_headers: of(&["X-Remote-User", "X-Other-User"]),
            group_headers: of(&["X-Remote-Group"]),
            extra_headers_prefixes: of(&["X-Remote-Extra-"]),
            ..RequestHeaderConfig::default()
        };
        let mut headers = HeaderMap::new();
        assert!(user_of(&config, &headers).is_none());
        for (name, value) in [
            ("x-other-user", "ann"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-a%2fb", "1"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let user = user_of(&config, &headers).unwrap();
        assert_eq!((user.name.as_str(), &user.extra["a/b"][0]), ("ann", &"1".to_owned()));
        assert_eq!(user.groups, ["dev", "ops", "system:authenticated"]);
    }
}
