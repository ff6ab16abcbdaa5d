//! The one generic handler: every kind, built-in or custom, takes these roads.

mod create;
mod delete;
mod list_options;
mod managed;
mod negotiate;
mod patch;
mod read;
pub mod render;
mod update;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value};
use coxswain_store::{Collection, Key, LogError};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Limited};

pub use create::{New, Validation};
pub use delete::{Deleted, Options};
pub use managed::FieldManager;
pub use negotiate::{Form, Shape};
pub use patch::Patch;
pub use render::Stored;
pub use update::{Change, Part};

use crate::authn::UserInfo;
use crate::body::Body;
use crate::object::{self, Attributes, Meta};
use crate::request::{Query, RequestInfo};
use crate::resource::{Repeated, Resource};
use crate::respond::Outcome;
use crate::{Server, warnings};

/// Upstream's limit on the body of a request.
const LARGEST_BODY_BYTES: usize = 3 << 20;
/// A client that sends more than this after what is refused finds the connection closed.
const MOST_DISCARDED_BYTES: usize = 128 << 20;
const LONGEST_DISCARD: Duration = Duration::from_secs(10);

/// A request on a resource, authorized.
#[derive(Clone)]
pub struct Call {
    /// The server.
    pub server: Arc<Server>,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// What is asked.
    pub info: Arc<RequestInfo>,
    /// The query.
    pub query: Query,
    /// The headers.
    pub headers: HeaderMap,
    /// The row of the resource.
    pub kind: Resource,
}

impl Call {
    /// Finds the row of a request.
    pub fn new(
        server: Arc<Server>,
        user: Arc<UserInfo>,
        info: Arc<RequestInfo>,
        query: Query,
        headers: HeaderMap,
    ) -> Result<Self, Status> {
        let kind =
            server.find(&info.group, &info.version, &info.resource).ok_or_else(Status::unknown_path)?;
        let scoped = !info.namespace.is_empty() && info.resource != "namespaces";
        let single =
            matches!(info.verb, "get" | "update" | "patch" | "delete" | "deletecollection" | "create");
        if (scoped && !kind.namespaced()) || (kind.namespaced() && !scoped && single) {
            return Err(if kind.namespaced() {
                Status::method_not_allowed_here()
            } else {
                Status::unknown_path()
            });
        }
        if let Some(warning) = kind.deprecation() {
            warnings::add(warning);
        }
        Ok(Self { server, user, info, query, headers, kind })
    }

    /// Answers a request on the resource itself or its `status`.
    pub async fn run(&self, request: Request<Body>) -> Outcome {
        let verb = self.info.verb;
        if !self.info.tail.is_empty() {
            return Err(Status::unknown_path());
        }
        let misplaced = match verb {
            "create" => !self.info.name.is_empty() && self.info.subresource.is_empty(),
            "update" | "patch" => self.info.name.is_empty(),
            _ => false,
        };
        if misplaced || !self.kind.verbs().contains(&verb) {
            return Err(Status::method_not_allowed_here());
        }
        if self.kind.row_of_catalogue().is_some() {
            negotiate::routed(&self.headers, matches!(verb, "list" | "watch"))?;
        }
        match verb {
            "get" => self.get().await,
            "list" => self.list().await,
            "watch" => self.watch().await,
            // Reads shall not carry the room that writes need.
            "create" => Box::pin(self.post(request)).await,
            "update" => Box::pin(self.put(request)).await,
            "patch" => Box::pin(self.patch(request)).await,
            "delete" => Box::pin(self.delete(request)).await,
            "deletecollection" => Box::pin(self.delete_collection(request)).await,
            _ => Err(Status::method_not_allowed_here()),
        }
    }

