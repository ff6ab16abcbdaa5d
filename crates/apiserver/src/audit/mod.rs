//! Audit: who did what, as the policy says. Without a policy, requests pass by.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>

mod delivery;
mod log;
mod policy;
mod webhook;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value, json, to_value};
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;

pub use delivery::{AuditDelivery, AuditMode, AuditThrottle};
use log::Log;
pub use log::LogConfig;
use policy::{Decision, Level, Policy, Stage, without_managed_fields};
use tokio_util::sync::CancellationToken;
pub use webhook::AuditWebhookConfig;
use webhook::Webhook;

use crate::authn::{Peer, UserInfo};
use crate::body::{Body, BoxError, Joined};
use crate::handler::{document, read_body, read_yaml};
use crate::remote::RemoteError;
use crate::request::RequestInfo;
use crate::respond::{self, Outcome};

/// The id of a request, in requests, answers and events.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Answers larger than this are not written down.
const LARGEST_OBJECT_BYTES: u64 = 16 << 20;

/// What is written down, and where.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// The policy, YAML.
    pub policy: Vec<u8>,
    /// The log.
    pub log: Option<LogConfig>,
    /// A service that is told.
    pub webhook: Option<AuditWebhookConfig>,
}

/// Auditing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy.
    #[error("the audit policy: {0}")]
    Policy(String),
    /// The log.
    #[error("the audit log {0}: {1}")]
    Log(String, std::io::Error),
    /// The webhook.
    #[error("the audit webhook: {0}")]
    Webhook(#[from] RemoteError),
}

/// Writes events of the requests that its policy names.
pub struct Auditor {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Webhook>,
    /// Events that were made.
    written: AtomicU64,
    /// Events that the log or the webhook could not take.
    dropped: AtomicU64,
}

/// What is asked, and by whom.
pub struct Asked {
    /// The user, before impersonation.
    pub user: Arc<UserInfo>,
    /// What is asked.
    pub info: Arc<RequestInfo>,
    /// Whether this server answers; bodies that go to others are not read.
    pub own: bool,
}

tokio::task_local! {
    static NOTES: RefCell<Notes>;
}

/// What the layers below find out.
#[derive(Default)]
struct Notes {
    annotations: BTreeMap<&'static str, String>,
    impersonated: Option<Value>,
}

/// Adds an annotation to the events of the request that is being handled; nothing where it is not audited.
pub fn annotate(key: &'static str, value: impl FnOnce() -> String) {
    let _ = NOTES.try_with(|notes| notes.borrow_mut().annotations.insert(key, value()));
}

/// Tells as whom the user acts.
pub fn impersonated(user: &UserInfo) {
    let _ = NOTES.try_with(|notes| notes.borrow_mut().impersonated = Some(user.to_json()));
}

/// The id that a client gave its request, or a new one.
pub fn id_of(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= 64).cloned();
    let mut id = given.unwrap_or_else(|| {
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let text = id.hyphenated().encode_lower(&mut text);
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
    });
    // No secret, but never the same twice: HTTP/2 shall not remember it to compress the next.
    id.set_sensitive(true);
    id
}

/// One request, as its events tell of it.
struct Record<'a> {
    auditor: &'a Auditor,
    decision: Decision,
    event: Map,
    received: String,
}

