//! The writes of a connection, gathered: whatever its tasks write in one turn leaves in one call.
//!
//! HTTP/2 flushes after every frame of data, which below TLS is a system call a frame: two thousand for a long list, one a
//! watch for an event that fifty watches of a connection are told. A [`Gathered`] stream keeps what is written, and
//! [`Turns`] sends it when the connection's future has nothing more to do for now.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// More than this is sent before more is taken.
const MOST_PENDING_BYTES: usize = 128 << 10;
/// A buffer that grew beyond this is not kept for the next turn.
const MOST_KEPT_BYTES: usize = 16 << 10;

struct Out {
    stream: OwnedWriteHalf,
    pending: BytesMut,
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
        let out = Arc::new(Mutex::new(Out { stream, pending: BytesMut::new(), by_turns: false }));
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
        while !self.pending.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(sent);
        }
        if self.pending.capacity() > MOST_KEPT_BYTES {
            self.pending = BytesMut::new();
        }
        Poll::Ready(Ok(()))
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
        let mut out = lock(&self.out);
        if out.pending.len() >= MOST_PENDING_BYTES {
            ready!(out.poll_send(cx))?;
        }
        out.pending.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut out = lock(&self.out);
        if out.pending.len() >= MOST_PENDING_BYTES {
            ready!(out.poll_send(cx))?;
        }
        slices.iter().for_each(|slice| out.pending.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
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
