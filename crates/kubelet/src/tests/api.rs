//! An API server of paper: objects by path, watches of what changes, and the little that the kubelet writes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

type Answer = UnsyncBoxBody<Bytes, std::io::Error>;

struct State {
    /// By path, such as `/api/v1/namespaces/n/pods/p`.
    objects: BTreeMap<String, Value>,
    events: Vec<(String, String)>,
    version: u64,
}

/// The API server; clones are the same one.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Kind of change, plural of the resource, object.
    changes: broadcast::Sender<(&'static str, String, Value)>,
    changed: watch::Sender<u64>,
}

impl FakeApi {
    /// An empty API server.
    pub fn new() -> Self {
        let state = State { objects: BTreeMap::new(), events: Vec::new(), version: 1 };
        Self {
            state: Arc::new(Mutex::new(state)),
            changes: broadcast::channel(1024).0,
            changed: watch::channel(0).0,
        }
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object, if it is there.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Whether an event with a reason and a text was written.
    pub fn has_event(&self, reason: &str, text: &str) -> bool {
        self.state().events.iter().any(|(r, t)| r == reason && t.contains(text))
    }

    /// Waits until something is so; what it waits for is in the message when it never is.
    pub async fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !so(self) {
                // Not everything a test waits for changes the API.
                let tick = std::time::Duration::from_millis(20);
                let _ = tokio::time::timeout(tick, changed.changed()).await;
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.is_err() {
            let state = self.state();
            panic!("never: {what}\n{:#?}\n{:#?}", state.objects.values().collect::<Vec<_>>(), state.events);
        }
    }

    /// Puts an object as it is and tells the watches.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let old = state.objects.insert(path.to_owned(), object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let _ = self.changes.send((kind, plural(path), object));
        self.changed.send_replace(state.version);
    }

    /// Labels an object without telling the watches yet.
    pub fn label_behind(&self, path: &str, key: &str, value: &str) {
        if let Some(object) = self.state().objects.get_mut(path) {
            object["metadata"]["labels"][key] = json!(value);
        }
    }

    /// Removes an object as if nobody had watched.
    pub fn forget(&self, path: &str) {
        self.remove(path);
    }

    fn remove(&self, path: &str) -> Value {
        let mut state = self.state();
        state.version += 1;
        let object = state.objects.remove(path).unwrap_or_default();
        let _ = self.changes.send(("DELETED", plural(path), object.clone()));
        self.changed.send_replace(state.version);
        object
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = head.uri.query().unwrap_or_default();
        match head.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, query),
            Method::GET => match self.get(&path) {
                Some(object) => ok(&object),
                None => self.list(&path, query),
            },
            Method::POST => self.create(&path, body),
            Method::PATCH => self.patch(&path, &body),
            Method::DELETE => ok(&self.remove(&path)),
            _ => missing(),
        }
    }

    fn list(&self, path: &str, query: &str) -> Response<Answer> {
        let state = self.state();
        let (wanted, name) = (plural(&format!("{path}/x")), selected_name(query));
        let chosen =
            state.objects.iter().filter(|(p, o)| plural(p) == wanted && has_name(o, name.as_deref()));
        let items: Vec<&Value> = chosen.map(|(_, o)| o).collect();
        ok(&json!({ "metadata": { "resourceVersion": state.version.to_string() }, "items": items }))
    }

    fn watch(&self, path: &str, query: &str) -> Response<Answer> {
        let (wanted, name) = (plural(&format!("{path}/x")), selected_name(query));
        let frames = BroadcastStream::new(self.changes.subscribe()).filter_map(move |change| {
            let (kind, _, object) =
                change.ok().filter(|(_, plural, o)| *plural == wanted && has_name(o, name.as_deref()))?;
            let line = format!("{}\n", json!({ "type": kind, "object": object }));
            Some(Ok::<_, std::io::Error>(Frame::data(Bytes::from(line))))
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
    }

    fn create(&self, path: &str, body: Value) -> Response<Answer> {
        if path.ends_with("/events") {
            let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
            self.state().events.push((text("reason"), text("message")));
        } else {
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.put(&format!("{path}/{name}"), body.clone());
        }
        ok(&body)
    }

    /// Merges objects and replaces everything else; conditions are merged by their type.
    fn patch(&self, path: &str, body: &Value) -> Response<Answer> {
        let path = path.trim_end_matches("/status");
        let Some(mut object) = self.get(path) else { return missing() };
        merge(&mut object, body);
        self.put(path, object.clone());
        ok(&object)
    }
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                object.as_object_mut().map(|o| o.remove(key));
            }
            Value::Array(news) if key == "conditions" => {
                let mut all = object[key].as_array().cloned().unwrap_or_default();
                all.retain(|old| news.iter().all(|new| new["type"] != old["type"]));
                all.extend(news.iter().cloned());
                object[key] = Value::Array(all);
            }
            value => merge(&mut object[key], value),
        }
    }
}

/// The name in a `metadata.name=` field selector.
fn selected_name(query: &str) -> Option<String> {
    let (_, rest) = query.split_once("metadata.name%3D")?;
    rest.split(['&', '%']).next().map(str::to_owned)
}

fn has_name(object: &Value, name: Option<&str>) -> bool {
    name.is_none_or(|name| object["metadata"]["name"] == name)
}

/// The plural in an object's path: the part before the name.
fn plural(path: &str) -> String {
    path.rsplit('/').nth(1).unwrap_or_default().to_owned()
}

fn ok(value: &Value) -> Response<Answer> {
    let full = Full::new(Bytes::from(value.to_string())).map_err(|never: Infallible| match never {});
    Response::new(full.boxed_unsync())
}

fn missing() -> Response<Answer> {
    let status =
        json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "" });
    let mut response = ok(&status);
    *response.status_mut() = http::StatusCode::NOT_FOUND;
    response
}