impl Auditor {
    /// Reads the policy and opens the log.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn new(config: AuditConfig) -> Result<Self, AuditError> {
        let policy = Policy::parse(&config.policy).map_err(AuditError::Policy)?;
        let open = |config: LogConfig| {
            let shown = config.path.display().to_string();
            Log::open(config).map_err(|error| AuditError::Log(shown, error))
        };
        let log = config.log.map(open).transpose()?;
        let webhook = config.webhook.map(Webhook::new).transpose()?;
        Ok(Self { policy, log, webhook, written: AtomicU64::new(0), dropped: AtomicU64::new(0) })
    }

    /// Sends events to the webhook until the server stops.
    pub async fn run_webhook(&self, stop: &CancellationToken) {
        if let Some(webhook) = &self.webhook {
            let lost = |count: usize| {
                self.dropped.fetch_add(count as u64, Ordering::Relaxed);
            };
            webhook.run(stop, lost).await;
        }
    }

    /// Writes what happened, under upstream's names.
    pub fn write_metrics(&self, text: &mut String) {
        for (name, counter) in [("event", &self.written), ("requests_rejected", &self.dropped)] {
            let count = counter.load(Ordering::Relaxed);
            let _ =
                write!(text, "# TYPE apiserver_audit_{name} counter\napiserver_audit_{name}_total {count}\n");
        }
    }

    fn count_dropped(&self, dropped: bool) -> bool {
        self.dropped.fetch_add(dropped.into(), Ordering::Relaxed);
        dropped
    }

    /// Hands an event over; nobody waits for it.
    fn hand_over(&self, event: Bytes) {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.count_dropped(self.log.as_ref().is_some_and(|log| !log.write(event.clone())));
        self.count_dropped(self.webhook.as_ref().is_some_and(|webhook| !webhook.write(event)));
    }

    /// Writes down an event; the request waits where the modes of the log and the webhook say so. False where it must not go on.
    async fn store(&self, event: Bytes) -> bool {
        self.written.fetch_add(1, Ordering::Relaxed);
        let mut goes_on = true;
        let mut outcome = |taken: bool, mode: AuditMode| {
            goes_on &= !self.count_dropped(!taken) || mode != AuditMode::BlockingStrict;
        };
        if let Some(log) = &self.log {
            let taken = match log.mode() {
                AuditMode::Batch => log.write(event.clone()),
                AuditMode::Blocking | AuditMode::BlockingStrict => log.written(event.clone()).await,
            };
            outcome(taken, log.mode());
        }
        if let Some(webhook) = &self.webhook {
            let taken = match webhook.mode() {
                AuditMode::Batch => webhook.write(event),
                AuditMode::Blocking | AuditMode::BlockingStrict => Box::pin(webhook.send(event)).await,
            };
            outcome(taken, webhook.mode());
        }
        goes_on
    }

    /// Writes down a request whose user nobody knows.
    pub async fn refused(
        &self,
        peer: &Peer,
        info: &RequestInfo,
        id: &HeaderValue,
        request: Request<Body>,
        status: &Status,
    ) {
        if let Some(mut record) = self.begin(&UserInfo::default(), peer, info, id, &request) {
            record.failed(status);
            record.emit(Stage::ResponseStarted).await;
        }
    }

    fn begin(
        &self,
        user: &UserInfo,
        peer: &Peer,
        info: &RequestInfo,
        id: &HeaderValue,
        request: &Request<Body>,
    ) -> Option<Record<'_>> {
        let decision = self.policy.decide(user, info);
        if decision.level == Level::None {
            return None;
        }
        let text =
            |value: Option<&HeaderValue>| value.and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let uri = request.uri().path_and_query().map_or(info.path.as_str(), |path| path.as_str());
        let mut event = json!({ "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": decision.level.name(),
            "auditID": text(Some(id)), "requestURI": uri, "verb": info.verb, "user": user.to_json() });
        let addresses: Vec<String> = text(request.headers().get("x-forwarded-for"))
            .split(',')
            .map(|address| address.trim().to_owned())
            .chain(peer.address.map(|address| address.to_string()))
            .filter(|address| !address.is_empty())
            .collect();
        if !addresses.is_empty() {
            event["sourceIPs"] = json!(addresses);
        }
        let agent = text(request.headers().get(USER_AGENT));
        if !agent.is_empty() {
            event["userAgent"] = agent.into();
        }
        if info.is_resource {
            let parts = [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ];
            let parts = parts.into_iter().filter(|(_, part)| !part.is_empty());
            let parts = parts.map(|(key, part)| (key.to_owned(), Value::from(part.as_str())));
            event["objectRef"] = parts.collect::<Map>().into();
        }
        let Value::Object(event) = event else { return None };
        Some(Record { auditor: self, decision, event, received: now() })
    }

    /// Answers a request and writes down what the policy wants of it.
    pub async fn run<N, F>(
        self: &Arc<Self>,
        asked: Asked,
        peer: &Peer,
        id: &HeaderValue,
        mut request: Request<Body>,
        next: N,
    ) -> Outcome
    where
        N: FnOnce(Request<Body>) -> F,
        F: Future<Output = Outcome>,
    {
        let Asked { user, info, own } = &asked;
        let own = *own;
        let Some(mut record) = self.begin(user, peer, info, id, &request) else { return next(request).await };
        if !record.emit(Stage::RequestReceived).await {
            return Ok(not_stored(&request));
        }
        let long = info.is_long_running();
        let level = record.decision.level;
        let writes = matches!(info.verb, "create" | "update" | "patch" | "delete" | "deletecollection");
        if level >= Level::Request && own && !long && writes {
            match record.sent(request).await {
                Ok(again) => request = again,
                Err(status) => {
                    record.failed(&status);
                    record.emit(Stage::ResponseComplete).await;
                    return Err(status);
                }
            }
        }
        if level == Level::RequestResponse {
            request.headers_mut().remove(ACCEPT_ENCODING);
        }
        let answering = async {
            let answer = next(request).await;
            (answer, NOTES.with(RefCell::take))
        };
        let (answer, notes) = NOTES.scope(RefCell::default(), answering).await;
        record.noted(notes);
        match answer {
            Err(status) => {
                record.failed(&status);
                record.emit(Stage::ResponseComplete).await;
                Err(status)
            }
            Ok(response) if long => Ok(self.follow(record, response).await),
            Ok(response) => {
                let named = info.name.is_empty() && info.verb == "create";
                let response =
                    record.answered(response, own && (named || level == Level::RequestResponse)).await;
                record.emit(Stage::ResponseComplete).await;
                Ok(response)
            }
        }
    }

    /// An answer that takes long: it is complete when its body is.
    async fn follow(self: &Arc<Self>, mut record: Record<'_>, response: Response<Body>) -> Response<Body> {
        record.event.insert("responseStatus", json!({ "metadata": {}, "code": response.status().as_u16() }));
        record.emit(Stage::ResponseStarted).await;
        let (auditor, Record { decision, event, received, .. }) = (self.clone(), record);
        let end = move || {
            let record = Record { auditor: &auditor, decision, event, received };
            if let Some(event) = record.at(Stage::ResponseComplete) {
                auditor.hand_over(event);
            }
        };
        response.map(|body| Body::new(Ending { body: body.joined(), end: Some(Box::new(end)) }))
    }
}

