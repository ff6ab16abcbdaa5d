//! Pulling from registries: mirrors, credentials, platform selection; layers come in parallel, resume
//! where a connection broke, and are verified before anything reads them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use coxswain_cri::v1::AuthConfig;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as Secret;
use oci_client::{Client, Reference as RegistryReference};
use tokio::io::AsyncWriteExt;

use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, Ingest, StoreError, diff_ids};
use super::{Descriptor, Index, Manifest, digest_of};

const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const PARALLEL_LAYERS: usize = 3;
const ATTEMPTS: usize = 5;

/// User name and password for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// How to reach one registry.
#[derive(Clone, Debug, Default)]
pub struct RegistryConfig {
    /// `host[:port]` as references name it.
    pub host: String,
    /// Hosts to ask first, in this order.
    pub mirrors: Vec<String>,
    /// Speak HTTP without TLS. Loopback addresses need no such permission.
    pub plain_http: bool,
    /// Certificates (PEM) to trust beside the system's.
    pub ca_pem: Option<Vec<u8>>,
    /// Credentials for pulls that bring none.
    pub auth: Option<RegistryAuth>,
}

/// Why an image did not come. The texts reach users through the kubelet's events.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No such repository, tag or digest.
    #[error("failed to resolve reference {reference:?}: {reference}: not found")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// The registry wants other credentials.
    #[error(
        "failed to resolve reference {reference:?}: pull access denied, repository does not exist or may \
         require authorization: {reason}"
    )]
    Denied {
        /// What was asked for.
        reference: String,
        /// The registry's words.
        reason: String,
    },
    /// The registry or the way to it failed.
    #[error("failed to pull {reference:?}: {reason}")]
    Registry {
        /// What was asked for.
        reference: String,
        /// What happened.
        reason: String,
    },
    /// What came could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<std::io::Error> for PullError {
    fn from(error: std::io::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Pulls into a store.
pub(crate) struct Puller {
    store: ImageStore,
    registries: Vec<RegistryConfig>,
}

/// One registry, ready to be asked.
struct Source {
    client: Client,
    reference: RegistryReference,
    secret: Secret,
    name: String,
}

impl Puller {
    pub fn new(store: ImageStore, registries: Vec<RegistryConfig>) -> Self {
        Self { store, registries }
    }

    /// Pulls `name`; mirrors that fail are passed over.
    pub async fn pull(&self, name: &str, auth: Option<&AuthConfig>) -> Result<ImageRecord, PullError> {
        let reference = Reference::parse(name).map_err(StoreError::from)?;
        let config = self.registries.iter().find(|registry| registry.host == reference.registry);
        let mirrors = config.map_or(&[][..], |config| &config.mirrors);
        let mut failure = None;
        for host in mirrors.iter().map(String::as_str).chain([reference.registry.as_str()]) {
            // A pod's credentials are for the registry it names, not for whoever mirrors it.
            let auth = auth.filter(|_| host == reference.registry);
            match self.pull_from(&self.source(host, &reference, auth)?, &reference).await {
                Ok(record) => return Ok(record),
                Err(error @ PullError::Store(_)) => return Err(error),
                Err(error) => {
                    tracing::debug!(host, %error, "registry did not serve the image");
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| PullError::NotFound { reference: reference.to_string() }))
    }

    fn source(
        &self,
        host: &str,
        reference: &Reference,
        auth: Option<&AuthConfig>,
    ) -> Result<Source, PullError> {
        let config = self.registries.iter().find(|registry| registry.host == host);
        let plain = is_loopback(host) || config.is_some_and(|config| config.plain_http);
        let certificates = config.and_then(|config| config.ca_pem.clone()).into_iter();
        let client = Client::new(ClientConfig {
            protocol: match plain {
                true => ClientProtocol::HttpsExcept(vec![host.to_owned()]),
                false => ClientProtocol::Https,
            },
            extra_root_certificates: certificates
                .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
                .collect(),
            connect_timeout: Some(std::time::Duration::from_secs(30)),
            read_timeout: Some(std::time::Duration::from_secs(60)),
            user_agent: concat!("coxswain/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        });
        let repository = reference.repository.clone();
        let (host, repository) = (host.to_owned(), repository);
        let target = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => RegistryReference::with_digest(host, repository, digest.clone()),
            (None, tag) => RegistryReference::with_tag(host, repository, tag.clone().unwrap_or_default()),
        };
        let own = config.and_then(|config| config.auth.as_ref());
        let secret = auth
            .and_then(secret)
            .or_else(|| own.map(|a| Secret::Basic(a.username.clone(), a.password.clone())));
        Ok(Source {
            client,
            reference: target,
            secret: secret.unwrap_or(Secret::Anonymous),
            name: reference.to_string(),
        })
    }

    async fn pull_from(&self, source: &Source, reference: &Reference) -> Result<ImageRecord, PullError> {
        let (bytes, digest) = source.manifest(&source.reference).await?;
        let expected = reference.digest.as_deref().unwrap_or(&digest);
        verify(&bytes, expected)?;
        let manifest = match serde_json::from_slice::<Index>(&bytes) {
            Ok(index) => {
                let platform =
                    index.for_this_machine().ok_or_else(|| source.failed("no match for this platform"))?;
                let entry = source.reference.clone_with_digest(platform.digest.clone());
                let (bytes, _) = source.manifest(&entry).await?;
                verify(&bytes, &platform.digest)?;
                parse_manifest(source, &bytes)?
            }
            Err(_) => parse_manifest(source, &bytes)?,
        };
        let store = self.store.clone();
        let ingest = Arc::new(blocking(move || Ok(store.ingest()?)).await?);
        let config_file = ingest.dir.join("config");
        source.download(&manifest.config, &config_file).await?;
        let config = tokio::fs::read(&config_file).await?;
        let blobs = self.download_layers(source, &manifest, &config, &ingest).await?;
        let store = self.store.clone();
        let size = manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + config.len() as u64;
        let (reference, digest) = (reference.clone(), expected.to_owned());
        blocking(move || unpack(&store, &ingest, config, &blobs, size, &reference, &digest)).await
    }

    /// Brings the layers that are not here; returns each one's file (absent ones need none).
    async fn download_layers(
        &self,
        source: &Source,
        manifest: &Manifest,
        config: &[u8],
        ingest: &Arc<Ingest>,
    ) -> Result<Vec<PathBuf>, PullError> {
        let diff_ids = diff_ids(config)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(source.failed("the configuration describes other layers"));
        }
        let mut layering = self.store.layering();
        let present: Vec<bool> =
            diff_ids.iter().map(|id| self.store.has_layer(&layering.advance(id))).collect();
        let jobs =
            manifest.layers.iter().cloned().zip(present).enumerate().map(|(index, (layer, present))| {
                let file = ingest.dir.join(format!("blob{index}"));
                async move {
                    if !present {
                        source.download(&layer, &file).await?;
                    }
                    Ok::<_, PullError>(file)
                }
            });
        futures::stream::iter(jobs).buffered(PARALLEL_LAYERS).try_collect().await
    }
}

fn unpack(
    store: &ImageStore,
    ingest: &Ingest,
    config: Vec<u8>,
    blobs: &[PathBuf],
    size: u64,
    reference: &Reference,
    digest: &str,
) -> Result<ImageRecord, PullError> {
    let mut layering = store.layering();
    for (diff_id, blob) in diff_ids(&config)?.iter().zip(blobs) {
        store.add_layer(&mut layering, ingest, diff_id, || std::fs::File::open(blob))?;
        let _ = std::fs::remove_file(blob);
    }
    Ok(store.commit(config, layering, size, Some(reference), Some(digest))?)
}

impl Source {
    async fn manifest(&self, reference: &RegistryReference) -> Result<(bytes::Bytes, String), PullError> {
        let answer = self.client.pull_manifest_raw(reference, &self.secret, &ACCEPTED).await;
        answer.map_err(|error| self.error(&error))
    }

    /// Downloads a blob to a file, going on where a connection broke, and verifies it.
    async fn download(&self, blob: &Descriptor, file: &Path) -> Result<(), PullError> {
        let mut output = tokio::fs::File::create(file).await?;
        let descriptor = OciDescriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.clone(),
            size: blob.size as i64,
            ..Default::default()
        };
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut offset = 0u64;
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            match self.download_from(&descriptor, &mut output, &mut hash, &mut offset).await {
                Ok(()) => {
                    output.flush().await?;
                    let actual = format!("sha256:{}", hex::encode(hash.finish()));
                    let expected = blob.digest.clone();
                    return if actual == expected {
                        Ok(())
                    } else {
                        Err(StoreError::Digest { expected, actual }.into())
                    };
                }
                Err(
                    error @ (PullError::NotFound { .. } | PullError::Denied { .. } | PullError::Store(_)),
                ) => {
                    return Err(error);
                }
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.failed("no attempt succeeded")))
    }

    async fn download_from(
        &self,
        blob: &OciDescriptor,
        output: &mut tokio::fs::File,
        hash: &mut ring::digest::Context,
        offset: &mut u64,
    ) -> Result<(), PullError> {
        let mut stream = if *offset == 0 {
            let whole = self.client.pull_blob_stream(&self.reference, blob).await;
            whole.map_err(|error| self.error(&error))?.stream
        } else {
            let rest = self.client.pull_blob_stream_partial(&self.reference, blob, *offset, None).await;
            match rest.map_err(|error| self.error(&error))? {
                BlobResponse::Partial(part) => part.stream,
                BlobResponse::Full(whole) => {
                    output.set_len(0).await?;
                    std::io::Seek::rewind(&mut output.try_clone().await?.into_std().await)?;
                    *hash = ring::digest::Context::new(&ring::digest::SHA256);
                    *offset = 0;
                    whole.stream
                }
            }
        };
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.failed(&error.to_string()))?;
            hash.update(&chunk);
            output.write_all(&chunk).await?;
            *offset += chunk.len() as u64;
        }
        match blob.size > 0 && *offset < blob.size as u64 {
            true => Err(self.failed("the connection ended early")),
            false => Ok(()),
        }
    }

    fn failed(&self, reason: &str) -> PullError {
        PullError::Registry { reference: self.name.clone(), reason: reason.to_owned() }
    }

    fn error(&self, error: &OciDistributionError) -> PullError {
        let reference = self.name.clone();
        let not_found = |code: &OciErrorCode| {
            matches!(code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
        };
        match error {
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => PullError::NotFound { reference },
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|e| not_found(&e.code)) =>
            {
                PullError::NotFound { reference }
            }
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403, .. } => {
                PullError::Denied { reference, reason: error.to_string() }
            }
            OciDistributionError::RegistryError { envelope, .. }
                if envelope
                    .errors
                    .iter()
                    .any(|e| matches!(e.code, OciErrorCode::Unauthorized | OciErrorCode::Denied)) =>
            {
                PullError::Denied { reference, reason: error.to_string() }
            }
            _ => PullError::Registry { reference, reason: chain(error) },
        }
    }
}

/// An error with its causes; HTTP clients hide the telling one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut current = error.source();
    while let Some(cause) = current {
        text = format!("{text}: {cause}");
        current = cause.source();
    }
    text
}

fn parse_manifest(source: &Source, bytes: &[u8]) -> Result<Manifest, PullError> {
    serde_json::from_slice(bytes).map_err(|error| source.failed(&format!("unusable manifest: {error}")))
}

fn verify(bytes: &[u8], expected: &str) -> Result<(), StoreError> {
    let actual = digest_of(bytes);
    if actual == expected {
        Ok(())
    } else {
        Err(StoreError::Digest { expected: expected.to_owned(), actual })
    }
}

/// Loopback registries speak plain HTTP, as with every container tool.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The pod's pull secret.
fn secret(auth: &AuthConfig) -> Option<Secret> {
    if !auth.registry_token.is_empty() {
        return Some(Secret::Bearer(auth.registry_token.clone()));
    }
    if !auth.username.is_empty() {
        return Some(Secret::Basic(auth.username.clone(), auth.password.clone()));
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    (!username.is_empty())
        .then(|| Secret::Basic(username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PullError::from(std::io::Error::other(error)))?
}
