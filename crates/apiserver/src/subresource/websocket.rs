//! A stream that a client reads as messages of a WebSocket: logs, for browsers.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::Status;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::body::Body;
use crate::respond::Outcome;

const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
const PROTOCOL: &str = "sec-websocket-protocol";
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// Whether a request asks for a WebSocket.
pub fn is_asked(request: &Request<Body>) -> bool {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Answers with a WebSocket that carries a body.
pub fn answer(mut request: Request<Body>, body: Body) -> Outcome {
    let key = request.headers().get(KEY).ok_or_else(|| Status::bad_request("missing Sec-WebSocket-Key"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Status::bad_request("bad Sec-WebSocket-Key"))?;
    let offered = request.headers().get(PROTOCOL).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let protocol = match offered {
        "" => None,
        offered => Some(
            offered
                .split(',')
                .map(str::trim)
                .find_map(|offer| [BINARY, BASE64].into_iter().find(|known| *known == offer))
                .ok_or_else(|| Status::bad_request(format!("unsupported subprotocols {offered:?}")))?,
        ),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(connection) => send(TokioIo::new(connection), body, protocol == Some(BASE64)).await,
            Err(error) => tracing::debug!(%error, "a WebSocket was not taken"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(ACCEPT, accept);
    if let Some(protocol) = protocol {
        headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// Sends until the body or the client ends.
async fn send<S>(connection: S, body: Body, base64: bool)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
    let (mut messages, mut client) = socket.split();
    let mut parts = body.joined().into_data_stream();
    loop {
        let message = tokio::select! {
            part = parts.next() => match part {
                Some(Ok(part)) if base64 => Message::text(BASE64_STANDARD.encode(part)),
                Some(Ok(part)) => Message::binary(part),
                Some(Err(_)) | None => break,
            },
            said = client.next() => match said {
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
        };
        if messages.send(message).await.is_err() {
            return;
        }
    }
    let _ = messages.close().await;
}
