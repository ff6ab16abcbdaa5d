//! A small client of the API server: raw requests with the administrator's certificate, and waiting by watch.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::http::{self, HttpError, Request, Response};
use crate::isolation::Isolation;

/// Between attempts to reach a server that is not there.
const RETRY: Duration = Duration::from_millis(50);
/// A read that takes longer than this has failed.
const READ: Duration = Duration::from_secs(60);

/// A body that never comes whole has its answer at once or not at all.
const NEVER_WHOLE: Duration = Duration::from_secs(2);

/// The objects of a list, as a watch keeps them, by `namespace/name`.
pub type Watched = BTreeMap<String, Value>;

/// A client of one API server.
#[derive(Clone)]
pub struct Api {
    isolation: Arc<Isolation>,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    anonymous: Arc<ClientConfig>,
}

impl Api {
    /// A client as a kubeconfig says.
    ///
    /// # Errors
    /// The kubeconfig is not there or not whole.
    pub fn from_kubeconfig(path: &Path, isolation: Arc<Isolation>) -> anyhow::Result<Self> {
        let config: Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let server = cluster["server"].as_str().context("no server")?;
        let address = server.trim_start_matches("https://").parse().context("the server's address")?;
        let user = &config["users"][0]["user"];
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem(&cluster["certificate-authority-data"])?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            let builder =
                ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
            builder.map(|builder| builder.with_root_certificates(roots.clone()))
        };
        let tls = Arc::new(builder()?.with_client_auth_cert(chain, key)?);
        Ok(Self { isolation, address, tls, anonymous: Arc::new(builder()?.with_no_client_auth()) })
    }

    /// Sends a request as the administrator.
    ///
    /// # Errors
    /// There is no answer.
    pub fn send(&self, request: &Request) -> Result<Response, HttpError> {
        let stream = self.connect(&self.tls)?;
        if request.announced_length.is_some() {
            stream.sock.set_read_timeout(Some(NEVER_WHOLE))?;
        }
        http::exchange(stream, &self.address.to_string(), request)
    }

    /// Sends a request without a client certificate.
    ///
    /// # Errors
    /// There is no answer.
    pub fn send_anonymously(&self, request: &Request) -> Result<Response, HttpError> {
        http::exchange(self.connect(&self.anonymous)?, &self.address.to_string(), request)
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// There is no answer, or not the code 200.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let response = self.send(&Request::get(path))?;
        anyhow::ensure!(response.code == 200, "GET {path}: {} {}", response.code, response.text());
        Ok(serde_json::from_slice(&response.body)?)
    }

    /// Writes a document with a method, and gives what the server answers.
    ///
    /// # Errors
    /// There is no answer, or no code of success.
    pub fn write(&self, method: &str, path: &str, document: &Value) -> anyhow::Result<Value> {
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let response = self.send(&Request::with_body(method, path, media_type, document.to_string()))?;
        anyhow::ensure!(response.code < 300, "{method} {path}: {} {}", response.code, response.text());
        Ok(serde_json::from_slice(&response.body)?)
    }

    /// Lists `path` and watches it until `condition` gives a value. A server that goes away meanwhile is waited for.
    ///
    /// # Errors
    /// `within` has passed; the message says what was waited for and what was there.
    pub fn wait<T>(
        &self,
        what: &str,
        path: &str,
        within: Duration,
        mut condition: impl FnMut(&Watched) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + within;
        let mut objects = Watched::new();
        let mut error = None;
        while Instant::now() < deadline {
            match self.follow(path, deadline, &mut objects, &mut condition) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(failure) => {
                    error = Some(failure);
                    std::thread::sleep(RETRY);
                }
            }
        }
        let shown: Vec<String> = objects.values().map(summary).collect();
        anyhow::bail!("waited {within:?} for {what}; {path} has {shown:#?}; last error: {error:?}")
    }

    /// Watches `path` from a resourceVersion on, event by event, until `each` says that it is enough or the server is gone.
    ///
    /// # Errors
    /// The server does not answer, or not with a watch.
    pub fn watch(
        &self,
        path: &str,
        revision: &str,
        mut each: impl FnMut(&Value) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let request =
            Request::get(&format!("{path}?watch=true&resourceVersion={revision}&timeoutSeconds=300"));
        let (head, body) = http::open(self.connect(&self.tls)?, &self.address.to_string(), &request)?;
        anyhow::ensure!(head.code == 200, "watching {path}: {}", head.code);
        for line in BufReader::new(body).lines() {
            // A server that is killed cuts the stream.
            let Ok(line) = line else { return Ok(()) };
            let Ok(event) = serde_json::from_str(&line) else { return Ok(()) };
            if each(&event)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn follow<T>(
        &self,
        path: &str,
        deadline: Instant,
        objects: &mut Watched,
        condition: &mut impl FnMut(&Watched) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let list = self.get(path)?;
        *objects = list["items"].as_array().context("no list")?.iter().map(|o| (key(o), o.clone())).collect();
        if let Some(value) = condition(objects) {
            return Ok(Some(value));
        }
        let revision = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
        let left = deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
        let separator = if path.contains('?') { '&' } else { '?' };
        let request = Request::get(&format!(
            "{path}{separator}watch=true&resourceVersion={revision}&timeoutSeconds={left}"
        ));
        let stream = self.connect(&self.tls)?;
        stream.sock.set_read_timeout(Some(Duration::from_secs(left + 5)))?;
        let (head, body) = http::open(stream, &self.address.to_string(), &request)?;
        anyhow::ensure!(head.code == 200, "watching {path}: {}", head.code);
        for line in BufReader::new(body).lines() {
            let event: Value = serde_json::from_str(&line?)?;
            let object = &event["object"];
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => drop(objects.insert(key(object), object.clone())),
                Some("DELETED") => drop(objects.remove(&key(object))),
                _ => anyhow::bail!("watching {path}: {event}"),
            }
            if let Some(value) = condition(objects) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// A connection of the administrator on which nothing is sent yet, with a protocol such as `h2` agreed on.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn stream(&self, protocol: &str) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let mut stream = self.connect(&Arc::new(tls))?;
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(stream)
    }

    /// A connection without TLS on it.
    ///
    /// # Errors
    /// The server does not take it.
    pub fn socket(&self) -> std::io::Result<TcpStream> {
        self.isolation.connect(self.address)
    }

    /// Many such connections at once.
    ///
    /// # Errors
    /// The server does not take one.
    pub fn sockets(&self, count: usize) -> std::io::Result<Vec<TcpStream>> {
        self.isolation.connect_many(self.address, count)
    }

    fn connect(&self, tls: &Arc<ClientConfig>) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = self.isolation.connect(self.address)?;
        stream.set_read_timeout(Some(READ))?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let connection = ClientConnection::new(tls.clone(), name).map_err(std::io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }
}

fn pem(value: &Value) -> anyhow::Result<Vec<u8>> {
    Ok(BASE64_STANDARD.decode(value.as_str().context("missing in the kubeconfig")?)?)
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// What a failed wait shows of an object.
fn summary(object: &Value) -> String {
    let mut status = object["status"].to_string();
    if status.len() > 1500 {
        let cut = (0..=1500).rev().find(|&at| status.is_char_boundary(at)).unwrap_or(0);
        status.truncate(cut);
    }
    format!("{}: {status}", key(object))
}
