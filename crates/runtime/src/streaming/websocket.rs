//! Remote commands over WebSocket: a message is a channel number and its bytes; the base64 variants
//! write the number as a digit and the bytes in base64.

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::session::Carrier;

/// Subprotocols for exec and attach, the best first.
pub(super) const COMMAND_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// SPDY frames inside WebSocket messages: what kubectl port-forward speaks.
pub(super) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// Subprotocols for port forwarding.
pub(super) const FORWARD_PROTOCOLS: [&str; 5] = [
    TUNNEL_PROTOCOL,
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the byte that follows names a channel whose sender is done.
const CLOSE: u8 = 255;

const TUNNEL_BUFFER_BYTES: usize = 64 << 10;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Binary,
    Base64,
}

impl Encoding {
    pub fn of(protocol: &str) -> Self {
        if protocol.contains("base64") { Self::Base64 } else { Self::Binary }
    }

    /// A message for `channel`.
    pub fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = BytesMut::with_capacity(1 + bytes.len());
                message.put_u8(channel);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into()),
        }
    }

    /// A message's channel and bytes; `None` for what carries no data.
    pub fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let channel = *bytes.first()?;
        match self {
            Self::Binary => Some((channel, bytes.slice(1..))),
            Self::Base64 => {
                Some((channel.checked_sub(b'0')?, STANDARD.decode(bytes.slice(1..)).ok()?.into()))
            }
        }
    }
}

/// Carries a session until the command ends or the client goes.
pub(super) async fn carry(socket: WebSocket, protocol: &str, carrier: Carrier) {
    let encoding = Encoding::of(protocol);
    let closes = protocol.starts_with("v5.");
    let as_status = protocol.starts_with("v4.") || closes;
    let Carrier { stdin, stdout, stderr, resize, outcome, gone } = carrier;
    let (sink, stream) = socket.split();
    let reading = async {
        read(stream, encoding, closes, stdin, resize).await;
        gone.cancel();
        // Reading is over; writing decides when the session is.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        _ = write(sink, encoding, as_status, stdout, stderr, outcome) => {}
        () = gone.cancelled() => {}
    }
}

async fn read(
    mut stream: SplitStream<WebSocket>,
    encoding: Encoding,
    closes: bool,
    stdin: tokio::sync::mpsc::Sender<Bytes>,
    resize: tokio::sync::mpsc::Sender<super::session::Size>,
) {
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        match encoding.decode(message) {
            Some((STDIN, bytes)) => {
                if let Some(stdin) = stdin.as_ref().filter(|_| !bytes.is_empty()) {
                    // The command may have stopped reading; the client need not know.
                    let _ = stdin.send(bytes).await;
                }
            }
            Some((RESIZE, bytes)) => {
                if let Ok(size) = serde_json::from_slice(&bytes) {
                    let _ = resize.send(size).await;
                }
            }
            Some((CLOSE, bytes)) if closes && bytes.first() == Some(&STDIN) => stdin = None,
            _ => {}
        }
    }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    encoding: Encoding,
    as_status: bool,
    mut stdout: tokio::sync::mpsc::Receiver<Bytes>,
    mut stderr: tokio::sync::mpsc::Receiver<Bytes>,
    outcome: tokio::sync::oneshot::Receiver<super::session::Outcome>,
) -> Result<(), axum::Error> {
    // An empty message tells clients that the connection stands.
    sink.send(encoding.encode(STDOUT, &[])).await?;
    loop {
        let message = tokio::select! {
            Some(bytes) = stdout.recv() => encoding.encode(STDOUT, &bytes),
            Some(bytes) = stderr.recv() => encoding.encode(STDERR, &bytes),
            else => break,
        };
        sink.send(message).await?;
    }
    if let Ok(outcome) = outcome.await
        && let Some(bytes) = outcome.encode(as_status)
    {
        sink.send(encoding.encode(ERROR, &bytes)).await?;
    }
    sink.send(goodbye()).await
}

/// Clients take any other end than this for a broken connection.
pub(super) fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() }))
}

/// A byte stream out of a WebSocket's binary messages.
pub(super) fn tunnel(socket: WebSocket) -> impl AsyncRead + AsyncWrite + Send + Unpin + 'static {
    let (ours, theirs) = tokio::io::duplex(TUNNEL_BUFFER_BYTES);
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(ours);
    // Both end with the connection, or with the stream we return.
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) if writer.write_all(&bytes).await.is_ok() => {}
                Message::Ping(_) | Message::Pong(_) => {}
                _ => break,
            }
        }
        // The peer is done sending.
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut chunk = vec![0; 16 << 10];
        while let Ok(count) = reader.read(&mut chunk).await {
            if count == 0
                || sink.send(Message::Binary(Bytes::copy_from_slice(&chunk[..count]))).await.is_err()
            {
                break;
            }
        }
        let _ = sink.send(goodbye()).await;
    });
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_carry_channel_and_bytes() {
        for encoding in [Encoding::Binary, Encoding::Base64] {
            let message = encoding.encode(ERROR, b"\x00bytes");
            assert_eq!(encoding.decode(message), Some((ERROR, Bytes::from_static(b"\x00bytes"))));
        }
        assert_eq!(Encoding::Base64.encode(1, b"hi"), Message::Text("1aGk=".into()));
        assert_eq!(Encoding::Binary.decode(Message::Binary(Bytes::new())), None);
    }
}
