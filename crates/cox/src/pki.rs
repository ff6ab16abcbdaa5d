//! The cluster's keys: one authority (ECDSA P-256) and the certificates it signs at every start.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_apiserver::FrontProxy;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use time::{Duration, OffsetDateTime};

use crate::files;
use crate::node::NodeIdentity;

const AUTHORITY_YEARS: i64 = 10;
const LEAF_DAYS: i64 = 365;
/// Clocks of clients may be this far behind.
const BACKDATE: Duration = Duration::hours(1);

/// What the cluster signs with.
pub struct Pki {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    /// The key of service account tokens, PKCS#8.
    pub service_account_key: Vec<u8>,
    /// The keys that open secrets, 32 bytes each; the first seals.
    pub sealing_key: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    /// Signs what names users to other servers, and nothing else.
    front_proxy: (String, Issuer<'static, KeyPair>),
}

/// A certificate with its key.
pub struct Leaf {
    /// PEM.
    pub certificate_pem: String,
    /// PEM, PKCS#8.
    pub key_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Leaf {
    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// The length of a sealing key.
pub const SEALING_KEY_LEN: usize = 32;

/// A fresh key that seals secrets.
pub fn new_sealing_key() -> anyhow::Result<Vec<u8>> {
    let mut key = vec![0; SEALING_KEY_LEN];
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow!("no randomness for the sealing key"))?;
    Ok(key)
}

/// For whom a certificate is.
pub struct Subject<'a> {
    /// CN: the user name.
    pub name: &'a str,
    /// O: the group; empty for none.
    pub group: &'a str,
    /// The addresses and names it serves under.
    pub served_as: Vec<SanType>,
}

impl Pki {
    /// Reads the keys of a directory, and makes those that are missing.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        files::private_dir(dir)?;
        let (ca_pem, issuer) = open_authority(dir, "ca", "coxswain-ca")?;
        let front_proxy = open_authority(dir, "front-proxy-ca", "coxswain-front-proxy-ca")?;
        let service_account_key = files::read_or_make(&dir.join("service-account.key"), || {
            anyhow::Ok(KeyPair::generate()?.serialize_der())
        })?;
        let sealing_key = files::read_or_make(&dir.join(crate::datastore::SEALING), new_sealing_key)?;
        Ok(Self { ca_pem, service_account_key, sealing_key, issuer, front_proxy })
    }

    /// The authority's key, PKCS#8.
    pub fn authority_key(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Signs a certificate for a fresh key.
    pub fn sign(&self, subject: Subject<'_>) -> anyhow::Result<Leaf> {
        sign(subject, &self.issuer)
    }

    /// What a node's own API is served with.
    pub fn node_serving(&self, node: &NodeIdentity) -> anyhow::Result<Arc<SingleCertAndKey>> {
        let leaf =
            self.sign(Subject { name: &node.user(), group: "system:nodes", served_as: node.served_as()? })?;
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.key_der())?;
        Ok(Arc::new(CertifiedKey::new(vec![leaf.certificate.clone()], key).into()))
    }

    /// What the API server shows to aggregated servers.
    pub fn front_proxy(&self) -> anyhow::Result<FrontProxy> {
        let (ca_pem, issuer) = &self.front_proxy;
        let leaf = sign(Subject { name: "front-proxy-client", group: "", served_as: Vec::new() }, issuer)?;
        let key = rustls::crypto::ring::sign::any_supported_type(&leaf.key_der())?;
        let identity = Arc::new(CertifiedKey::new(vec![leaf.certificate.clone()], key));
        Ok(FrontProxy { ca_pem: ca_pem.clone(), identity })
    }
}

/// Signs a certificate for a fresh key.
fn sign(subject: Subject<'_>, issuer: &Issuer<'static, KeyPair>) -> anyhow::Result<Leaf> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.name);
    if !subject.group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, subject.group);
    }
    (params.not_before, params.not_after) = validity(Duration::days(LEAF_DAYS));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.served_as.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names = subject.served_as;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Leaf {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        certificate: certificate.der().clone(),
        key: key.serialize_der(),
    })
}

impl Pki {
    fn roots(&self) -> anyhow::Result<Arc<rustls::RootCertStore>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority()?)?;
        Ok(Arc::new(roots))
    }

    fn authority(&self) -> anyhow::Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_slice(self.ca_pem.as_bytes())?)
    }

    /// The authority of the API server as a front proxy, PEM.
    pub fn front_proxy_ca(&self) -> &str {
        &self.front_proxy.0
    }

    /// TLS of a server that asks for, but does not insist on, certificates of the authority or of proxies'. It shows the authority's own
    /// certificate too: a node that joins knows it by its pin only.
    pub fn server_tls(&self, leaf: &Leaf, proxies_pem: &str) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority()?)?;
        for certificate in CertificateDer::pem_slice_iter(proxies_pem.as_bytes()) {
            roots.add(certificate?)?;
        }
        let verifier = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build()?;
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.certificate.clone(), self.authority()?], leaf.key_der())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS of a client that trusts the authority alone.
    pub fn client_tls(&self, leaf: &Leaf) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![leaf.certificate.clone()], leaf.key_der())?;
        Ok(Arc::new(config))
    }

    /// A kubeconfig for a certificate.
    pub fn kubeconfig(&self, server: &str, user: &str, leaf: &Leaf) -> String {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: default\nclusters:\n- name: default\n  cluster:\n    \
             server: {server}\n    certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: default\n  context:\n    \
             cluster: default\n    user: {user}\n",
            encode(&self.ca_pem),
            encode(&leaf.certificate_pem),
            encode(&leaf.key_pem)
        )
    }
}

fn validity(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + length)
}

/// Reads an authority's key and certificate, PEM, or makes them.
fn open_authority(dir: &Path, file: &str, name: &str) -> anyhow::Result<(String, Issuer<'static, KeyPair>)> {
    let key = files::read_or_make(&dir.join(format!("{file}.key")), || {
        anyhow::Ok(KeyPair::generate()?.serialize_pem().into_bytes())
    })?;
    let key = KeyPair::from_pem(std::str::from_utf8(&key)?).with_context(|| format!("{file}.key"))?;
    let certificate = files::read_or_make(&dir.join(format!("{file}.crt")), || {
        anyhow::Ok(authority(name)?.self_signed(&key)?.pem().into_bytes())
    })?;
    Ok((String::from_utf8(certificate)?, Issuer::new(authority(name)?, key)))
}

fn authority(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = validity(Duration::days(365 * AUTHORITY_YEARS));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// The names and addresses of an API server.
pub fn api_server_names(addresses: &[IpAddr], node_name: &str) -> anyhow::Result<Vec<SanType>> {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        node_name,
    ];
    let names = names.iter().map(|name| Ok(SanType::DnsName((*name).try_into()?)));
    names.chain(addresses.iter().map(|address| Ok(SanType::IpAddress(*address)))).collect()
}
