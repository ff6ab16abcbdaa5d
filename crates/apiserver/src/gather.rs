//! The writes of a connection, gathered: whatever its tasks write in one turn leaves in one call.
//!
//! HTTP/2 flushes after every frame of data, which below TLS is a system call a frame: two thousand for a long list, one a
//! watch for an event that fifty watches of a connection are told. A [`Gathered`] stream keeps what is written, and
//! [`Turns`] sends it when the connection's future has nothing more to do for now.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// More than this is sent before more is taken.
const MOST_PENDING_BYTES: usize = 128 << 10;
/// A turn that writes more than this gets a buffer for all of it, which goes with the first turn that writes less.
const ORDINARY_BYTES: usize = 8 << 10;
/// What TLS writes at once at the most.
const RECORD_BYTES: usize = 18 << 10;

struct Out {
    stream: OwnedWriteHalf,
    /// What is written and, up to `sent`, sent already.
    pending: Vec<u8>,
    sent: usize,
    /// What was written in this turn.
    written: usize,
    /// A flush leaves what is written to the end of the turn.
    by_turns: bool,
}

/// A stream whose writes are gathered.
pub struct Gathered {
    input: OwnedReadHalf,
    out: Arc<Mutex<Out>>,
}

/// What sends the gathered writes of a stream.
pub struct Turns(Arc<Mutex<Out>>);

impl Gathered {
    /// A stream that still sends at every flush.
    pub fn new(stream: TcpStream) -> (Self, Turns) {
        let (input, stream) = stream.into_split();
        let out =
            Arc::new(Mutex::new(Out { stream, pending: Vec::new(), sent: 0, written: 0, by_turns: false }));
        (Self { input, out: out.clone() }, Turns(out))
    }
}

impl Turns {
    /// Drives a connection over the stream, and sends what it wrote after each of its turns.
    pub async fn drive<T>(self, connection: impl Future<Output = T>) -> T {
        let mut connection = std::pin::pin!(connection);
        lock(&self.0).by_turns = true;
        std::future::poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            let mut out = lock(&self.0);
            // Whoever holds the stream after an upgrade flushes for itself.
            out.by_turns = ended.is_pending();
            // An error comes back to the connection at its next write; one that waits wakes it up when it can go on.
            let _ = out.poll_send(cx);
            out.end_turn();
            ended
        })
        .await
    }
}

fn lock(out: &Mutex<Out>) -> MutexGuard<'_, Out> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Out {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.pending.len() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        self.pending.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Takes bytes once there is room for them.
    fn poll_take<'a>(
        &mut self,
        cx: &mut Context<'_>,
        slices: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        if self.pending.len() >= MOST_PENDING_BYTES {
            ready!(self.poll_send(cx))?;
        }
        let before = self.pending.len();
        if before > ORDINARY_BYTES {
            self.pending.reserve((MOST_PENDING_BYTES + RECORD_BYTES).saturating_sub(before));
        }
        slices.for_each(|slice| self.pending.extend_from_slice(slice));
        let taken = self.pending.len() - before;
        self.written += taken;
        Poll::Ready(Ok(taken))
    }

    fn end_turn(&mut self) {
        if std::mem::take(&mut self.written) <= ORDINARY_BYTES && self.pending.is_empty() {
            self.pending.shrink_to(ORDINARY_BYTES);
        }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.out).poll_take(cx, std::iter::once(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.out).poll_take(cx, slices.iter().map(|slice| &**slice))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = lock(&self.out);
        if out.by_turns { Poll::Ready(Ok(())) } else { out.poll_send(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = lock(&self.out);
        ready!(out.poll_send(cx))?;
        Pin::new(&mut out.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_sent_at_its_end_and_a_flush_sends_again_after_the_last() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, turns) = Gathered::new(listener.accept().await.unwrap().0);
        let out = stream.out.clone();
        let pending = || lock(&out).pending.len();
        let mut read = [0; 4];
        let mut stream = turns
            .drive(async {
                stream.write_all(b"ab").await.unwrap();
                stream.flush().await.unwrap();
                stream.write_all(b"cd").await.unwrap();
                stream.flush().await.unwrap();
                assert_eq!(pending(), 4, "the turn is not over");
                // Waits for what only the end of the turn sends.
                peer.read_exact(&mut read).await.unwrap();
                assert_eq!(&read, b"abcd");
                stream
            })
            .await;
        stream.write_all(b"ef").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(pending(), 0);
        peer.read_exact(&mut read[..2]).await.unwrap();
        assert_eq!(&read[..2], b"ef");
    }
}
