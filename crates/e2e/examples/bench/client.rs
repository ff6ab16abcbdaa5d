//! A client that speaks HTTP/2 over TLS on a connection of its own, with the credentials of a kubeconfig.

use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use coxswain_testkit::Isolation;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// JSON.
pub const JSON: &str = "application/json";
/// Kubernetes' protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// A list does not wait for the client to ask for more.
const WINDOW_BYTES: u32 = 64 << 20;

/// A server, and who asks it.
pub struct Target {
    address: String,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    token: Option<String>,
    /// Where the connections start from, if not here.
    isolation: Option<Arc<Isolation>>,
}

/// A member of a kubeconfig that is written out or names a file.
fn pem(section: &Value, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = section[format!("{key}-data")].as_str() {
        return Ok(Some(BASE64_STANDARD.decode(data)?));
    }
    section[key].as_str().map(std::fs::read).transpose().with_context(|| key.to_owned())
}

impl Target {
    /// The cluster and the user of a kubeconfig's current context.
    pub fn read(path: &str, isolation: Option<Arc<Isolation>>) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("the kubeconfig {path:?}"))?;
        let config: Value = serde_yaml::from_str(&text)?;
        let named = |list: &str, name: &Value, member: &str| {
            let all = config[list].as_array().into_iter().flatten();
            let found = all.into_iter().find(|item| item["name"] == *name).map(|item| item[member].clone());
            found.with_context(|| format!("no {member} {name} in {path}"))
        };
        let context = named("contexts", &config["current-context"], "context")?;
        let cluster = named("clusters", &context["cluster"], "cluster")?;
        let user = named("users", &context["user"], "user")?;
        let server: Uri = cluster["server"].as_str().unwrap_or_default().parse()?;
        let host = server.host().context("the server has no host")?.trim_matches(['[', ']']).to_owned();
        let mut roots = rustls::RootCertStore::empty();
        let authority = pem(&cluster, "certificate-authority")?.context("no certificate authority")?;
        for certificate in CertificateDer::pem_slice_iter(&authority) {
            roots.add(certificate?)?;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
        let mut tls = match (pem(&user, "client-certificate")?, pem(&user, "client-key")?) {
            (Some(certificate), Some(key)) => tls.with_client_auth_cert(
                CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_slice(&key)?,
            )?,
            _ => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            address: format!("{host}:{}", server.port_u16().unwrap_or(443)),
            name: host.try_into()?,
            tls: tls.into(),
            token: user["token"].as_str().map(str::to_owned),
            isolation,
        })
    }

    /// A connection of its own.
    pub async fn connect(self: &Arc<Self>) -> anyhow::Result<Client> {
        let stream = match &self.isolation {
            None => TcpStream::connect(&self.address).await.context(self.address.clone())?,
            Some(isolation) => {
                let stream = isolation.connect(self.address.parse()?)?;
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)?
            }
        };
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // Ends with the sender.
        tokio::spawn(connection);
        Ok(Client { target: self.clone(), sender })
    }
}

/// A connection to the server; clones share it.
#[derive(Clone)]
pub struct Client {
    target: Arc<Target>,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Sends a request; a refusal is an error.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let media = if method == Method::PATCH { MERGE_PATCH } else { JSON };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("https://{}{path}", self.target.address))
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, media);
        if let Some(token) = &self.target.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status();
        if !status.is_success() {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{method} {path}: {status} {:.300}", String::from_utf8_lossy(&body));
        }
        Ok(response)
    }

    /// Sends a request and gives the length of the answer.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> anyhow::Result<usize> {
        let mut body = self.send(method, path, accept, body).await?.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(length)
    }

    /// Sends a request and gives the answer.
    pub async fn json(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
        let response = self.send(method, path, JSON, body).await?;
        Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
    }
}