    /// Refuses the metadata of one object where there is a list, and that of a list where there is one object.
    fn check_shape_of_metadata(&self, form: Form) -> Result<(), Status> {
        let package = match self.kind.storage().0 {
            _ if self.kind.custom().is_some() => "unstructured.Unstructured".to_owned(),
            "" => format!("core.{}", self.kind.kind()),
            group => format!("{}.{}", group.split('.').next().unwrap_or_default(), self.kind.kind()),
        };
        match (form.shape, self.info.verb) {
            (Shape::Metadata(false), "list") => Err(Status::failure(
                406,
                "NotAcceptable",
                format!(
                    "you requested PartialObjectMetadata, but the requested object is a list (*{package}List)"
                ),
            )),
            (Shape::Metadata(true), "get") => Err(Status::failure(
                406,
                "NotAcceptable",
                format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list (*{package})"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The form of the answer that the client asked for.
    pub fn form(&self) -> Result<Form, Status> {
        let form = Form::accepted(&self.headers, self.kind.schema().is_some())?;
        self.check_shape_of_metadata(form)?;
        let include = self.include_object();
        match form.shape == Shape::Table && !matches!(include, "Metadata" | "Object" | "None") {
            true => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {include:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
            false => Ok(form),
        }
    }

    /// The collection that keeps the kind.
    pub fn collection(&self) -> Arc<Collection<Attributes>> {
        self.server.store.collection(&object::collection(self.kind.storage()))
    }

    /// Where an object of the kind is kept.
    pub fn key(&self, name: &str) -> Key {
        key(&self.kind, &self.info.namespace, name)
    }

    /// The object that the path names.
    pub fn stored(&self) -> Result<Stored, Status> {
        self.server.store.get(&self.key(&self.info.name)).ok_or_else(|| self.not_found())
    }

    /// 404 for the object that the path names.
    pub fn not_found(&self) -> Status {
        Status::not_found(self.kind.group(), self.kind.plural(), &self.info.name)
    }

    /// Whether nothing is to be written.
    pub fn dry_run(&self) -> Result<bool, Status> {
        match self.query.all("dryRun").find(|value| *value != "All") {
            Some(other) => Err(Status::bad_request(format!(
                "Invalid value: \"{other}\": dryRun: Unsupported value: \"{other}\": supported values: \"All\""
            ))),
            None => Ok(self.query.all("dryRun").next().is_some()),
        }
    }
}

/// Where an object is kept.
pub fn key(kind: &Resource, namespace: &str, name: &str) -> Key {
    let name = if kind.namespaced() { [namespace, "/", name].concat() } else { name.to_owned() };
    Key::new(object::collection(kind.storage()), name)
}

/// Reads a whole body, up to upstream's limit.
pub async fn read_body(request: Request<Body>) -> Result<Bytes, Status> {
    let declared = request
        .headers()
        .get(http::header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let mut body = request.into_body();
    if declared.is_none_or(|length| length <= LARGEST_BODY_BYTES) {
        match Limited::new(&mut body, LARGEST_BODY_BYTES).collect().await {
            Ok(body) => return Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {}
            Err(error) => {
                return Err(Status::bad_request(format!("unable to read the request body: {error}")));
            }
        }
    }
    // Who is slower than that is answered while he still sends.
    let _ = tokio::time::timeout(LONGEST_DISCARD, discard(body)).await;
    Err(Status::too_large(LARGEST_BODY_BYTES as u64))
}

/// Takes what a client is still sending: it reads the answer only then.
async fn discard(mut body: Body) {
    let mut left = MOST_DISCARDED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Buf::remaining);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// A document as it was sent, and the fields it repeats.
pub async fn read_document(request: Request<Body>) -> Result<(Value, Repeated), Status> {
    let headers = request.headers().clone();
    document(&headers, &read_body(request).await?)
}

/// The object of a kind that a request brings, and the fields it repeats.
pub async fn read_object(kind: &Resource, request: Request<Body>) -> Result<(Value, Repeated), Status> {
    let headers = request.headers().clone();
    let body = read_body(request).await?;
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = media.is_empty() || media.starts_with("application/json");
    let (mut object, repeated) = document(&headers, &body).map_err(|why| match is_json {
        true => unrecognized(kind, &format!("{TYPELESS}: {}", why.message), &body),
        false => why,
    })?;
    let what = match &object {
        Value::Object(map) => {
            // Custom objects say themselves what they are.
            if kind.custom().is_some() && map.get("kind").and_then(Value::as_str).is_none_or(str::is_empty) {
                let why = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(&body));
                return Err(unrecognized(kind, &why, &body));
            }
            check_type(kind, &mut object)?;
            return Ok((object, repeated));
        }
        other => coxswain_meta::golang::json_kind(other),
    };
    Err(unrecognized(
        kind,
        &format!("{TYPELESS}: json: cannot unmarshal {what} into Go value of type {TYPE_META}"),
        &body,
    ))
}

const TYPELESS: &str = "couldn't get version/kind; json parse error";
/// What upstream reads a body into to learn its type.
const TYPE_META: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// 400 for a body that says nothing of its type, with as much of it as upstream shows.
fn unrecognized(kind: &Resource, why: &str, body: &[u8]) -> Status {
    const SHOWN: usize = 30;
    let text = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(body).into_owned(),
        Some(_) => body.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect(),
    };
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str(" ...");
    }
    let kind = kind.kind();
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    ))
}

/// A document in the form that the headers name.
pub fn document(headers: &HeaderMap, body: &Bytes) -> Result<(Value, Repeated), Status> {
    let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match media.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => {
            let (value, faults) = parse(body)?;
            Ok((value, Repeated { faults, json: body.clone() }))
        }
        "application/yaml" => {
            let (value, duplicates) = read_yaml(body)?;
            let repeated = repeated_keys(body, &duplicates);
            let faults = (!repeated.is_empty())
                .then(|| format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  ")));
            Ok((value, Repeated { faults: faults.into_iter().collect(), json: Bytes::new() }))
        }
        "application/vnd.kubernetes.protobuf" => {
            Ok((schema::decode_protobuf(body).map_err(Status::bad_request)?, Repeated::default()))
        }
        _ => Err(Status::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// Parses YAML as a request body.
pub fn read_yaml(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    schema::parse_yaml_strict(body)
        .map_err(|error| Status::bad_request(format!("error parsing YAML: {error}")))
}

/// Repeated keys of a YAML document, with the lines where they are repeated.
pub fn repeated_keys(body: &[u8], duplicates: &[String]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let place = |duplicate: &String| {
        let path = duplicate.trim_start_matches("duplicate field \"").trim_end_matches('"');
        // A key may have dots itself: the longest end of the path that the text has as a key.
        let tails = std::iter::successors(Some(path), |tail| tail.split_once('.').map(|(_, rest)| rest));
        let is_key =
            |tail: &&str| text.contains(&format!("\"{tail}\":")) || text.contains(&format!("{tail}:"));
        let key = tails.clone().find(is_key).or(tails.last()).unwrap_or(path);
        let mut seen: Vec<usize> = Vec::new();
        let line = text.lines().position(|line| {
            let bare = line.trim_start().trim_start_matches("- ");
            let indent = line.len() - bare.len();
            let names = bare.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
            let again = names && seen.contains(&indent);
            seen.extend(names.then_some(indent));
            again || line.matches(&format!("\"{key}\":")).count() > 1
        });
        format!("line {}: key {key:?} already set in map", line.map_or(1, |at| at + 1))
    };
    duplicates.iter().map(place).collect()
}

/// Parses JSON as a request body.
pub fn parse(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    schema::parse_json_strict(body).map_err(Status::bad_request)
}

/// Checks that a document names the kind it is sent to, and fills the names in where it names none.
pub fn check_type(kind: &Resource, object: &mut Value) -> Result<(), Status> {
    let version = kind.api_version();
    let Some(map) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error",
            kind.kind()
        )));
    };
    let text = |field: &str, map: &Map| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (sent_version, sent_kind) = (text("apiVersion", map), text("kind", map));
    if (!sent_version.is_empty() && sent_version != version)
        || (!sent_kind.is_empty() && sent_kind != kind.kind())
    {
        let (sent_group, in_group) = sent_version.split_once('/').unwrap_or(("", &sent_version));
        let is_known = schema::by_gvk(sent_group, in_group, &sent_kind).is_some();
        if is_known && kind.schema().is_some() && sent_kind != kind.kind() {
            let package = match kind.group() {
                "" => "core",
                group => group.split('.').next().unwrap_or_default(),
            };
            return Err(Status::bad_request(format!(
                "{sent_kind} in version \"{in_group}\" cannot be handled as a {wanted}: converting ({in_group}.{sent_kind}) to ({package}.{wanted}): unknown conversion",
                wanted = kind.kind()
            )));
        }
        // Versions that came before are registered upstream, if not served.
        let was_before = in_group.contains("alpha") || in_group.contains("beta");
        let known_elsewhere = is_known || was_before || kind.schema().is_none();
        if sent_kind == kind.kind() && sent_group == kind.group() && known_elsewhere || sent_kind.is_empty() {
            return Err(Status::bad_request(format!(
                "the API version in the data ({sent_version}) does not match the expected API version ({version})"
            )));
        }
        return Err(Status::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: no kind \"{sent_kind}\" is registered for version \"{sent_version}\"{}",
            sent_kind,
            sent_version.rsplit('/').next().filter(|version| !version.is_empty()).unwrap_or(kind.version()),
            kind.kind(),
            // Where upstream's types are registered is part of its words.
            if kind.schema().is_some() { " in scheme \"pkg/runtime/scheme.go:111\"" } else { "" }
        )));
    }
    map.insert("apiVersion", version.into());
    map.insert("kind", kind.kind().into());
    Ok(())
}

