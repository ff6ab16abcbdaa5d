//! SPDY/3.1 as its server: a connection of streams the client opens, and remote commands over it.

mod frame;

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::session::{Carrier, Size};
use frame::{Frame, FrameReader, FrameWriter, Headers};

/// Frames waiting in one direction.
const QUEUE_FRAMES: usize = 64;

/// Largest data frame we send.
const MAX_DATA_BYTES: usize = 64 << 10;

/// Time a client has to open the streams it announced.
const STREAM_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A stream the client opened.
pub(super) struct Stream {
    /// Names in lower case.
    pub headers: Headers,
    /// Ends with the client's side.
    pub incoming: mpsc::Receiver<Bytes>,
    pub writer: Writer,
}

/// Our side of a stream.
#[derive(Clone)]
pub(super) struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Writer {
    /// Sends bytes; a connection that is gone takes them to nowhere.
    pub async fn send(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(MAX_DATA_BYTES));
            let _ = self.frames.send(Frame::Data { id: self.id, bytes: chunk, fin: false }).await;
        }
    }

    /// Says that nothing more comes.
    pub async fn finish(&self) {
        let _ = self.frames.send(Frame::Data { id: self.id, bytes: Bytes::new(), fin: true }).await;
    }
}

/// A connection. Dropping it ends it once everything sent has gone out.
pub(super) struct Connection {
    streams: mpsc::Receiver<Stream>,
    reading: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Connection {
    /// Starts to speak on `io`.
    pub fn serve(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (frames, outbox) = mpsc::channel(QUEUE_FRAMES);
        let (opened, streams) = mpsc::channel(QUEUE_FRAMES);
        // The writing task ends when every stream and the reading task have let go of their senders.
        tokio::spawn(write(writer, outbox));
        let reading = tokio::spawn(read(FrameReader::new(reader), frames, opened)).abort_handle();
        Self { streams, reading }
    }

    /// The next stream; `None` when the client is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

async fn write(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut writer = FrameWriter::new()?;
    while let Some(frame) = frames.recv().await {
        io.write_all(&writer.encode(&frame)?).await?;
        if frames.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}

async fn read<R: AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) {
    let mut senders: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Ok(frame) = reader.next().await {
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let (sender, incoming) = mpsc::channel(QUEUE_FRAMES);
                if !fin {
                    senders.insert(id, sender);
                }
                if frames.send(Frame::SynReply { id }).await.is_err() {
                    return;
                }
                let stream = Stream { headers, incoming, writer: Writer { id, frames: frames.clone() } };
                if opened.send(stream).await.is_err() {
                    return;
                }
            }
            Frame::Data { id, bytes, fin } => {
                if let Some(sender) = senders.get(&id).filter(|_| !bytes.is_empty()) {
                    // The reader may have lost interest; the client need not know.
                    let _ = sender.send(bytes).await;
                }
                if fin {
                    senders.remove(&id);
                }
            }
            Frame::Reset { id, .. } => drop(senders.remove(&id)),
            Frame::Ping { id } => {
                // Clients use odd numbers; even ones would answer pings of ours.
                if id % 2 == 1 && frames.send(Frame::Ping { id }).await.is_err() {
                    return;
                }
            }
            Frame::GoAway { .. } => return,
            Frame::SynReply { .. } | Frame::Other => {}
        }
    }
}

/// The streams a remote command has beside the error stream.
pub(super) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Carries a session until the command ends or the client goes.
pub(super) async fn carry(mut connection: Connection, protocol: &str, wanted: Wanted, carrier: Carrier) {
    let gone = carrier.gone.clone();
    let has_resize = wanted.tty && !matches!(protocol, "channel.k8s.io" | "v2.channel.k8s.io");
    let names: Vec<&str> = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", has_resize),
    ]
    .into_iter()
    .filter_map(|(name, wanted)| wanted.then_some(name))
    .collect();
    let gathered = tokio::time::timeout(STREAM_PATIENCE, gather(&mut connection, &names)).await;
    let Ok(Some(streams)) = gathered else {
        gone.cancel();
        return;
    };
    let as_status = matches!(protocol, "v4.channel.k8s.io" | "v5.channel.k8s.io");
    tokio::select! {
        () = transfer(streams, as_status, carrier) => {}
        // No further streams are expected: only the connection's end comes this way.
        () = drained(&mut connection) => gone.cancel(),
    }
}

async fn gather(connection: &mut Connection, names: &[&str]) -> Option<HashMap<String, Stream>> {
    let mut streams = HashMap::new();
    while streams.len() < names.len() {
        let stream = connection.accept().await?;
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        if names.contains(&kind.as_str()) {
            streams.insert(kind, stream);
        }
    }
    Some(streams)
}

async fn drained(connection: &mut Connection) {
    while connection.accept().await.is_some() {}
}

async fn transfer(mut streams: HashMap<String, Stream>, as_status: bool, carrier: Carrier) {
    let Carrier { stdin, mut stdout, mut stderr, resize, outcome, .. } = carrier;
    let input = streams.remove("stdin").map(|stream| stream.incoming);
    let sizes = streams.remove("resize").map(|stream| stream.incoming);
    let inputs = async {
        let stdin = async {
            if let Some(mut input) = input {
                while let Some(bytes) = input.recv().await {
                    let _ = stdin.send(bytes).await;
                }
            }
            drop(stdin);
        };
        tokio::join!(stdin, resizes(sizes, resize));
        std::future::pending::<()>().await;
    };
    let outputs = async {
        let writer = |name: &str| streams.get(name).map(|stream| stream.writer.clone());
        tokio::join!(copy(&mut stdout, writer("stdout")), copy(&mut stderr, writer("stderr")));
        let Some(error) = writer("error") else { return };
        if let Ok(outcome) = outcome.await
            && let Some(bytes) = outcome.encode(as_status)
        {
            error.send(bytes).await;
        }
        error.finish().await;
    };
    tokio::select! {
        () = inputs => {}
        () = outputs => {}
    }
}

async fn copy(from: &mut mpsc::Receiver<Bytes>, to: Option<Writer>) {
    while let Some(bytes) = from.recv().await {
        if let Some(to) = &to {
            to.send(bytes).await;
        }
    }
    if let Some(to) = to {
        to.finish().await;
    }
}

/// Sizes come as JSON documents one after the other, however they are cut into frames.
async fn resizes(incoming: Option<mpsc::Receiver<Bytes>>, resize: mpsc::Sender<Size>) {
    let Some(mut incoming) = incoming else { return };
    let mut pending = Vec::new();
    while let Some(bytes) = incoming.recv().await {
        pending.extend_from_slice(&bytes);
        let mut documents = serde_json::Deserializer::from_slice(&pending).into_iter::<Size>();
        let mut last = None;
        while let Some(Ok(size)) = documents.next() {
            last = Some(size);
        }
        let used = documents.byte_offset();
        pending.drain(..used);
        if let Some(size) = last {
            let _ = resize.send(size).await;
        }
    }
}
