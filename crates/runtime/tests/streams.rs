//! Exec, attach and port forwarding for real, spoken as kubectl speaks them: WebSocket and SPDY.
#![allow(missing_docs)]

#[path = "../src/streaming/spdy/frame.rs"]
#[allow(dead_code, unreachable_pub)]
mod frame;
mod support;

use std::collections::HashMap;

use bytes::Bytes;
use coxswain_cri::v1::*;
use frame::{Frame, FrameReader, FrameWriter, Headers};
use futures::{SinkExt, StreamExt};
use support::{Fixture, can_run, eventually, shell};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

type WebSocket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>;

async fn websocket(url: &str, protocol: &str) -> WebSocket {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    socket
}

/// Reads to the end: what came on each channel.
async fn channels(socket: &mut WebSocket) -> HashMap<u8, Vec<u8>> {
    let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
            // Clients of Kubernetes take any other code for a broken connection.
            Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
            _ => {}
        }
    }
    channels
}

fn exec_request(container: &str, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.into(),
        cmd: vec!["/bin/sh".into(), "-c".into(), script.into()],
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

async fn exec_url(fixture: &mut Fixture, request: ExecRequest) -> String {
    fixture.runtime.exec(request).await.unwrap().into_inner().url
}

async fn running_pod(fixture: &mut Fixture) -> (String, String) {
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    let container = fixture.shell(&sandbox, "c", "exec sleep 1000").await;
    (sandbox, container)
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_websocket() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (_, container) = running_pod(&mut fixture).await;
    let url = exec_url(&mut fixture, exec_request(&container, "cat; echo err >&2; exit 3")).await;
    let mut socket = websocket(&url, "v5.channel.k8s.io").await;
    socket.send(Message::binary(&b"\0to stdin"[..])).await.unwrap();
    // Version 5 can close a channel: cat sees the end of its input.
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let channels = channels(&mut socket).await;
    assert_eq!(channels[&1], b"to stdin");
    assert_eq!(channels[&2], b"err\n");
    let status: serde_json::Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(status["status"], "Failure");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_over_websocket() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (_, container) = running_pod(&mut fixture).await;
    let mut request = exec_request(&container, "read line; stty size; echo got $line");
    (request.tty, request.stderr) = (true, false);
    let url = exec_url(&mut fixture, request).await;
    let mut socket = websocket(&url, "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\x04{\"Width\":91,\"Height\":37}"[..])).await.unwrap();
    socket.send(Message::binary(&b"\0hello\n"[..])).await.unwrap();
    let channels = channels(&mut socket).await;
    let output = String::from_utf8_lossy(&channels[&1]);
    assert!(output.contains("37 91") && output.contains("got hello"), "{output}");
    assert!(String::from_utf8_lossy(&channels[&3]).contains("Success"));
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_shows_output_from_now_on_and_feeds_stdin() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.import_busybox();
    let sandbox = fixture.run_sandbox(fixture.sandbox_config("pod")).await;
    for tty in [false, true] {
        let name = if tty { "tty" } else { "plain" };
        let mut config = shell(name, "echo before; read line; echo got $line; exit 0");
        (config.stdin, config.stdin_once, config.tty) = (true, true, tty);
        let container = fixture.create(&sandbox, config).await;
        fixture.start(&container).await;
        eventually("it waits for input", || {
            fixture.log("pod", name).first().is_some_and(|l| l.contains("before"))
        })
        .await;
        let request =
            AttachRequest { container_id: container.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        let url = fixture.runtime.attach(request).await.unwrap().into_inner().url;
        let mut socket = websocket(&url, "v5.channel.k8s.io").await;
        // The empty message says that the streams are connected.
        socket.next().await.unwrap().unwrap();
        socket.send(Message::binary(&b"\0word\n"[..])).await.unwrap();
        let channels = channels(&mut socket).await;
        let output = String::from_utf8_lossy(&channels[&1]).into_owned();
        assert!(output.contains("got word") && !output.contains("before"), "{output}");
        assert_eq!(fixture.exited(&container).await.exit_code, 0);
        assert!(fixture.log("pod", name).iter().any(|line| line.contains("got word")));
    }
    fixture.finish().await;
}

/// A client of our own frames.
struct Spdy {
    reader: FrameReader<tokio::io::ReadHalf<TcpStream>>,
    io: tokio::io::WriteHalf<TcpStream>,
    writer: FrameWriter,
}

impl Spdy {
    async fn connect(url: &str, protocol: &str) -> Self {
        let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap();
        let mut stream = TcpStream::connect(host).await.unwrap();
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}")), "{answer}");
        let (reader, io) = tokio::io::split(stream);
        Self { reader: FrameReader::new(reader), io, writer: FrameWriter::new().unwrap() }
    }

    async fn send(&mut self, frame: Frame) {
        let bytes = self.writer.encode(&frame).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers: Headers = headers.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        self.send(Frame::SynStream { id, headers, fin: false }).await;
    }

    /// Reads until `streams` have ended: what came on each.
    async fn until_ended(&mut self, streams: &[u32]) -> HashMap<u32, Vec<u8>> {
        let mut data: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut open = streams.to_vec();
        while !open.is_empty() {
            if let Frame::Data { id, bytes, fin } = self.reader.next().await.unwrap() {
                data.entry(id).or_default().extend_from_slice(&bytes);
                open.retain(|stream| !fin || *stream != id);
            }
        }
        data
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_spdy() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (_, container) = running_pod(&mut fixture).await;
    let url = exec_url(&mut fixture, exec_request(&container, "cat; echo err >&2; exit 4")).await;
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, &[("streamType", name)]).await;
    }
    client.send(Frame::Ping { id: 1 }).await;
    client.send(Frame::Data { id: 3, bytes: Bytes::from_static(b"typed"), fin: true }).await;
    let data = client.until_ended(&[1, 5, 7]).await;
    assert_eq!((&data[&5][..], &data[&7][..]), (&b"typed"[..], &b"err\n"[..]));
    let status: serde_json::Value = serde_json::from_slice(&data[&1]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "4");
    fixture.finish().await;
}

