//! A certificate that the cluster signs for this node: asked for by a CertificateSigningRequest, kept in a file with its
//! key, and replaced while it is in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use coxswain_client::Client;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use crate::files;
use crate::node::NodeIdentity;

/// How long a request may stay undecided.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// The certificate in use, if there is one.
#[derive(Debug, Default)]
pub struct Held(RwLock<Option<Arc<CertifiedKey>>>);

impl Held {
    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for Held {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

impl ResolvesClientCert for Held {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get()
    }

    fn has_certs(&self) -> bool {
        self.get().is_some()
    }
}

/// A certificate of this node, with its file.
pub struct Certificate {
    file: PathBuf,
    signer: &'static str,
    usage: &'static str,
    wanted: CertificateParams,
    held: Arc<Held>,
}

impl Certificate {
    /// The one the node shows to the API server.
    pub fn of_client(dir: &Path, node: &NodeIdentity) -> anyhow::Result<Self> {
        let signer = "kubernetes.io/kube-apiserver-client-kubelet";
        Self::open(dir.join("kubelet-client.pem"), signer, "client auth", wanted(node))
    }

    /// The one the node's own API is served with.
    pub fn of_server(dir: &Path, node: &NodeIdentity) -> anyhow::Result<Self> {
        let mut wanted = wanted(node);
        wanted.subject_alt_names = node.served_as()?;
        Self::open(dir.join("kubelet-server.pem"), "kubernetes.io/kubelet-serving", "server auth", wanted)
    }

    fn open(
        file: PathBuf,
        signer: &'static str,
        usage: &'static str,
        wanted: CertificateParams,
    ) -> anyhow::Result<Self> {
        let this = Self { file, signer, usage, wanted, held: Arc::default() };
        if let Ok(pem) = std::fs::read(&this.file) {
            this.held.set(read(&pem).with_context(|| this.file.display().to_string())?);
        }
        Ok(this)
    }

    /// What is in use.
    pub fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Whether there is one, and it has not expired.
    pub fn is_valid(&self) -> bool {
        validity(&self.held).is_some_and(|(_, end)| OffsetDateTime::now_utc() < end)
    }

    /// Asks for a new one: the key and what was signed, as PEM.
    pub async fn ask(&self, client: &Client) -> anyhow::Result<Vec<u8>> {
        let key = KeyPair::generate()?;
        let request = self.wanted.serialize_request(&key)?.pem()?;
        let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
        let asked = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("node-csr-".to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: self.signer.to_owned(),
                usages: Some(vec!["digital signature".to_owned(), self.usage.to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let asked = requests.create(&PostParams::default(), &asked).await?;
        let name = asked.metadata.name.context("a request without a name")?;
        let decided = |request: Option<&CertificateSigningRequest>| request.is_none_or(is_decided);
        let answer = tokio::time::timeout(PATIENCE, await_condition(requests, &name, decided)).await;
        let answer = answer.with_context(|| format!("the request {name} is not decided"))??;
        let answer = answer.with_context(|| format!("the request {name} is gone"))?;
        let certificate = answer.status.as_ref().and_then(|status| status.certificate.as_ref());
        let certificate = certificate.with_context(|| format!("the request {name} was refused"))?;
        let mut pem = key.serialize_pem().into_bytes();
        pem.extend_from_slice(&certificate.0);
        Ok(pem)
    }

    /// Takes what was asked for into use.
    pub fn take(&self, pem: &[u8]) -> anyhow::Result<()> {
        let taken = read(pem)?;
        files::write_private(&self.file, pem)?;
        self.held.set(taken);
        Ok(())
    }

    /// Replaces it when four fifths of its time have passed, again and again.
    pub async fn keep(&self, client: &Client) {
        loop {
            let due = validity(&self.held).map(|(begin, end)| begin + (end - begin) * 0.8);
            let left = due.map_or(time::Duration::ZERO, |due| due - OffsetDateTime::now_utc());
            tokio::time::sleep(left.try_into().unwrap_or_default()).await;
            if let Err(error) = self.ask(client).await.and_then(|pem| self.take(&pem)) {
                tracing::warn!(error = format!("{error:#}"), signer = self.signer, "no new certificate yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The subject that makes the holder this node.
fn wanted(node: &NodeIdentity) -> CertificateParams {
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    wanted.distinguished_name.push(DnType::CommonName, node.user());
    wanted
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let refused = |condition: &str| ["Denied", "Failed"].contains(&condition);
    status.certificate.is_some()
        || status.conditions.iter().flatten().any(|condition| refused(&condition.type_))
}

/// A key and its certificates, from PEM.
fn read(pem: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pem)?;
    Ok(CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&key)?))
}

fn validity(held: &Held) -> Option<(OffsetDateTime, OffsetDateTime)> {
    let held = held.get()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(held.cert.first()?).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}