impl Record<'_> {
    /// The event of a stage; none where the policy leaves it out.
    fn at(&self, stage: Stage) -> Option<Bytes> {
        if self.decision.omitted.contains(&stage) {
            return None;
        }
        let mut event = self.event.clone();
        event.insert("stage", stage.name().into());
        event.insert("requestReceivedTimestamp", self.received.as_str().into());
        let stamp = if stage == Stage::RequestReceived { self.received.clone() } else { now() };
        event.insert("stageTimestamp", stamp.into());
        Some(Value::Object(event).to_string().into())
    }

    /// Writes down a stage; false where the request must not go on.
    async fn emit(&self, stage: Stage) -> bool {
        match self.at(stage) {
            Some(event) => self.auditor.store(event).await,
            None => true,
        }
    }

    fn failed(&mut self, status: &Status) {
        let mut status = to_value(status).unwrap_or_default();
        if let Some(status) = status.as_object_mut() {
            status.remove("kind");
            status.remove("apiVersion");
        }
        self.event.insert("responseStatus", status);
    }

    fn noted(&mut self, notes: Notes) {
        if !notes.annotations.is_empty() {
            self.event.insert("annotations", json!(notes.annotations));
        }
        if let Some(user) = notes.impersonated {
            self.event.insert("impersonatedUser", user);
        }
    }

    /// Writes down the body of a request, and gives the request back.
    async fn sent(&mut self, request: Request<Body>) -> Result<Request<Body>, Status> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(Request::from_parts(parts.clone(), body)).await?;
        let media = parts.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let sent = match media.split(';').next().unwrap_or_default().trim() {
            _ if bytes.is_empty() => None,
            "application/apply-patch+yaml" => read_yaml(&bytes).ok().map(|(sent, _)| sent),
            patch if patch.ends_with("patch+json") => serde_json::from_slice(&bytes).ok(),
            _ => document(&parts.headers, &bytes).ok().map(|(sent, _)| sent),
        };
        if let Some(sent) = sent {
            self.object("requestObject", sent);
        }
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }

    /// Writes down an answer; of one whose object is wanted, the body too.
    async fn answered(&mut self, response: Response<Body>, object: bool) -> Response<Body> {
        let code = response.status().as_u16();
        self.event.insert("responseStatus", json!({ "metadata": {}, "code": code }));
        let size = http_body::Body::size_hint(response.body()).exact();
        if !object || size.is_none_or(|size| size == 0 || size > LARGEST_OBJECT_BYTES) {
            return response;
        }
        let (parts, body) = response.into_parts();
        let Ok(body) = body.collect().await else { return Response::from_parts(parts, Body::empty()) };
        let bytes = body.to_bytes();
        if let Some(answer) = answer_object(&parts.headers, &bytes) {
            let reference = self.event.get_mut("objectRef").and_then(Value::as_object_mut);
            if let (Some(reference), Some(name)) = (reference, answer["metadata"]["name"].as_str()) {
                reference.entry("name").or_insert_with(|| name.into());
            }
            if self.decision.level == Level::RequestResponse {
                self.object("responseObject", answer);
            }
        }
        Response::from_parts(parts, Body::from(bytes))
    }

    fn object(&mut self, field: &str, mut object: Value) {
        if self.decision.omit_managed_fields {
            without_managed_fields(&mut object);
        }
        self.event.insert(field.to_owned(), object);
    }
}

/// What is answered where a request must not go on.
fn not_stored(request: &Request<Body>) -> Response<Body> {
    let uri = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = uri.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let text = format!("Internal Server Error: {uri:?}: failed to store audit event\n");
    respond::text(StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn answer_object(headers: &HeaderMap, bytes: &Bytes) -> Option<Value> {
    let media = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    if media.starts_with("application/vnd.kubernetes.protobuf") {
        return schema::decode_protobuf(bytes).ok();
    }
    media.starts_with("application/json").then(|| serde_json::from_slice(bytes).ok())?
}

/// Now, in microseconds.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A body that tells when it ends, whichever way.
struct Ending {
    body: Joined,
    end: Option<Box<dyn FnOnce() + Send>>,
}

impl http_body::Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}