const SERVE: &str = "while true; do echo pong | nc -l -p 8080; done";

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_over_spdy_and_its_tunnel() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (sandbox, container) = running_pod(&mut fixture).await;
    fixture.shell(&sandbox, "server", SERVE).await;
    eventually_listening(&mut fixture, &container).await;
    let request = PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![] };

    let url = fixture.runtime.port_forward(request.clone()).await.unwrap().into_inner().url;
    let mut client = Spdy::connect(&url, "portforward.k8s.io").await;
    for (base, port) in [(1, "8080"), (5, "9")] {
        let id = base.to_string();
        client.open(base, &[("streamType", "error"), ("port", port), ("requestID", &id)]).await;
        client.open(base + 2, &[("streamType", "data"), ("port", port), ("requestID", &id)]).await;
    }
    let data = client.until_ended(&[1, 3, 5]).await;
    assert_eq!(data[&3], b"pong\n");
    assert!(data[&1].is_empty());
    let refused = String::from_utf8_lossy(&data[&5]).into_owned();
    assert!(refused.contains("localhost:9") && refused.contains("refused"), "{refused}");

    eventually_listening(&mut fixture, &container).await;
    let url = fixture.runtime.port_forward(request).await.unwrap().into_inner().url;
    let mut socket = websocket(&url, "SPDY/3.1+portforward.k8s.io").await;
    let mut writer = FrameWriter::new().unwrap();
    for (id, kind) in [(1, "error"), (3, "data")] {
        let pairs = [("streamtype", kind), ("port", "8080"), ("requestid", "0")];
        let headers = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let bytes = writer.encode(&Frame::SynStream { id, headers, fin: false }).unwrap();
        socket.send(Message::Binary(bytes)).await.unwrap();
    }
    let mut received = Vec::new();
    while !received.windows(5).any(|window| window == b"pong\n") {
        received.extend_from_slice(&socket.next().await.unwrap().unwrap().into_data());
    }
    fixture.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_over_websocket_channels() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    let (sandbox, container) = running_pod(&mut fixture).await;
    fixture.shell(&sandbox, "server", SERVE).await;
    eventually_listening(&mut fixture, &container).await;
    let request = PortForwardRequest { pod_sandbox_id: sandbox, port: vec![8080, 9] };
    let url = fixture.runtime.port_forward(request).await.unwrap().into_inner().url;
    let mut socket = websocket(&url, "v4.channel.k8s.io").await;
    let channels = channels(&mut socket).await;
    assert_eq!(channels[&0], [&8080u16.to_le_bytes()[..], b"pong\n"].concat());
    assert_eq!(channels[&1], 8080u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&channels[&3][2..]).contains("refused"));
    fixture.finish().await;
}

/// 0x1F90 is port 8080.
async fn eventually_listening(fixture: &mut Fixture, container: &str) {
    for _ in 0..200 {
        let sockets = fixture.exec(container, "cat /proc/net/tcp /proc/net/tcp6").await.stdout;
        if String::from_utf8_lossy(&sockets).contains(":1F90 00000000") {
            return;
        }
    }
    panic!("nobody listens");
}
