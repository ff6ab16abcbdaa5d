//! How a webhook is reached: by its URL, or at a ready endpoint of its service, always over TLS.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::json::Value;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::trust::trusting;
use crate::Server;
use crate::body::Body;
use crate::subresource::endpoint;

const LARGEST_ANSWER_BYTES: usize = 8 << 20;
/// Configurations of TLS that are remembered; more authorities than this are read anew.
const MOST_REMEMBERED: usize = 256;

/// The client of all webhooks.
#[derive(Default)]
pub struct Webhooks {
    tls: Mutex<HashMap<String, Arc<ClientConfig>>>,
}

/// Where a webhook is.
struct Target {
    /// The name that its certificate carries.
    host: String,
    /// Its address, or else the host is looked up.
    address: Option<SocketAddr>,
    port: u16,
    path: String,
    /// The address that messages show.
    url: String,
}

impl Target {
    fn of(server: &Server, client: &Value) -> Result<Self, String> {
        if let Some(url) = client["url"].as_str() {
            let uri: Uri = url.parse().map_err(|_| format!("invalid url {url}"))?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let port = uri.port_u16().unwrap_or(443);
            return Ok(Self { host, address: None, port, path, url: url.to_owned() });
        }
        let service = &client["service"];
        let text = |key: &str| service[key].as_str().unwrap_or_default();
        let (name, namespace) = (text("name"), text("namespace"));
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let host = format!("{name}.{namespace}.svc");
        let path = format!("/{}", text("path").trim_start_matches('/'));
        let address =
            endpoint(server, namespace, name, &port.to_string()).map_err(|status| status.message.clone())?;
        let url = format!("https://{host}:{port}{path}");
        Ok(Self { host, address: Some(address), port, path, url })
    }
}

impl Webhooks {
    fn tls(&self, bundle: &str) -> Result<Arc<ClientConfig>, String> {
        let mut known = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(bundle) {
            return Ok(config.clone());
        }
        let pem = BASE64_STANDARD.decode(bundle).map_err(|error| error.to_string())?;
        let config = trusting(Some(&pem), None)?;
        if known.len() >= MOST_REMEMBERED {
            known.clear();
        }
        known.insert(bundle.to_owned(), config.clone());
        Ok(config)
    }

    /// Posts a review to the webhook of a client configuration and returns its answer.
    ///
    /// # Errors
    /// What kept it from answering, as messages show it.
    pub async fn post(
        &self,
        server: &Server,
        client: &Value,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let target = Target::of(server, client)?;
        let url = target.url.clone();
        let failed = |why: &dyn Display| format!("Post \"{url}?timeout={}s\": {why}", timeout.as_secs());
        let tls = self.tls(client["caBundle"].as_str().unwrap_or_default())?;
        match tokio::time::timeout(timeout, exchange(target, tls, review, timeout)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(failed(&why)),
            Err(_) => Err(failed(&"context deadline exceeded")),
        }
    }
}

async fn exchange(
    target: Target,
    tls: Arc<ClientConfig>,
    review: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let text = |error: &dyn Display| error.to_string();
    let dialed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            let at = target.address.map_or_else(|| target.host.clone(), |address| address.to_string());
            format!("dial tcp {at}: connect: connection refused")
        }
        _ => format!("dial tcp: {error}"),
    };
    let stream = match target.address {
        Some(address) => TcpStream::connect(address).await,
        None => TcpStream::connect((target.host.as_str(), target.port)).await,
    };
    let stream = stream.map_err(dialed)?;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| text(&error))?;
    let stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    // The connection lives as long as this exchange: it ends with the sender.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a webhook ended");
        }
    });
    let separator = if target.path.contains('?') { '&' } else { '?' };
    let request = Request::post(format!("{}{separator}timeout={}s", target.path, timeout.as_secs()))
        .header(header::HOST, format!("{}:{}", target.host, target.port))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Body::from(review.to_string()))
        .map_err(|error| text(&error))?;
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| text(&error))?.to_bytes();
    if !status.is_success() {
        let message = match status.as_u16() {
            404 => "the server could not find the requested resource".to_owned(),
            _ => format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                String::from_utf8_lossy(&body)
            ),
        };
        return Err(message);
    }
    serde_json::from_slice(&body).map_err(|error| format!("couldn't decode the answer: {error}"))
}
