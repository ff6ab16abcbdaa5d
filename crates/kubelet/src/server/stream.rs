//! Sessions: the runtime says where its streaming server is, and the upgraded connections are joined byte by byte.

use std::time::Duration;

use coxswain_cri::v1;
use http::{HeaderMap, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Body, Query, Refusal, Request, find, text};
use crate::kubelet::Kubelet;
use crate::model::{CONTAINER_NAME, PodId};

const CONNECT: Duration = Duration::from_secs(10);
const RUN: Duration = Duration::from_secs(120);

/// The id of the running instance of a container.
async fn running(kubelet: &Kubelet, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal> {
    let pod = find(kubelet, namespace, pod)?;
    let listed = kubelet.cri.containers(Some(&PodId::of(&pod).uid)).await;
    let listed = listed.map_err(|error| Refusal::internal(crate::cri::text(&error)))?;
    listed
        .into_iter()
        .filter(|c| c.state() == v1::ContainerState::ContainerRunning)
        .find(|c| c.labels.get(CONTAINER_NAME).is_some_and(|name| name == container))
        .map(|c| c.id)
        .ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))
}

fn cri_refusal(error: &tonic::Status) -> Refusal {
    Refusal::internal(crate::cri::text(error))
}

/// Runs a command in a container.
pub async fn exec(
    kubelet: &Kubelet,
    request: Request,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let query = Query::of(&request);
    let tty = query.on(&["tty"]);
    let order = v1::ExecRequest {
        container_id: running(kubelet, namespace, pod, container).await?,
        cmd: query.all("command"),
        tty,
        stdin: query.on(&["input", "stdin"]),
        stdout: query.on(&["output", "stdout"]),
        // A terminal has one output.
        stderr: query.on(&["error", "stderr"]) && !tty,
    };
    if !(order.stdin || order.stdout || order.stderr) {
        return Err(Refusal::bad("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let url = kubelet.cri.exec(order).await.map_err(|error| cri_refusal(&error))?;
    join(request, &url).await
}

/// Attaches to a container's own process.
pub async fn attach(
    kubelet: &Kubelet,
    request: Request,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let query = Query::of(&request);
    let found = find(kubelet, namespace, pod)?;
    let spec = crate::pod::containers::find(&found, container).map(|(_, c)| c);
    let tty = spec.and_then(|c| c.tty).unwrap_or(false);
    let order = v1::AttachRequest {
        container_id: running(kubelet, namespace, pod, container).await?,
        tty,
        stdin: query.on(&["input", "stdin"]),
        stdout: query.on(&["output", "stdout"]),
        stderr: query.on(&["error", "stderr"]) && !tty,
    };
    let url = kubelet.cri.attach(order).await.map_err(|error| cri_refusal(&error))?;
    join(request, &url).await
}

/// Forwards ports into a pod.
pub async fn port_forward(
    kubelet: &Kubelet,
    request: Request,
    namespace: &str,
    pod: &str,
) -> Result<Response<Body>, Refusal> {
    let uid = PodId::of(&*find(kubelet, namespace, pod)?).uid;
    let sandboxes = kubelet.cri.sandboxes(Some(&uid)).await.map_err(|error| cri_refusal(&error))?;
    let ready = sandboxes.into_iter().find(|s| s.state() == v1::PodSandboxState::SandboxReady);
    let sandbox = ready.ok_or_else(|| Refusal::not_found(format!("pod not found (\"{pod}\")")))?;
    let query = Query::of(&request);
    let port =
        ["port", "ports"].iter().flat_map(|key| query.all(key)).filter_map(|p| p.parse().ok()).collect();
    let order = v1::PortForwardRequest { pod_sandbox_id: sandbox.id, port };
    let url = kubelet.cri.port_forward(order).await.map_err(|error| cri_refusal(&error))?;
    join(request, &url).await
}

/// Runs a command to its end and answers its output.
pub async fn run(
    kubelet: &Kubelet,
    query: &Query,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let id = running(kubelet, namespace, pod, container).await?;
    let command = query.get("cmd").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let answer = kubelet.cri.exec_sync(&id, command, RUN).await.map_err(|error| cri_refusal(&error))?;
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    Ok(text(output))
}

/// Makes the caller's request to the runtime's streaming server and, once both have switched protocols, joins them.
async fn join(mut request: Request, url: &str) -> Result<Response<Body>, Refusal> {
    let bad = |error: &dyn std::fmt::Display| Refusal::internal(format!("streaming server: {error}"));
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| bad(&error))?;
    let authority = uri.authority().ok_or_else(|| bad(&"its address has no host"))?.clone();
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&address)).await;
    let stream = stream.map_err(|error| bad(&error))?.map_err(|error| bad(&error))?;
    let _ = stream.set_nodelay(true);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| bad(&error))?;
    // Ends with the session, whose streams it carries.
    tokio::spawn(connection.with_upgrades());
    let mut outgoing = http::Request::new(Empty::<bytes::Bytes>::new());
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = uri.path_and_query().map(|p| Uri::from(p.clone())).unwrap_or_default();
    *outgoing.headers_mut() = request.headers().clone();
    let host = header::HeaderValue::from_str(authority.as_str()).map_err(|error| bad(&error))?;
    outgoing.headers_mut().insert(header::HOST, host);
    let caller = hyper::upgrade::on(&mut request);
    let response = sender.send_request(outgoing).await.map_err(|error| bad(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(|body: Incoming| body.map_err(std::io::Error::other).boxed()));
    }
    let headers: HeaderMap = response.headers().clone();
    let runtime = hyper::upgrade::on(response);
    // Ends when either side hangs up.
    tokio::spawn(async move {
        if let (Ok(caller), Ok(runtime)) = tokio::join!(caller, runtime) {
            let (mut caller, mut runtime) = (TokioIo::new(caller), TokioIo::new(runtime));
            let _ = tokio::io::copy_bidirectional(&mut caller, &mut runtime).await;
        }
    });
    let mut answer = Response::new(super::full(""));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    Ok(answer)
}
