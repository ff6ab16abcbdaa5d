//! One attempt of a probe: exec, HTTP, TCP or gRPC.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::http::HttpRequest;
use super::{Outcome, grpc, http};
use crate::cri::Cri;

/// At most this much of a command's output goes into an event.
const OUTPUT: usize = 10 << 10;

/// Probes once.
pub async fn check(
    cri: &Cri,
    probe: &Probe,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
    limit: Duration,
) -> Outcome {
    if let Some(exec) = &probe.exec {
        let command = exec.command.iter().flatten();
        let expanded =
            command.map(|word| crate::spec::env::expand(word, |name| own_variable(container, name)));
        return run(cri, container_id, expanded.collect(), limit).await;
    }
    if let Some(get) = &probe.http_get {
        return match http_request(get, container, pod_ip, "kube-probe/1.37") {
            Err(error) => Outcome::Error(error),
            Ok(request) => match http::get(&request, limit).await {
                Ok((200..300, _)) => Outcome::Success,
                Ok((300..400, body)) => {
                    Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
                }
                Ok((status, _)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
                Err(error) => Outcome::Failure(error),
            },
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        let host = socket.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
        return match port(&socket.port, container) {
            Err(error) => Outcome::Error(error),
            Ok(port) => tcp(host, port, limit).await,
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.clone().unwrap_or_default();
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Error(format!("invalid port number: {}", action.port));
        };
        return grpc::check(pod_ip, port, service, limit).await;
    }
    Outcome::Error(format!("missing probe handler for {}", container.name))
}

fn own_variable(container: &Container, name: &str) -> Option<String> {
    container.env.iter().flatten().find(|v| v.name == name)?.value.clone()
}

async fn run(cri: &Cri, container_id: &str, command: Vec<String>, limit: Duration) -> Outcome {
    match cri.exec_sync(container_id, command, limit).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(OUTPUT);
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(status) if status.code() == tonic::Code::DeadlineExceeded => {
            Outcome::Failure(format!("command timed out: {}", crate::cri::text(&status)))
        }
        Err(status) => Outcome::Error(crate::cri::text(&status)),
    }
}

async fn tcp(host: &str, port: u16, limit: Duration) -> Outcome {
    let address = http::authority(host, port);
    match tokio::time::timeout(limit, TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(format!("dial tcp {address}: connect: {}", http::words(&error))),
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

/// The number of a port that is given as number or name.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("couldn't find port: \"{name}\" in container"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// The request of an `httpGet` action.
pub fn http_request(
    get: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    agent: &str,
) -> Result<HttpRequest, String> {
    let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| pod_ip.to_owned());
    let port = port(&get.port, container)?;
    let path = get.path.clone().unwrap_or_default();
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut host_header = None;
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host_header = Some(header.value.clone());
        } else {
            headers.push((header.name.clone(), header.value.clone()));
        }
    }
    let has =
        |name: &str, headers: &[(String, String)]| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if !has("user-agent", &headers) {
        headers.push(("User-Agent".to_owned(), agent.to_owned()));
    }
    if !has("accept", &headers) {
        headers.push(("Accept".to_owned(), "*/*".to_owned()));
    }
    // An empty header of these names means: none at all.
    headers.retain(|(name, value)| {
        !(value.is_empty()
            && (name.eq_ignore_ascii_case("accept") || name.eq_ignore_ascii_case("user-agent")))
    });
    let https = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    Ok(HttpRequest { https, host, port, path, host_header, headers })
}
