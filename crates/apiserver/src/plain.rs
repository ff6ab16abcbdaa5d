//! Paths that are no resources: health, version, discovery, OpenAPI and the keys of service account tokens.

use bytes::Bytes;
use coxswain_api::openapi::{self, CustomKind};
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use std::sync::Arc;

use crate::Server;
use crate::body::Body;
use crate::discovery;
use crate::health;
use crate::metrics;
use crate::request::{Query, RequestInfo};
use crate::respond::{self, Outcome};

const FLOW_CONTROL_DEBUG: &str = "/debug/api_priority_and_fairness/";
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers a request that names no resource.
pub async fn answer(server: &Arc<Server>, info: &RequestInfo, request: Request<Body>) -> Outcome {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed_here());
    }
    let path = info.path.trim_end_matches('/');
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if let Some(answer) = health::answer(server, path, &query).await {
        return answer;
    }
    let headers = request.headers();
    match path {
        "/metrics" => return Ok(metrics::answer(server)),
        "/version" => return Ok(respond::json(StatusCode::OK, &version(&server.config.version))),
        "/openid/v1/jwks" => return Ok(respond::json(StatusCode::OK, &server.tokens.key_set())),
        "/.well-known/openid-configuration" => {
            let issuer = &server.tokens.issuer;
            let (address, port) = server.config.advertise;
            return Ok(respond::json(
                StatusCode::OK,
                &json!({ "issuer": issuer, "jwks_uri": format!("https://{address}:{port}/openid/v1/jwks"),
                    "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"] }),
            ));
        }
        "/openapi/v3" => {
            return Ok(respond::json(
                StatusCode::OK,
                &openapi::v3_index(&server.custom_kinds(), &server.backends.v3_urls(server)),
            ));
        }
        "/openapi/v2" => return openapi_v2(server, headers).ok_or_else(Status::unknown_path),
        "" => return Ok(respond::json(StatusCode::OK, &json!({ "paths": paths() }))),
        _ => {}
    }
    if let (Some(page), Some(flow)) = (path.strip_prefix(FLOW_CONTROL_DEBUG), &server.flow) {
        let page = flow.dump(page, &query).ok_or_else(Status::unknown_path)?;
        return Ok(respond::text(StatusCode::OK, page));
    }
    if let Some(document) = path.strip_prefix("/openapi/v3/") {
        if let Some((tag, made)) = server.backends.v3_made(server, document) {
            let build = |_: &[CustomKind]| Some(made.to_string().into_bytes());
            let answer = tagged(headers, "application/json", (&[], &[tag]), build);
            return answer.ok_or_else(Status::unknown_path);
        }
        let build = |customs: &[CustomKind]| openapi::v3_document(document, customs);
        let answer = tagged(headers, "application/json", (&server.custom_kinds(), &[]), build);
        return answer.ok_or_else(Status::unknown_path);
    }
    let (address, port) = server.config.advertise;
    discovery::answer(server, path, headers, &format!("{address}:{port}")).ok_or_else(Status::unknown_path)
}

fn version(git_version: &str) -> Value {
    let mut parts = git_version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    json!({ "major": major, "minor": minor, "gitVersion": git_version, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()) })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths() -> Vec<&'static str> {
    vec![
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
}

fn openapi_v2(server: &Server, headers: &HeaderMap) -> Option<Response<Body>> {
    let customs = server.custom_kinds();
    let (tags, others) = server.backends.v2_documents(server);
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("com.github.proto-openapi.spec.v2") {
        let build = |customs: &[CustomKind]| Some(openapi::v2_protobuf(customs, &others));
        return tagged(headers, OPENAPI_V2_PROTOBUF, (&customs, &tags), build);
    }
    let build = |customs: &[CustomKind]| Some(openapi::v2_json(customs, &others));
    tagged(headers, "application/json", (&customs, &tags), build)
}

/// A document with its ETag, which `others` say of what is not the own part of it; 304, without building it, where the client has it.
fn tagged(
    headers: &HeaderMap,
    media: &'static str,
    (customs, others): (&[CustomKind], &[u64]),
    build: impl FnOnce(&[CustomKind]) -> Option<Vec<u8>>,
) -> Option<Response<Body>> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (openapi::hash(), media, customs, others).hash(&mut hasher);
    let tag = format!("\"{:016X}\"", hasher.finish());
    let known = headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => respond::json_bytes(StatusCode::NOT_MODIFIED, Bytes::new()),
        false => respond::json_bytes(StatusCode::OK, build(customs)?),
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    Some(response)
}
