//! Services outside of the cluster that the server itself asks: OIDC issuers, webhooks of authentication, authorization and
//! audit. Where they are and how they are trusted is an URL, or a file in the form of a kubeconfig.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use coxswain_api::schema;
use coxswain_meta::json::Value;
use http::header::{self, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::body::Body;
use crate::webhook::trusting;

const LARGEST_ANSWER_BYTES: usize = 8 << 20;

/// A service cannot be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The file that describes it.
    #[error("{0}: {1}")]
    File(String, String),
    /// Its URL.
    #[error("{0:?} is no URL of http or https")]
    Url(String),
    /// How it is trusted.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection or the exchange.
    #[error("asking {0}: {1}")]
    Exchange(String, String),
    /// Its answer is no success.
    #[error("{0} answered {1}")]
    Refused(String, u16),
}

/// One service.
#[derive(Clone)]
pub struct Remote {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    authorization: Option<HeaderValue>,
}

impl Remote {
    /// The service at an URL, trusted by a PEM bundle, or by the system's where none is given.
    ///
    /// # Errors
    /// [`RemoteError::Url`], [`RemoteError::Tls`].
    pub fn new(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, RemoteError> {
        let tls = match (url.starts_with("https:"), ca_pem) {
            (false, _) => None,
            (true, Some(pem)) => Some(trusting(Some(pem), None).map_err(RemoteError::Tls)?),
            (true, None) => Some(system_trust()?),
        };
        Self::with(url, tls, None, None)
    }

    fn with(
        url: &str,
        tls: Option<Arc<ClientConfig>>,
        server_name: Option<&str>,
        authorization: Option<HeaderValue>,
    ) -> Result<Self, RemoteError> {
        let unusable = || RemoteError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| unusable())?;
        let host = uri.host().ok_or_else(unusable)?.trim_matches(['[', ']']).to_owned();
        let (tls, port) = match (uri.scheme_str(), tls) {
            (Some("https"), Some(tls)) => {
                let name = server_name.unwrap_or(&host).to_owned();
                let name = ServerName::try_from(name).map_err(|error| RemoteError::Tls(error.to_string()))?;
                (Some((tls, name)), 443)
            }
            (Some("http"), _) => (None, 80),
            _ => return Err(unusable()),
        };
        Ok(Self { port: uri.port_u16().unwrap_or(port), uri, host, tls, authorization })
    }

    /// The current context of a file in the form of a kubeconfig.
    ///
    /// # Errors
    /// [`RemoteError::File`] and what the URL and the trust in it are.
    pub fn from_kubeconfig(file: &Path) -> Result<Self, RemoteError> {
        let wrong = |why: &dyn Display| RemoteError::File(file.display().to_string(), why.to_string());
        let text = std::fs::read(file).map_err(|error| wrong(&error))?;
        let (config, _) = schema::parse_yaml_strict(&text).map_err(|error| wrong(&error))?;
        let named = |list: &str, name: &Value, part: &str| {
            let mut items = config[list].as_array().into_iter().flatten();
            items.find(|item| item["name"] == *name).map(|item| item[part].clone()).unwrap_or_default()
        };
        let context = named("contexts", &config["current-context"], "context");
        let (cluster, user) =
            (named("clusters", &context["cluster"], "cluster"), named("users", &context["user"], "user"));
        let home = file.parent().unwrap_or(Path::new("/"));
        // What is given in the file itself beats what it names.
        let given = |part: &Value, field: &str| -> Result<Option<Vec<u8>>, RemoteError> {
            if let Some(data) = part[format!("{field}-data")].as_str() {
                return BASE64_STANDARD.decode(data).map(Some).map_err(|error| wrong(&error));
            }
            let named = part[field].as_str().map(|path| std::fs::read(home.join(path)));
            named.transpose().map_err(|error| wrong(&error))
        };
        let url = cluster["server"].as_str().ok_or_else(|| wrong(&"the current context names no server"))?;
        let identity = match (given(&user, "client-certificate")?, given(&user, "client-key")?) {
            (Some(certificate), Some(key)) => Some(identity(&certificate, &key)?),
            _ => None,
        };
        let tls = match given(&cluster, "certificate-authority")? {
            _ if cluster["insecure-skip-tls-verify"] == true => {
                Some(trusting(None, identity).map_err(RemoteError::Tls)?)
            }
            Some(pem) => Some(trusting(Some(&pem), identity).map_err(RemoteError::Tls)?),
            None if url.starts_with("https:") => Some(system_trust()?),
            None => None,
        };
        let bearer = user["token"].as_str().map(|token| format!("Bearer {token}"));
        let authorization = bearer.and_then(|bearer| HeaderValue::from_str(&bearer).ok());
        Self::with(url, tls, cluster["tls-server-name"].as_str(), authorization)
    }

