//! A small HTTP client for probes and hooks: HTTP/1.1, no certificate check, redirects to the same host only.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const LARGEST_BODY: usize = 10 << 10;
const REDIRECTS: usize = 10;

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// Whether over TLS.
    pub https: bool,
    /// Host to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// `Host` header, if not the host.
    pub host_header: Option<String>,
    /// Other headers.
    pub headers: Vec<(String, String)>,
}

/// `host:port`, IPv6 in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A connection error in the words people know from Go programs.
pub fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

/// Makes the request; returns the status and the beginning of the body, or a sentence about what went wrong.
pub async fn get(request: &HttpRequest, limit: Duration) -> Result<(u16, String), String> {
    let scheme = if request.https { "https" } else { "http" };
    let url = format!("{scheme}://{}{}", authority(&request.host, request.port), request.path);
    match tokio::time::timeout(limit, follow(request.clone())).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
        Err(_) => Err(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(mut request: HttpRequest) -> Result<(u16, String), String> {
    for _ in 0..REDIRECTS {
        let (status, body, location) = once(&request).await?;
        let next = location.filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
        match next.and_then(|location| redirected(&request, &location)) {
            Some(next) => request = next,
            None => return Ok((status, body)),
        }
    }
    Err("stopped after 10 redirects".to_owned())
}

/// The request a redirect asks for; `None` when it leads to another host.
fn redirected(request: &HttpRequest, location: &str) -> Option<HttpRequest> {
    let mut next = request.clone();
    if location.starts_with('/') && !location.starts_with("//") {
        next.path = location.to_owned();
        return Some(next);
    }
    let uri: http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != request.host {
        return None;
    }
    next.https = uri.scheme_str() == Some("https");
    next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
    next.path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    next.host_header = None;
    Some(next)
}

async fn once(request: &HttpRequest) -> Result<(u16, String, Option<String>), String> {
    let address = authority(&request.host, request.port);
    let stream = TcpStream::connect(&address)
        .await
        .map_err(|error| format!("dial tcp {address}: connect: {}", words(&error)))?;
    let _ = stream.set_nodelay(true);
    if !request.https {
        return exchange(request, &address, stream).await;
    }
    let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(TRUSTING.clone());
    let stream = connector.connect(name, stream).await.map_err(|error| words(&error))?;
    exchange(request, &address, stream).await
}

async fn exchange(
    request: &HttpRequest,
    address: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(u16, String, Option<String>), String> {
    let text = |error: hyper::Error| {
        if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() }
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let host = request.host_header.as_deref().unwrap_or(address);
    let mut builder = http::Request::get(&request.path)
        .header(http::header::HOST, host)
        .header(http::header::CONNECTION, "close");
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    let message = builder.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let talk = async {
        let answer = sender.send_request(message).await.map_err(text)?;
        let status = answer.status().as_u16();
        let location =
            answer.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        // A longer body is no error: the beginning is enough.
        let body = Limited::new(answer.into_body(), LARGEST_BODY).collect().await;
        let body =
            body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        Ok((status, body, location))
    };
    let mut connection = std::pin::pin!(connection);
    let mut talk = std::pin::pin!(talk);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut talk => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

static TRUSTING: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Trusting(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Arc::new(config)
});

/// Accepts every certificate: an HTTPS probe asks whether the server answers, not who it is.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
