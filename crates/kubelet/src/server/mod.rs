//! The node API on port 10250: logs, exec, attach, port-forward, statistics. Callers show a client certificate.

mod authorize;
mod log;
mod metrics;
mod stats;
mod stream;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::NodeApiTls;
use crate::kubelet::Kubelet;
use crate::model::PodId;

/// A response body.
type Body = BoxBody<Bytes, io::Error>;
/// A request as it arrives.
type Request = http::Request<Incoming>;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why the node API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("listen: {0}")]
    Listen(#[source] io::Error),
    /// The certificates are of no use.
    #[error("certificates: {0}")]
    Certificates(String),
}

/// An answer other than success, as plain text.
struct Refusal(StatusCode, String);

impl Refusal {
    fn not_found(text: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, text.into())
    }

    fn bad(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    fn internal(text: impl Into<String>) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, text.into())
    }
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn answer(status: StatusCode, type_: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(type_));
    response
}

fn text(content: impl Into<Bytes>) -> Response<Body> {
    answer(StatusCode::OK, "text/plain; charset=utf-8", content)
}

fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Refusal> {
    let content = serde_json::to_vec(value).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(answer(StatusCode::OK, "application/json", content))
}

/// The query of a request, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request) -> Self {
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decode = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unquote(key), unquote(value))
        };
        Self(pairs.map(decode).collect())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, value)| value.clone()).collect()
    }

    fn on(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| matches!(self.get(key), Some("1" | "true")))
    }
}

fn unquote(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let value =
            hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, value) {
            (_, Some(value)) => {
                bytes.push(value);
                rest = &after[2..];
                continue;
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The node API, bound to its address.
pub struct Server {
    kubelet: Arc<Kubelet>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Binds the address and reads the certificates.
    pub async fn bind(kubelet: Arc<Kubelet>) -> Result<Self, ServeError> {
        let acceptor = TlsAcceptor::from(Arc::new(tls(&kubelet.config.tls)?));
        let listener = TcpListener::bind(kubelet.config.api_address).await.map_err(ServeError::Listen)?;
        Ok(Self { kubelet, listener, acceptor })
    }

    /// Serves until the kubelet ends.
    pub async fn serve(self) {
        let tasks = TaskTracker::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (kubelet, acceptor) = (self.kubelet.clone(), self.acceptor.clone());
                    let cancel = kubelet.cancel.clone();
                    tasks.spawn(async move {
                        cancel.run_until_cancelled(connection(kubelet, acceptor, stream)).await
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close theirs.
                    tracing::warn!(%error, "node API connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn tls(files: &NodeApiTls) -> Result<rustls::ServerConfig, ServeError> {
    let bad = |error: &dyn std::fmt::Display| ServeError::Certificates(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, ServeError> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| bad(&e))
    };
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&files.client_ca_pem)? {
        roots.add(authority).map_err(|e| bad(&e))?;
    }
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| bad(&e))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(files.serving.clone());
    // Sessions are upgraded connections, which only HTTP/1.1 has.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn connection(kubelet: Arc<Kubelet>, acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let caller = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(caller) = caller.and_then(|certificate| authorize::Caller::of(certificate)) else { return };
    let caller = Arc::new(caller);
    let service = hyper::service::service_fn(move |request: Request| {
        let (kubelet, caller) = (kubelet.clone(), caller.clone());
        async move { Ok::<_, Infallible>(respond(kubelet, &caller, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%error, "node API connection ended");
    }
}

async fn respond(kubelet: Arc<Kubelet>, caller: &authorize::Caller, request: Request) -> Response<Body> {
    let result = match authorize::allowed(&kubelet, caller, request.method(), request.uri().path()).await {
        Ok(()) => route(kubelet, request).await,
        Err(refusal) => Err(refusal),
    };
    result.unwrap_or_else(|Refusal(status, message)| answer(status, "text/plain; charset=utf-8", message))
}

async fn route(kubelet: Arc<Kubelet>, request: Request) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let get = request.method() == Method::GET;
    match parts.as_slice() {
        ["healthz", ..] => Ok(text("ok")),
        ["pods"] if get => pods(&kubelet),
        ["runningpods"] if get => running_pods(&kubelet).await,
        ["stats", "summary"] => stats::summary(&kubelet).await,
        ["metrics"] if get => Ok(metrics::own(&kubelet)),
        ["metrics", "resource"] if get => metrics::resource(&kubelet).await,
        ["metrics", "cadvisor"] if get => metrics::cadvisor(&kubelet).await,
        ["metrics", "probes"] if get => Ok(text("")),
        ["containerLogs", namespace, pod, container] if get => {
            log::serve(kubelet, &Query::of(&request), namespace, pod, container).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            stream::exec(&kubelet, request, namespace, pod, container).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            stream::attach(&kubelet, request, namespace, pod, container).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            stream::port_forward(&kubelet, request, namespace, pod).await
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container] => {
            stream::run(&kubelet, &Query::of(&request), namespace, pod, container).await
        }
        _ => Err(Refusal::not_found("404 page not found\n")),
    }
}

fn find(kubelet: &Kubelet, namespace: &str, pod: &str) -> Result<Arc<Pod>, Refusal> {
    kubelet.table.find(namespace, pod).ok_or_else(|| Refusal::not_found("pod does not exist"))
}

fn pods(kubelet: &Kubelet) -> Result<Response<Body>, Refusal> {
    let pods = kubelet.table.pods();
    let items: Vec<&Pod> = pods.iter().map(Arc::as_ref).collect();
    json(&serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

async fn running_pods(kubelet: &Kubelet) -> Result<Response<Body>, Refusal> {
    let sandboxes = kubelet.cri.sandboxes(None).await.map_err(|e| Refusal::internal(crate::cri::text(&e)))?;
    let containers =
        kubelet.cri.containers(None).await.map_err(|e| Refusal::internal(crate::cri::text(&e)))?;
    let ready = sandboxes.iter().filter(|s| s.state() == coxswain_cri::v1::PodSandboxState::SandboxReady);
    let items: Vec<serde_json::Value> = ready
        .filter_map(|sandbox| Some((sandbox, PodId::of_labels(&sandbox.labels)?)))
        .map(|(sandbox, id)| {
            let running = containers.iter().filter(|c| {
                c.pod_sandbox_id == sandbox.id
                    && c.state() == coxswain_cri::v1::ContainerState::ContainerRunning
            });
            let running: Vec<serde_json::Value> = running
                .map(|c| {
                    let name = c.metadata.as_ref().map(|m| m.name.clone());
                    serde_json::json!({ "name": name, "image": c.image_ref, "resources": {} })
                })
                .collect();
            serde_json::json!({
                "metadata": { "name": id.name, "namespace": id.namespace, "uid": id.uid },
                "spec": { "containers": running },
                "status": {},
            })
        })
        .collect();
    json(&serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        assert_eq!(unquote("a%20b+c%2"), "a b c%2");
        let query = Query(vec![("input".to_owned(), "1".to_owned())]);
        assert!(query.on(&["stdin", "input"]) && !query.on(&["tty"]));
    }
}