    /// GET of a document at the service's URL.
    ///
    /// # Errors
    /// [`RemoteError::Exchange`], [`RemoteError::Refused`].
    pub async fn get(&self, timeout: Duration) -> Result<Value, RemoteError> {
        self.document(&self.exchange(Method::GET, Bytes::new(), timeout).await?)
    }

    /// POST of a document to the service's URL; the answer is a document.
    ///
    /// # Errors
    /// [`RemoteError::Exchange`], [`RemoteError::Refused`].
    pub async fn post(&self, document: &Value, timeout: Duration) -> Result<Value, RemoteError> {
        self.document(&self.exchange(Method::POST, document.to_string().into(), timeout).await?)
    }

    /// Sends it a document; what it answers besides the code does not matter.
    ///
    /// # Errors
    /// There is no answer, or no code of success.
    pub async fn tell(&self, document: Bytes, timeout: Duration) -> Result<(), RemoteError> {
        self.exchange(Method::POST, document, timeout).await.map(drop)
    }

    async fn exchange(&self, method: Method, body: Bytes, timeout: Duration) -> Result<Bytes, RemoteError> {
        let failed = |why: &dyn Display| RemoteError::Exchange(self.uri.to_string(), why.to_string());
        let exchange = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
            let stream = stream.map_err(|error| failed(&error))?;
            match &self.tls {
                None => self.send(stream, method, body).await,
                Some((tls, name)) => {
                    let connector = tokio_rustls::TlsConnector::from(tls.clone());
                    let stream = connector.connect(name.clone(), stream).await;
                    self.send(stream.map_err(|error| failed(&error))?, method, body).await
                }
            }
        };
        match tokio::time::timeout(timeout, Box::pin(exchange)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(&"timed out")),
        }
    }

    async fn send<S>(&self, stream: S, method: Method, body: Bytes) -> Result<Bytes, RemoteError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |why: &dyn Display| RemoteError::Exchange(self.uri.to_string(), why.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        // The connection lives as long as this exchange: it ends with the sender.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a service ended");
            }
        });
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "kube-apiserver");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Body::from(body)).map_err(|error| failed(&error))?;
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| failed(&error))?.to_bytes();
        if !code.is_success() {
            return Err(RemoteError::Refused(self.uri.to_string(), code.as_u16()));
        }
        Ok(body)
    }

    fn document(&self, body: &[u8]) -> Result<Value, RemoteError> {
        // Some answer with nothing.
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(body)
            .map_err(|error| RemoteError::Exchange(self.uri.to_string(), error.to_string()))
    }
}

/// Trust in the authorities that the machine knows.
fn system_trust() -> Result<Arc<ClientConfig>, RemoteError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(RemoteError::Tls("this machine knows no certificate authorities".to_owned()));
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

fn identity(certificate: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, RemoteError> {
    let wrong = |why: &dyn Display| RemoteError::Tls(why.to_string());
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| wrong(&error))?;
    Ok(Arc::new(CertifiedKey::new(chain.map_err(|error| wrong(&error))?, key)))
}
