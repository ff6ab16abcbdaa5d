//! Responses: JSON bodies, compression, and the one place where a failure becomes an HTTP answer.

use crate::body::Body;
use bytes::Bytes;
use coxswain_meta::Status;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use http::{Response, StatusCode};
use serde::Serialize;

/// The answer of a handler.
pub type Outcome = Result<Response<Body>, Status>;

/// Bytes of a media type.
pub fn bytes(code: StatusCode, media: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Bytes that are JSON.
pub fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    self::bytes(code, "application/json", bytes)
}

/// A long answer out of parts.
pub fn parts(media: &'static str, parts: Vec<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from_parts(parts));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// Compresses an answer for a client that takes gzip, as its `Accept-Encoding` says.
pub fn compress(accepted: Option<&HeaderValue>, response: Response<Body>) -> Response<Body> {
    let accepted = accepted.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let codings = accepted.split(',').filter_map(|coding| coding.split(';').next());
    if !codings.map(str::trim).any(|coding| coding == "gzip") {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let body = body.compressed().inspect(|_| {
        head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        head.headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    });
    Response::from_parts(head, body.unwrap_or_else(|body| body))
}

/// A value as JSON.
pub fn json(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(code, bytes),
        Err(error) => failure(&Status::internal(&error.to_string())),
    }
}

/// Plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A `Status` as an answer.
pub fn failure(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_bytes(code, serde_json::to_vec(status).unwrap_or_default());
    if let Some(seconds) =
        status.details.as_ref().map(|d| d.retry_after_seconds).filter(|seconds| *seconds > 0)
    {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning` headers (RFC 7234, code 299), as field validation and deprecations give them.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(http::header::WARNING, value);
        }
    }
}
