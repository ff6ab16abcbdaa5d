//! Port forwarding: TCP connections made inside the pod's network namespace.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use coxswain_cri::v1::PortForwardRequest;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::spdy::{Connection, Stream, Writer};
use super::websocket::{Encoding, goodbye};
use crate::runtime::Runtime;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 16 << 10;

/// Pairs of data and error streams wait this long for each other.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves an SPDY connection: each pair of streams with one request id is one TCP connection.
pub(super) async fn over_spdy(runtime: &Arc<Runtime>, sandbox: &str, mut connection: Connection) {
    let mut pairs = JoinSet::new();
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(_) = pairs.join_next() => continue,
        };
        let Some(stream) = stream else { break };
        waiting.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
        // Old clients send no request id: the pair is then known by its port.
        let key = ["requestid", "port"]
            .iter()
            .find_map(|name| stream.headers.get(*name))
            .cloned()
            .unwrap_or_default();
        let is_error = |stream: &Stream| stream.headers.get("streamtype").is_some_and(|kind| kind == "error");
        match waiting.remove(&key) {
            Some((other, _)) if is_error(&other) != is_error(&stream) => {
                let (error, data) = if is_error(&other) { (other, stream) } else { (stream, other) };
                pairs.spawn(forward_pair(runtime.clone(), sandbox.to_owned(), data, error));
            }
            _ => drop(waiting.insert(key, (stream, tokio::time::Instant::now()))),
        }
    }
    // The client is gone, and its connections with it.
    pairs.shutdown().await;
}

async fn forward_pair(runtime: Arc<Runtime>, sandbox: String, data: Stream, error: Stream) {
    let port = data.headers.get("port").and_then(|port| port.parse().ok()).unwrap_or(0);
    let Stream { incoming, writer, .. } = data;
    match connect(&runtime, &sandbox, port).await {
        Ok(stream) => splice(stream, incoming, &writer).await,
        Err(message) => error.writer.send(Bytes::from(message)).await,
    }
    error.writer.finish().await;
    writer.finish().await;
}

/// Where bytes for the client go.
trait Outgoing {
    async fn send(&self, bytes: Bytes) -> bool;
    async fn finish(&self);
}

impl Outgoing for Writer {
    async fn send(&self, bytes: Bytes) -> bool {
        Writer::send(self, bytes).await;
        true
    }

    async fn finish(&self) {
        Writer::finish(self).await;
    }
}

/// A channel of the WebSocket protocol.
struct ChannelWriter {
    channel: u8,
    encoding: Encoding,
    messages: mpsc::Sender<Message>,
}

impl Outgoing for ChannelWriter {
    async fn send(&self, bytes: Bytes) -> bool {
        self.messages.send(self.encoding.encode(self.channel, &bytes)).await.is_ok()
    }

    // The protocol has no way to say so.
    async fn finish(&self) {}
}

/// Copies both ways until both sides are done.
async fn splice(stream: TcpStream, mut incoming: mpsc::Receiver<Bytes>, outgoing: &impl Outgoing) {
    let (mut reader, mut writer) = stream.into_split();
    let inward = async {
        while let Some(bytes) = incoming.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let outward = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(count) = reader.read(&mut chunk).await {
            if count == 0 || !outgoing.send(Bytes::copy_from_slice(&chunk[..count])).await {
                break;
            }
        }
        outgoing.finish().await;
    };
    // The pod's side ending ends the connection, whatever the client still has to say.
    tokio::pin!(inward);
    tokio::pin!(outward);
    tokio::select! {
        () = &mut outward => {}
        () = &mut inward => outward.await,
    }
}

/// Serves the older WebSocket protocol: port number `i` has channel `2i` for data and `2i + 1` for errors,
/// and each begins with the port in two bytes.
pub(super) async fn over_websocket(
    runtime: &Arc<Runtime>,
    request: &PortForwardRequest,
    socket: WebSocket,
    protocol: &str,
) {
    let encoding = Encoding::of(protocol);
    let (mut sink, mut stream) = socket.split();
    let (messages, mut outbox) = mpsc::channel::<Message>(16);
    let mut inputs = Vec::new();
    let mut tasks = JoinSet::new();
    for (index, &port) in request.port.iter().enumerate().take(127) {
        let channel = 2 * index as u8;
        let port = u16::try_from(port).unwrap_or(0);
        let writer = |channel| ChannelWriter { channel, encoding, messages: messages.clone() };
        let (input, incoming) = mpsc::channel(16);
        inputs.push(input);
        let (data, error) = (writer(channel), writer(channel + 1));
        let (runtime, sandbox) = (runtime.clone(), request.pod_sandbox_id.clone());
        tasks.spawn(async move {
            for writer in [&data, &error] {
                writer.send(Bytes::copy_from_slice(&port.to_le_bytes())).await;
            }
            match connect(&runtime, &sandbox, port).await {
                Ok(stream) => splice(stream, incoming, &data).await,
                Err(message) => drop(error.send(Bytes::from(message)).await),
            }
        });
    }
    drop(messages);
    let writing = async {
        while let Some(message) = outbox.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    let reading = async {
        while let Some(Ok(message)) = stream.next().await {
            let Some((channel, bytes)) = encoding.decode(message) else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // That port's connection may be over.
                let _ = input.send(bytes).await;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
    tasks.shutdown().await;
}

/// Connects to a port of the pod; the error is for the user.
async fn connect(runtime: &Runtime, sandbox: &str, port: u16) -> Result<TcpStream, String> {
    let sandbox = runtime.sandbox(sandbox).map_err(|error| error.to_string())?;
    let netns = sandbox.has_network().then(|| sandbox.netns());
    let place = netns.as_ref().map_or("the host".to_owned(), |path| path.display().to_string());
    let failed = |error: io::Error| {
        format!(
            "failed to execute portforward in network namespace {place:?}: failed to connect to localhost:{port}: {error}"
        )
    };
    connect_in(netns, port).await.map_err(failed)
}

/// A thread of its own enters the namespace: the socket stays in it, the thread ends.
async fn connect_in(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        let connected = enter(netns).and_then(|()| connect_locally(port));
        // The client may have given up.
        let _ = sender.send(connected);
    })?;
    let stream = receiver.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn enter(netns: Option<PathBuf>) -> io::Result<()> {
    if let Some(path) = netns {
        nix::sched::setns(File::open(path)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    Ok(())
}

fn connect_locally(port: u16) -> io::Result<std::net::TcpStream> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    let over_ipv4 =
        std::net::TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT_TIMEOUT);
    over_ipv4.or_else(|error| {
        let over_ipv6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        std::net::TcpStream::connect_timeout(&over_ipv6, CONNECT_TIMEOUT).map_err(|_| error)
    })
}
