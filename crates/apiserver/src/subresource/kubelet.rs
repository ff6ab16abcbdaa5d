//! What the server asks of kubelets for a client: logs and streams.
//!
//! Upgraded connections are piped as they are: the protocols inside are spoken by the container runtime.

use std::net::SocketAddr;

use coxswain_meta::Status;
use coxswain_meta::json::Value;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::websocket;
use crate::Server;
use crate::body::Body;
use crate::handler::Call;
use crate::respond::Outcome;

const KUBELET_PORT: u16 = 10250;

/// GET of a container's log, as a plain body or as messages of a WebSocket.
pub async fn log(call: &Call, request: Request<Body>) -> Outcome {
    let pod = pod(call)?;
    let container = container(call, &pod)?;
    if pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        // Nothing ran yet, so nothing was said.
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let (_, node) = placed(call)?;
    let path = format!("/containerLogs/{}/{}/{container}", call.info.namespace, call.info.name);
    let path = with_query(&path, &request);
    if !websocket::is_asked(&request) {
        return to_kubelet(&call.server, node, Method::GET, &path, request).await;
    }
    let said = to_kubelet(&call.server, node, Method::GET, &path, Request::default()).await?;
    if !said.status().is_success() {
        return Ok(said);
    }
    websocket::answer(request, said.into_body())
}

/// Exec, attach and port forward: an upgraded connection to the kubelet.
pub async fn stream(call: &Call, request: Request<Body>) -> Outcome {
    let (pod, node) = placed(call)?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let path = match call.info.subresource.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        verb => format!("/{verb}/{namespace}/{name}/{}", container(call, &pod)?),
    };
    let method = request.method().clone();
    to_kubelet(&call.server, node, method, &with_query(&path, &request), request).await
}

fn pod(call: &Call) -> Result<Value, Status> {
    let pod = call.server.read("", "pods", &call.info.namespace, &call.info.name);
    pod.ok_or_else(|| call.not_found())
}

/// The pod of a call and the kubelet it runs under.
fn placed(call: &Call) -> Result<(Value, SocketAddr), Status> {
    let pod = pod(call)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.info.name)));
    }
    let node = call.server.read("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let address = address_of(&node)?;
    Ok((pod, address))
}

pub fn address_of(node: &Value) -> Result<SocketAddr, Status> {
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let ip =
        addresses.filter(|a| a["type"] == "InternalIP").find_map(|a| a["address"].as_str()?.parse().ok());
    match ip {
        Some(ip) => Ok(SocketAddr::new(ip, port.unwrap_or(KUBELET_PORT))),
        None => Err(Status::unavailable("no preferred addresses found; known addresses: []")),
    }
}

/// The container a call means: the one it names, or the only (or first) one.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (own, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = &call.info.name;
    match call.query.get("container") {
        Some(name) if [&own, &init, &ephemeral].iter().any(|list| list.iter().any(|other| other == name)) => {
            Ok(name.to_owned())
        }
        Some(name) => Err(Status::bad_request(format!("container {name} is not valid for pod {pod_name}"))),
        None => match own.as_slice() {
            [only] => Ok(only.clone()),
            _ => {
                let also = if init.is_empty() {
                    String::new()
                } else {
                    format!(" or one of the init containers: [{}]", init.join(" "))
                };
                let names = own.join(" ");
                Err(Status::bad_request(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{names}]{also}"
                )))
            }
        },
    }
}

pub fn with_query(path: &str, request: &Request<Body>) -> String {
    match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

pub async fn to_kubelet(
    server: &Server,
    node: SocketAddr,
    method: Method,
    path: &str,
    request: Request<Body>,
) -> Outcome {
    let tls = server
        .config
        .kubelet_tls
        .clone()
        .ok_or_else(|| Status::unavailable("this server reaches no kubelets"))?;
    let unreachable =
        |error: &dyn std::fmt::Display| Status::internal(&format!("error dialing backend: {error}"));
    let stream = TcpStream::connect(node).await.map_err(|error| unreachable(&error))?;
    let name = ServerName::IpAddress(node.ip().into());
    let stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|error| unreachable(&error))?;
    forward(stream, node, method, path, request).await
}

/// Sends a request over a fresh connection; an answer of 101 joins the two connections.
pub async fn forward<S>(
    stream: S,
    address: SocketAddr,
    method: Method,
    path: &str,
    mut request: Request<Body>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn std::fmt::Display| {
        Status::internal(&format!("error in the connection to {address}: {error}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "proxied connection ended");
        }
    });
    let upgrading = request.headers().contains_key(UPGRADE);
    let client = upgrading.then(|| hyper::upgrade::on(&mut request));
    let (mut head, body) = request.into_parts();
    (head.method, head.uri) =
        (method, path.parse::<Uri>().map_err(|error| Status::bad_request(error.to_string()))?);
    head.version = http::Version::HTTP_11;
    head.headers.remove(http::header::AUTHORIZATION);
    if let Ok(host) = HeaderValue::from_str(&address.to_string()) {
        head.headers.insert(HOST, host);
    }
    if !upgrading {
        head.headers.remove(CONNECTION);
    }
    let mut response =
        sender.send_request(Request::from_parts(head, body)).await.map_err(|error| failed(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(backend)) = tokio::join!(client, backend) {
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            }
        });
    }
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, Body::new(body)))
}
