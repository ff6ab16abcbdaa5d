//! HTTP in front of the streams: a URL's ticket is redeemed, the connection upgraded.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::session::session;
use super::{Ticket, portforward, process, spdy, websocket};
use crate::runtime::Runtime;

/// Header in which SPDY clients and servers agree on a version.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// Versions of the remote command protocol, the best first.
const COMMAND_PROTOCOLS: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// The one version of the port forward protocol over SPDY.
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// Serves until the runtime is cancelled.
pub(crate) async fn serve(runtime: Arc<Runtime>, listener: TcpListener) {
    let cancel = runtime.cancel.clone();
    let routes = Router::new().route("/{kind}/{token}", any(stream)).with_state(runtime);
    let served = axum::serve(listener, routes).into_future();
    tokio::select! {
        outcome = served => if let Err(error) = outcome {
            tracing::warn!(%error, "the streaming server ended");
        },
        () = cancel.cancelled() => {}
    }
}

async fn stream(
    State(runtime): State<Arc<Runtime>>,
    Path((kind, token)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Some(ticket) = runtime.streaming.redeem(&kind, &token) else {
        return (StatusCode::NOT_FOUND, "404: unknown or used streaming URL\n").into_response();
    };
    let upgrade =
        request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match upgrade.to_ascii_lowercase().as_str() {
        "websocket" => over_websocket(runtime, ticket, request).await,
        "spdy/3.1" => over_spdy(runtime, ticket, request),
        _ => (StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request\n")
            .into_response(),
    }
}

async fn over_websocket(runtime: Arc<Runtime>, ticket: Ticket, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    let protocols: &[&str] = match ticket {
        Ticket::PortForward(_) => &websocket::FORWARD_PROTOCOLS,
        _ => &websocket::COMMAND_PROTOCOLS,
    };
    let upgrade = upgrade.protocols(protocols.iter().copied());
    let protocol =
        upgrade.selected_protocol().and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
    upgrade.on_upgrade(move |socket| async move {
        match ticket {
            Ticket::PortForward(request) if protocol == websocket::TUNNEL_PROTOCOL => {
                let connection = spdy::Connection::serve(websocket::tunnel(socket));
                portforward::over_spdy(&runtime, &request.pod_sandbox_id, connection).await;
            }
            Ticket::PortForward(request) => {
                portforward::over_websocket(&runtime, &request, socket, &protocol).await;
            }
            Ticket::Exec(request) => {
                let (session, carrier) = session();
                let carried = websocket::carry(socket, &protocol, carrier);
                tokio::join!(process::exec(runtime, request, session), carried);
            }
            Ticket::Attach(request) => {
                let (session, carrier) = session();
                let carried = websocket::carry(socket, &protocol, carrier);
                tokio::join!(process::attach(runtime, request, session), carried);
            }
        }
    })
}

fn over_spdy(runtime: Arc<Runtime>, ticket: Ticket, mut request: Request) -> Response {
    let offered = offered_protocols(request.headers());
    let supported: &[&'static str] = match ticket {
        Ticket::PortForward(_) => &[FORWARD_PROTOCOL],
        // Without a header it is the oldest.
        _ if offered.is_empty() => &["channel.k8s.io"],
        _ => &COMMAND_PROTOCOLS,
    };
    let fits = |name: &&&str| offered.is_empty() || offered.iter().any(|offer| offer == **name);
    let Some(&protocol) = supported.iter().find(fits) else {
        let message =
            format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}\n");
        return (StatusCode::FORBIDDEN, message).into_response();
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let tasks = runtime.tasks.clone();
    tasks.spawn(async move {
        let io = match upgraded.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "a client left before its upgrade"),
        };
        let cancel = runtime.cancel.clone();
        let connection = spdy::Connection::serve(io);
        tokio::select! {
            () = converse(&runtime, ticket, protocol, connection) => {}
            () = cancel.cancelled() => {}
        }
    });
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

async fn converse(runtime: &Arc<Runtime>, ticket: Ticket, protocol: &str, connection: spdy::Connection) {
    match ticket {
        Ticket::PortForward(request) => {
            portforward::over_spdy(runtime, &request.pod_sandbox_id, connection).await
        }
        Ticket::Exec(request) => {
            let wanted = spdy::Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr && !request.tty,
                tty: request.tty,
            };
            let (session, carrier) = session();
            let carried = spdy::carry(connection, protocol, wanted, carrier);
            tokio::join!(process::exec(runtime.clone(), request, session), carried);
        }
        Ticket::Attach(request) => {
            let wanted = spdy::Wanted {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr && !request.tty,
                tty: request.tty,
            };
            let (session, carrier) = session();
            let carried = spdy::carry(connection, protocol, wanted, carrier);
            tokio::join!(process::attach(runtime.clone(), request, session), carried);
        }
    }
}

/// The versions a client offers, in headers of their own or in one with commas.
fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(STREAM_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|n| !n.is_empty())
        .collect()
}
