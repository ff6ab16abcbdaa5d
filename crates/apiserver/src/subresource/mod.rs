//! What lies below an object and is more than a part of it.

mod approval;
mod kubelet;
mod pod;
mod proxy;
pub mod review;
mod scale;
mod token;
mod websocket;

pub use kubelet::forward;
pub use proxy::endpoint;

use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use http::{Request, StatusCode};

use crate::admission::{Admission, Operation};
use crate::body::Body;
use crate::handler::{Call, Validation, check_type, read_document, render};
use crate::request::Query;
use crate::resource::decode_typed;
use crate::respond::{self, Outcome};
use crate::webhook::{Asked, Verb};

/// Answers a request on a subresource that the row lists.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    let name = call.info.subresource.as_str();
    let served = call.kind.subresources();
    let known = served.iter().find(|sub| sub.name == name).ok_or_else(Status::unknown_path)?;
    // A proxy passes every method on, also those that are no verbs.
    if !known.verbs.contains(&call.info.verb) && name != "proxy" {
        return Err(Status::method_not_allowed_here());
    }
    if let Some(options) = connect_options(call.kind.plural(), name) {
        let mut object = json!({ "kind": options, "apiVersion": "v1" });
        for (key, value) in call.query.pairs() {
            let value = match value {
                "true" | "1" => true.into(),
                "false" | "0" => false.into(),
                text if key == "command" => {
                    let mut words = object[key].as_array().cloned().unwrap_or_default();
                    words.push(text.into());
                    words.into()
                }
                text => text.into(),
            };
            object[key] = value;
        }
        admit(call, Verb::Connect, ("", "v1", options), object).await?;
    }
    match (call.kind.plural(), name) {
        (_, "scale") => scale::answer(call, request).await,
        ("pods", "binding") => pod::bind(call, request).await,
        ("pods", "eviction") => pod::evict(call, request).await,
        ("pods", "ephemeralcontainers" | "resize") => pod::replace_part(call, request).await,
        ("pods", "log") => kubelet::log(call, request).await,
        ("pods", "exec" | "attach" | "portforward") => kubelet::stream(call, request).await,
        ("pods" | "services" | "nodes", "proxy") => proxy::answer(call, request).await,
        ("serviceaccounts", "token") => token::request(call, request).await,
        ("certificatesigningrequests", "approval") => approval::answer(call, request).await,
        ("namespaces", "finalize") => finalize(call, request).await,
        _ => Err(Status::unknown_path()),
    }
}

/// The kind of the options that a stream is opened with.
fn connect_options(plural: &str, name: &str) -> Option<&'static str> {
    Some(match (plural, name) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return None,
    })
}

/// Asks plugins, webhooks and policies about what is sent to a subresource that has a kind of its own.
async fn admit(
    call: &Call,
    verb: Verb,
    own_kind: (&str, &str, &str),
    mut object: Value,
) -> Result<(), Status> {
    let asked = Asked {
        server: &call.server,
        kind: &call.kind,
        subresource: &call.info.subresource,
        own_kind: Some(own_kind),
        verb,
        user: &call.user,
        namespace: &call.info.namespace,
        name: &call.info.name,
        dry_run: call.dry_run()?,
    };
    if verb == Verb::Create {
        let admission = Admission {
            server: &call.server,
            kind: &call.kind,
            user: &call.user,
            operation: Operation::Create,
            subresource: &call.info.subresource,
            target: (&call.info.namespace, &call.info.name),
        };
        admission.validate(&object, None)?;
    }
    call.server.admit_mutating(&asked, &mut object, &Value::Null).await?;
    call.server.admit_validating(&asked, &object, &Value::Null).await
}

/// Namespace finalization: only `spec.finalizers` changes.
async fn finalize(call: &Call, request: Request<Body>) -> Outcome {
    let (mut sent, _) = read_document(request).await?;
    check_type(&call.kind, &mut sent)?;
    let change = call.change(crate::handler::Part::Verbatim)?;
    let bytes = call
        .server
        .update(&change, |old| {
            let mut new = old.clone();
            new["spec"]["finalizers"] =
                sent["spec"]["finalizers"].as_array().cloned().unwrap_or_default().into();
            new["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
            Ok(new)
        })
        .await?;
    Ok(respond::json_bytes(StatusCode::OK, render::bytes(&call.kind, &bytes)))
}

/// A document of a type that is not stored, such as a `Binding` of `core`.
async fn read_option_document(request: Request<Body>, package: &str, kind: &str) -> Result<Value, Status> {
    let validation = Validation::of(&Query::parse(request.uri().query().unwrap_or_default()))?;
    let (mut value, repeated) = read_document(request).await?;
    match value["kind"].as_str() {
        Some(sent) if !sent.is_empty() && sent != kind => {
            return Err(Status::bad_request(format!("{sent} cannot be handled as a {kind}")));
        }
        _ => {}
    }
    if let Some(of) = schema::by_name(&format!("io.k8s.api.{package}.v1.{kind}")) {
        decode_typed(&mut value, repeated, (of, "v1", kind), validation)?;
    }
    Ok(value)
}
