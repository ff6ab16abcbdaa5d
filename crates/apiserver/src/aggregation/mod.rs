//! API aggregation: group versions that other servers answer (KEP "API aggregation", APIService).
//!
//! Requests are passed on with the user in headers, under a certificate that the other server trusts for that.

mod availability;
mod openapi;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_store::Revision;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::Server;
use crate::authn::UserInfo;
use crate::body::Body;
use crate::object::Meta;
use crate::request::RequestInfo;
use crate::respond::Outcome;
use crate::subresource::{endpoint, forward};
use crate::webhook::trusting;

pub use availability::run;
use openapi::Documents;

const GROUP: &str = "apiregistration.k8s.io";
const COLLECTION: &str = "apiservices.apiregistration.k8s.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The certificate under which users are named in headers.
#[derive(Clone)]
pub struct FrontProxy {
    /// The authority that signed it, PEM: what other servers are told to trust.
    pub ca_pem: String,
    /// The certificate, with its key.
    pub identity: Arc<rustls::sign::CertifiedKey>,
}

/// A group version that another server answers.
pub struct Backend {
    name: String,
    namespace: String,
    service: String,
    port: u16,
    tls: Result<Arc<ClientConfig>, String>,
    /// Whether its server was found to answer.
    pub available: bool,
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
}

/// The aggregated group versions, read anew when an APIService changed.
#[derive(Default)]
pub struct Backends {
    known: RwLock<(Revision, Arc<Known>)>,
    /// What their servers said that they serve.
    resources: RwLock<HashMap<(String, String), Vec<Value>>>,
    /// What their servers' OpenAPI documents say of it.
    documents: RwLock<HashMap<(String, String), Documents>>,
}

type Known = HashMap<(String, String), Arc<Backend>>;

impl Backends {
    /// The group versions that other servers answer now.
    pub fn current(&self, server: &Server) -> Arc<Known> {
        let newest = server.store.collection(COLLECTION).newest();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.0 == newest {
            return known.1;
        }
        let services = server.read_all(GROUP, "apiservices", "");
        let backends = services.iter().filter_map(|service| Backend::parse(server, service));
        let backends =
            backends.map(|backend| ((backend.group.clone(), backend.version.clone()), Arc::new(backend)));
        let backends = Arc::new(backends.collect::<HashMap<_, _>>());
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = (newest, backends.clone());
        backends
    }

    /// Remembers what a server said that it serves of a group version.
    fn set_resources(&self, group: &str, version: &str, resources: Vec<Value>) {
        let mut known = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        known.insert((group.to_owned(), version.to_owned()), resources);
    }

    /// The `APIResource`s of the group versions whose servers answer.
    pub fn resources(&self, server: &Server) -> Vec<(Arc<Backend>, Vec<Value>)> {
        let known = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        let backends = self.current(server);
        let available = backends.iter().filter(|(_, backend)| backend.available);
        available
            .map(|(key, backend)| (backend.clone(), known.get(key).cloned().unwrap_or_default()))
            .collect()
    }
}

impl Backend {
    fn parse(server: &Server, object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let service = spec["service"].as_object()?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let bundle =
            BASE64_STANDARD.decode(spec["caBundle"].as_str().unwrap_or_default()).unwrap_or_default();
        let insecure = spec["insecureSkipTLSVerify"] == true;
        let identity = server.config.front_proxy.as_ref().map(|proxy| proxy.identity.clone());
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        Some(Self {
            name: object.name().to_owned(),
            namespace: text(service.get("namespace")),
            service: text(service.get("name")),
            port: service
                .get("port")
                .and_then(Value::as_u64)
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(443),
            tls: trusting((!insecure).then_some(&bundle[..]), identity),
            available: conditions.into_iter().any(|c| c["type"] == "Available" && c["status"] == "True"),
            group: text(spec.get("group")),
            version: text(spec.get("version")),
        })
    }

    /// Passes a request on and returns the answer.
    pub async fn pass(
        &self,
        server: &Server,
        user: &UserInfo,
        path: &str,
        mut request: Request<Body>,
    ) -> Outcome {
        let unavailable = |why: String| {
            tracing::debug!(service = self.name, why, "an aggregated server was not reached");
            Status::unavailable("the server is currently unable to handle the request")
        };
        let address = endpoint(server, &self.namespace, &self.service, &self.port.to_string());
        let address = address.map_err(|status| unavailable(status.message.clone()))?;
        let tls = self.tls.clone().map_err(unavailable)?;
        let name = ServerName::try_from(format!("{}.{}.svc", self.service, self.namespace))
            .map_err(|error| unavailable(error.to_string()))?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            tokio_rustls::TlsConnector::from(tls).connect(name, stream).await
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unavailable(error.to_string())),
            Err(_) => return Err(unavailable("timed out".into())),
        };
        name_user(request.headers_mut(), user);
        let method = request.method().clone();
        forward(stream, address, method, path, request).await
    }
}

/// Writes the user into headers, and takes away what a client may have written there itself.
fn name_user(headers: &mut HeaderMap, user: &UserInfo) {
    let forged: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-") || name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    forged.iter().for_each(|name| drop(headers.remove(name)));
    headers.remove(AUTHORIZATION);
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string();
        values.iter().for_each(|value| add(&format!("x-remote-extra-{}", key.to_lowercase()), value));
    }
}

impl Server {
    /// The server that answers a request instead of this one.
    pub fn backend_of(&self, info: &RequestInfo) -> Option<Arc<Backend>> {
        let backends = self.backends.current(self);
        if backends.is_empty() {
            return None;
        }
        // An OpenAPI document of a group version is its server's too, unless it was made here.
        let document = info.path.strip_prefix("/openapi/v3/");
        if document.is_some_and(|path| self.backends.v3_made(self, path).is_some()) {
            return None;
        }
        let path = document.unwrap_or(&info.path);
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let (Some("apis"), Some(group), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
            return None;
        };
        backends.get(&(group.to_owned(), version.to_owned())).cloned()
    }
}
