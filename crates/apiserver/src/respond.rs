//! Responses: JSON bodies, bodies in pieces, and the one place where a failure becomes an HTTP answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use coxswain_meta::Status;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
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

/// A long answer whose parts are joined as they are sent: the whole is never in memory at once.
pub fn parts(media: &'static str, parts: Vec<Bytes>) -> Response<Body> {
    let left = parts.iter().map(Bytes::len).sum();
    let mut response = Response::new(Body::new(Parts { parts: parts.into_iter(), rest: Bytes::new(), left }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// A body that is told in parts and sent in frames of one size.
struct Parts {
    parts: std::vec::IntoIter<Bytes>,
    /// What the last frame had no room for.
    rest: Bytes,
    left: usize,
}

/// With its header, a frame fills one record of TLS.
const FRAME_BYTES: usize = (16 << 10) - 9;

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut frame = BytesMut::with_capacity(self.left.min(FRAME_BYTES));
        while frame.len() < FRAME_BYTES {
            if self.rest.is_empty() {
                let Some(next) = self.parts.next() else { break };
                self.rest = next;
            }
            let length = self.rest.len().min(FRAME_BYTES - frame.len());
            frame.put(self.rest.split_to(length));
        }
        self.left -= frame.len();
        Poll::Ready((!frame.is_empty()).then(|| Ok(Frame::data(frame.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
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
