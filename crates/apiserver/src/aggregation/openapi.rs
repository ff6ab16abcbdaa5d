//! The OpenAPI documents of other servers: what they say of the group versions that they answer is part of the own documents.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError};

use coxswain_api::openapi;
use coxswain_meta::json::Value;
use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};

use super::{Backend, Backends};
use crate::Server;
use crate::authn::UserInfo;
use crate::body::Body;

const LARGEST_DOCUMENT_BYTES: usize = 32 << 20;

/// What a server's documents say of one group version.
#[derive(Clone, Default)]
pub struct Documents {
    /// The entity tag of the whole swagger document, to ask whether it changed.
    tag: Option<HeaderValue>,
    /// Its part of the swagger document, and the part's hash.
    v2: Option<(u64, Arc<Value>)>,
    v3: V3,
}

/// Where the OpenAPI v3 document of a group version is.
#[derive(Clone, Default)]
enum V3 {
    #[default]
    Nowhere,
    /// At a URL that the server names.
    Url(String),
    /// Made from the swagger document of a server that has no other, and its hash.
    Made(u64, Arc<Value>),
}

fn document_path(backend: &Backend) -> String {
    format!("apis/{}/{}", backend.group, backend.version)
}

impl Backends {
    /// The OpenAPI v3 documents of other servers, with their URLs.
    pub fn v3_urls(&self, server: &Server) -> Vec<(String, String)> {
        let known = self.documents.read().unwrap_or_else(PoisonError::into_inner);
        let backends = self.current(server);
        let url = |(key, backend): (&_, &Arc<Backend>)| {
            let path = document_path(backend);
            let url = match &known.get(key)?.v3 {
                V3::Nowhere => return None,
                V3::Url(url) => url.clone(),
                V3::Made(hash, _) => format!("/openapi/v3/{path}?hash={hash:016X}"),
            };
            Some((path, url))
        };
        backends.iter().filter_map(url).collect()
    }

    /// The OpenAPI v3 document at a path that was made for a server which has none itself, and its hash.
    pub fn v3_made(&self, server: &Server, path: &str) -> Option<(u64, Arc<Value>)> {
        let known = self.documents.read().unwrap_or_else(PoisonError::into_inner);
        let backends = self.current(server);
        let (key, _) = backends.iter().find(|(_, backend)| document_path(backend) == path)?;
        match &known.get(key)?.v3 {
            V3::Made(hash, document) => Some((*hash, document.clone())),
            _ => None,
        }
    }

    /// The parts of swagger documents that other servers answer for, and their hashes; in the order of group versions.
    pub fn v2_documents(&self, server: &Server) -> (Vec<u64>, Vec<Arc<Value>>) {
        let known = self.documents.read().unwrap_or_else(PoisonError::into_inner);
        let backends = self.current(server);
        let mut keys: Vec<_> = backends.keys().collect();
        keys.sort();
        keys.into_iter().filter_map(|key| known.get(key)?.v2.clone()).unzip()
    }
}

/// Asks a server for its documents, where they changed. What it does not answer stays as it was; what it says it has not is gone.
pub async fn fetch(server: &Arc<Server>, user: &UserInfo, backend: &Backend) {
    let key = (backend.group.clone(), backend.version.clone());
    let known = server.backends.documents.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    let mut documents = known.unwrap_or_default();
    let mut converted = matches!(documents.v3, V3::Made(..));
    match ask(server, user, backend, "/openapi/v3", None).await {
        Some((StatusCode::OK, _, index)) => {
            let url = &index["paths"][document_path(backend)]["serverRelativeURL"];
            documents.v3 = url.as_str().map_or(V3::Nowhere, |url| V3::Url(url.to_owned()));
            converted = false;
        }
        Some((StatusCode::NOT_FOUND, ..)) => {
            // What was not made of the swagger document is made now, whether that changed or not.
            if !converted {
                (documents.v3, documents.tag) = (V3::Nowhere, None);
            }
            converted = true;
        }
        _ => {}
    }
    match ask(server, user, backend, "/openapi/v2", documents.tag.clone()).await {
        Some((StatusCode::OK, tag, document)) => {
            let part = openapi::below(&document, &format!("/{}", document_path(backend)));
            documents.tag = tag;
            documents.v2 = part.map(hashed);
            if converted {
                let (hash, made) = hashed(openapi::converted(&document));
                documents.v3 = V3::Made(hash, made);
            }
        }
        Some((StatusCode::NOT_FOUND, ..)) => {
            (documents.tag, documents.v2) = (None, None);
            if converted {
                documents.v3 = V3::Nowhere;
            }
        }
        _ => {}
    }
    let current = server.backends.current(server);
    let mut known = server.backends.documents.write().unwrap_or_else(PoisonError::into_inner);
    known.retain(|key, _| current.contains_key(key));
    known.insert(key, documents);
}

fn hashed(document: Value) -> (u64, Arc<Value>) {
    let mut hasher = DefaultHasher::new();
    document.to_string().hash(&mut hasher);
    (hasher.finish(), Arc::new(document))
}

async fn ask(
    server: &Arc<Server>,
    user: &UserInfo,
    backend: &Backend,
    path: &str,
    tag: Option<HeaderValue>,
) -> Option<(StatusCode, Option<HeaderValue>, Value)> {
    let mut request = Request::get(path).header(ACCEPT, "application/json").body(Body::empty()).ok()?;
    request.headers_mut().extend(tag.map(|tag| (IF_NONE_MATCH, tag)));
    let response = backend.pass(server, user, path, request).await.ok()?;
    let (status, tag) = (response.status(), response.headers().get(ETAG).cloned());
    let body = Limited::new(response.into_body(), LARGEST_DOCUMENT_BYTES).collect().await.ok()?;
    let document =
        if status == StatusCode::OK { serde_json::from_slice(&body.to_bytes()).ok()? } else { Value::Null };
    Some((status, tag, document))
}
