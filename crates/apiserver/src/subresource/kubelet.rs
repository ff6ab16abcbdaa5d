//! What the server asks of others for a client: the kubelet's logs and streams, and the proxy to pods, services and nodes.
//!
//! Upgraded connections are piped as they are: the protocols inside are spoken by the container runtime.

use std::net::SocketAddr;

use axum::body::Body;
use coxswain_meta::Status;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::Server;
use crate::handler::Call;
use crate::respond::Outcome;

const KUBELET_PORT: u16 = 10250;

/// GET of a container's log.
pub async fn log(call: &Call, request: Request<Body>) -> Outcome {
    let (pod, node) = placed(call)?;
    let container = container(call, &pod)?;
    let path = format!("/containerLogs/{}/{}/{container}", call.info.namespace, call.info.name);
    to_kubelet(&call.server, node, Method::GET, &with_query(&path, &request), request).await
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

/// Any request to a port of a pod, service or node.
pub async fn proxy(call: &Call, request: Request<Body>) -> Outcome {
    let (scheme, name, port) = split(&call.info.name);
    let path = if call.info.tail.is_empty() { "/" } else { &call.info.tail };
    let path = match request.uri().path().ends_with('/') && !path.ends_with('/') {
        true => with_query(&format!("{path}/"), &request),
        false => with_query(path, &request),
    };
    let method = request.method().clone();
    let server = &call.server;
    match call.kind.plural() {
        "nodes" => {
            let node = server.read("", "nodes", "", name).ok_or_else(|| call.not_found())?;
            to_kubelet(server, address_of(&node)?, method, &path, request).await
        }
        "pods" => {
            let pod = server
                .read("", "pods", &call.info.namespace, name)
                .ok_or_else(|| Status::not_found("", "pods", name))?;
            let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
            let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
            let default = pod["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64().unwrap_or(80);
            let port = named_port(port, default, |name| container_port(&pod, name))?;
            to_address(SocketAddr::new(ip, port), scheme == "https", method, &path, request).await
        }
        _ => {
            let address = endpoint(server, &call.info.namespace, name, port)?;
            to_address(address, scheme == "https", method, &path, request).await
        }
    }
}

/// `[scheme:]name[:port]`.
fn split(text: &str) -> (&str, &str, &str) {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", text, ""),
    }
}

fn named_port(port: &str, default: u64, named: impl Fn(&str) -> Option<u64>) -> Result<u16, Status> {
    let number = match port {
        "" => Some(default),
        port => port.parse().ok().or_else(|| named(port)),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .ok_or_else(|| Status::unavailable(format!("no endpoints available for port \"{port}\"")))
}

fn container_port(pod: &Value, name: &str) -> Option<u64> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == name)?["containerPort"].as_u64()
}

/// A ready endpoint of a service's port.
pub fn endpoint(server: &Server, namespace: &str, name: &str, port: &str) -> Result<SocketAddr, Status> {
    let service = server
        .read("", "services", namespace, name)
        .ok_or_else(|| Status::not_found("", "services", name))?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| match port {
        "" => ports.len() == 1 || p["name"].is_null(),
        port => p["name"] == port || p["port"].as_u64().is_some_and(|number| number.to_string() == port),
    });
    let port_name = wanted.map(|port| port["name"].as_str().unwrap_or_default());
    let none = || Status::unavailable(format!("no endpoints available for service \"{name}\""));
    let port_name = port_name.ok_or_else(none)?;
    for slice in server.read_all("discovery.k8s.io", "endpointslices", namespace) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .filter(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|p| p["port"].as_u64());
        let ready =
            slice["endpoints"].as_array().into_iter().flatten().find(|e| e["conditions"]["ready"] != false);
        let ip = ready.and_then(|e| e["addresses"][0].as_str()?.parse().ok());
        if let (Some(number), Some(ip)) = (number.and_then(|n| u16::try_from(n).ok()), ip) {
            return Ok(SocketAddr::new(ip, number));
        }
    }
    Err(none())
}

/// The pod of a call and the kubelet it runs under.
fn placed(call: &Call) -> Result<(Value, SocketAddr), Status> {
    let pod = call
        .server
        .read("", "pods", &call.info.namespace, &call.info.name)
        .ok_or_else(|| call.not_found())?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.info.name)));
    }
    let node = call.server.read("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
    let address = address_of(&node)?;
    Ok((pod, address))
}

fn address_of(node: &Value) -> Result<SocketAddr, Status> {
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

fn with_query(path: &str, request: &Request<Body>) -> String {
    match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

async fn to_kubelet(
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

async fn to_address(
    address: SocketAddr,
    tls: bool,
    method: Method,
    path: &str,
    request: Request<Body>,
) -> Outcome {
    if tls {
        return Err(Status::bad_request("the proxy does not speak https to pods and services"));
    }
    let connect = tokio::time::timeout(std::time::Duration::from_secs(10), TcpStream::connect(address)).await;
    match connect {
        Ok(Ok(stream)) => forward(stream, address, method, path, request).await,
        Ok(Err(error)) => Err(Status::unavailable(format!("error trying to reach service: {error}"))),
        Err(_) => Err(Status::unavailable(format!(
            "error trying to reach service: dial tcp {address}: i/o timeout"
        ))),
    }
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