impl Server {
    /// One object of those that writes of others look up, in its storage form, as of now.
    pub fn look_up(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let name = if namespace.is_empty() { name.to_owned() } else { [namespace, "/", name].concat() };
        let stored = self.store.get(&Key::new(object::collection((group, plural)), name))?;
        Some(object::looked_up(&stored))
    }

    /// Every object of a collection that writes of others look up.
    pub fn look_up_all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Arc<Value>> {
        let prefix = if namespace.is_empty() { String::new() } else { [namespace, "/"].concat() };
        let stored = self.store.collection(&object::collection((group, plural))).list(&prefix);
        stored.iter().map(|stored| object::looked_up(stored)).collect()
    }

    /// One object in its storage form, as of now.
    pub fn read(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let name = if namespace.is_empty() { name.to_owned() } else { [namespace, "/", name].concat() };
        let stored = self.store.get(&Key::new(object::collection((group, plural)), name))?;
        serde_json::from_slice(&stored.bytes).ok()
    }

    /// Every object of a collection in its storage form; an empty namespace means all.
    pub fn read_all(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let prefix = if namespace.is_empty() { String::new() } else { [namespace, "/"].concat() };
        let stored = self.store.collection(&object::collection((group, plural))).list(&prefix);
        stored.iter().filter_map(|stored| serde_json::from_slice(&stored.bytes).ok()).collect()
    }
}

/// What a request is told when the store cannot say what is newest.
pub fn unreadable(error: &LogError) -> Status {
    tracing::error!(%error, "the store cannot be read");
    Status::unavailable(format!("the datastore does not answer now: {error}"))
}

/// The name of an object for messages: its name, or the prefix of the name to come.
pub fn display_name(object: &Value) -> &str {
    let name = object.name();
    if name.is_empty() { object.meta_str("generateName") } else { name }
}
