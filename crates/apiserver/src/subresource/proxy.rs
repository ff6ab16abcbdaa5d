//! The proxy to ports of pods, services and nodes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use coxswain_meta::Status;
use coxswain_meta::json::Value;
use html5gum::{DefaultEmitter, Token, Tokenizer};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::kubelet::{address_of, forward, to_kubelet, with_query};
use crate::Server;
use crate::body::Body;
use crate::handler::Call;
use crate::respond::Outcome;
use crate::webhook::trusting;

const CONNECT: Duration = Duration::from_secs(10);
/// A page whose links are rewritten is held whole.
const LARGEST_PAGE_BYTES: usize = 16 << 20;
/// Attributes of elements that hold addresses.
const LINKS: &[(&str, &str)] = &[
    ("a", "href"),
    ("area", "href"),
    ("audio", "src"),
    ("base", "href"),
    ("blockquote", "cite"),
    ("body", "background"),
    ("button", "formaction"),
    ("embed", "src"),
    ("form", "action"),
    ("frame", "src"),
    ("iframe", "src"),
    ("img", "src"),
    ("input", "src"),
    ("input", "formaction"),
    ("link", "href"),
    ("object", "data"),
    ("q", "cite"),
    ("script", "src"),
    ("source", "src"),
    ("video", "poster"),
    ("video", "src"),
];

/// Any request to a port of a pod, service or node.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    let (scheme, name, port) = split(&call.info.name);
    let outside = request.uri().path();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if call.info.tail.is_empty() && !outside.ends_with('/') && reads {
        // Relative links of the page would lead nowhere.
        return redirect(&with_query(&format!("{outside}/"), &request));
    }
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
            reach(SocketAddr::new(ip, port), scheme == "https", method, &path, request).await
        }
        _ => {
            let address = endpoint(server, &call.info.namespace, name, port)?;
            reach(address, scheme == "https", method, &path, request).await
        }
    }
}

fn redirect(location: &str) -> Outcome {
    let location = HeaderValue::from_str(location).map_err(|error| Status::bad_request(error.to_string()))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
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

/// Sends a request to a pod, and makes the links of its answer lead through the proxy again.
async fn reach(
    address: SocketAddr,
    tls: bool,
    method: Method,
    path: &str,
    request: Request<Body>,
) -> Outcome {
    let outside = request.uri().path().to_owned();
    let inside = path.split('?').next().unwrap_or_default();
    // What precedes the pod's own path in the address that the client uses.
    let prefix = outside.strip_suffix(inside).or_else(|| outside.strip_suffix(inside.trim_end_matches('/')));
    let prefix = prefix.unwrap_or(&outside).trim_end_matches('/').to_owned();
    let failed = |error: &dyn std::fmt::Display| {
        Status::unavailable(format!("error trying to reach service: {error}"))
    };
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| failed(&error))?,
        Err(_) => return Err(failed(&format!("dial tcp {address}: i/o timeout"))),
    };
    let answer = if tls {
        let name = ServerName::IpAddress(address.ip().into());
        // Pods have no certificates that anybody vouches for; upstream's proxy does not ask for one either.
        let tls = trusting(None, None).map_err(|error| Status::internal(&error))?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        forward(stream, address, method, path, request).await?
    } else {
        forward(stream, address, method, path, request).await?
    };
    through_proxy(answer, &prefix).await
}

/// An address in a pod's answer as the client has to write it: absolute paths get the proxy's own before them.
fn rewritten(link: &str, prefix: &str) -> Option<String> {
    let absolute = link.starts_with('/') && !link.starts_with("//") && !link.starts_with(prefix);
    absolute.then(|| format!("{prefix}{link}"))
}

async fn through_proxy(answer: Response<Body>, prefix: &str) -> Outcome {
    let (mut head, body) = answer.into_parts();
    if let Some(there) = head.headers.get(LOCATION).and_then(|value| value.to_str().ok())
        && let Some(there) = rewritten(there, prefix).and_then(|there| HeaderValue::from_str(&there).ok())
    {
        head.headers.insert(LOCATION, there);
    }
    if !is_plain_html(&head.headers) {
        return Ok(Response::from_parts(head, body));
    }
    let page = Limited::new(body, LARGEST_PAGE_BYTES).collect().await;
    let page =
        page.map_err(|error| Status::unavailable(format!("error reading the page: {error}")))?.to_bytes();
    head.headers.remove(CONTENT_LENGTH);
    let page = match std::str::from_utf8(&page) {
        Ok(text) => Bytes::from(with_links(text, prefix)),
        Err(_) => page,
    };
    Ok(Response::from_parts(head, Body::from(page)))
}

fn is_plain_html(headers: &HeaderMap) -> bool {
    let html = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    html.is_some_and(|value| value.starts_with("text/html")) && !headers.contains_key(CONTENT_ENCODING)
}

/// A page whose links lead through the proxy. Nothing else of it changes.
fn with_links(page: &str, prefix: &str) -> String {
    let mut rewritten_page = String::with_capacity(page.len());
    let mut copied = 0;
    let emitter = DefaultEmitter::<usize>::new_with_span();
    for token in Tokenizer::new_with_emitter(page, emitter).map_while(Result::ok) {
        let Token::StartTag(tag) = token else { continue };
        let tag_name = String::from_utf8_lossy(&tag.name);
        let holds_link = |name: &str| LINKS.iter().any(|(tag, link)| *tag == tag_name && *link == name);
        let mut links: Vec<_> = tag.attributes.iter().collect();
        links.sort_by_key(|(_, value)| value.span.start);
        for (name, value) in links {
            let name = String::from_utf8_lossy(name);
            let link = String::from_utf8_lossy(value).into_owned();
            let Some(link) = rewritten(&link, prefix).filter(|_| holds_link(&name)) else { continue };
            // The place of a value without quotes takes in the character behind it.
            let quoted = matches!(page.as_bytes().get(value.span.end - 1), Some(b'"' | b'\''));
            let Some(before) = page.get(copied..value.span.start) else { continue };
            rewritten_page.push_str(before);
            let link = link.replace('&', "&amp;").replace('"', "&quot;");
            rewritten_page.push_str(&format!("{name}=\"{link}\""));
            copied = if quoted { value.span.end } else { value.span.end - 1 };
        }
    }
    rewritten_page.push_str(page.get(copied..).unwrap_or_default());
    rewritten_page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_through_the_proxy_again() {
        let page = r#"<p><a class=x href="/a?b=1&amp;c=2" id='y'>/t</a><img src='/i'><a href=/u>u</a>
            <a href=/ä id=ö><a href="rel">z</a><a href="//cdn/y">y</a><a href="/api/p/proxy/q">q</a><p title="/no">"#;
        let through = r#"<p><a class=x href="/api/p/proxy/a?b=1&amp;c=2" id='y'>/t</a><img src="/api/p/proxy/i"><a href="/api/p/proxy/u">u</a>
            <a href="/api/p/proxy/ä" id=ö><a href="rel">z</a><a href="//cdn/y">y</a><a href="/api/p/proxy/q">q</a><p title="/no">"#;
        assert_eq!(with_links(page, "/api/p/proxy"), through);
    }
}
