//! The writes of a connection, gathered: whatever its streams write in one turn leaves in one call.
//!
//! HTTP/2 flushes after every frame of data, which below TLS is a system call a frame: two thousand for a long list, one a
//! watch for an event that fifty watches of a connection are told. A [`Gathered`] stream leaves what is written in the
//! records that TLS made of it, and [`Turns`] sends them when the connection's future has nothing more to do for now. The
//! [`Streams`] of the connection run in its own turns: what they answer does not go from one processor's cache to another's,
//! and nobody has to be woken for it.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::task::AtomicWaker;
use hyper::rt::Executor;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::unconstrained;

/// More than this is sent before more is taken.
const MOST_PENDING_BYTES: usize = 128 << 10;
/// How often a turn goes on beyond once a stream; then others have theirs.
const SPARE_ROUNDS: usize = 8;

struct Wire {
    socket: TcpStream,
    session: ServerConnection,
    /// A flush leaves what is written to the end of the turn.
    by_turns: bool,
}

/// A stream over TLS whose writes are gathered.
pub struct Gathered(Arc<Mutex<Wire>>);

/// What sends the gathered writes of a stream.
pub struct Turns(Arc<Mutex<Wire>>);

/// The requests of a connection that are being answered: its executor.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

/// What wakes a connection up. In a turn it only takes note: the turn goes on as long as it is rung.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

const RESTING: u8 = 0;
const LISTENING: u8 = 1;
const RUNG: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == RESTING {
            self.task.wake();
        }
    }
}

impl Bell {
    /// From now on it is noted whether it rings.
    fn listen(&self) {
        self.state.store(LISTENING, Ordering::Release);
    }

    fn was_rung(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNG
    }

    /// The turn is over: the next ring wakes the task, and so does one that was not heeded.
    fn rest(&self) {
        let rest = self.state.compare_exchange(LISTENING, RESTING, Ordering::AcqRel, Ordering::Acquire);
        if rest.is_err() {
            self.task.wake();
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // A stream's turn is short by itself, and the budget of a task is too small for the turns of many.
        lock(&self.0).push(Box::pin(unconstrained(stream)));
    }
}

impl Gathered {
    /// A stream after the handshake, which still sends at every flush.
    pub fn new(socket: TcpStream, mut session: ServerConnection) -> (Self, Turns) {
        session.set_buffer_limit(Some(MOST_PENDING_BYTES));
        let wire = Arc::new(Mutex::new(Wire { socket, session, by_turns: false }));
        (Self(wire.clone()), Turns(wire))
    }
}

impl Turns {
    /// Drives a connection over the stream with its streams, and sends what they wrote after each turn.
    pub async fn drive<T>(self, connection: impl Future<Output = T>, streams: Streams) -> T {
        let mut connection = std::pin::pin!(connection);
        let mut running = FuturesUnordered::new();
        lock(&self.0).by_turns = true;
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(bell.clone());
        std::future::poll_fn(|task| {
            bell.task.register(task.waker());
            let cx = &mut Context::from_waker(&waker);
            // The set stops at the second stream that wakes itself up, which a stream does whenever it sends.
            let mut rounds = running.len() + SPARE_ROUNDS;
            let ended = loop {
                bell.listen();
                while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
                rounds -= 1;
                if bell.was_rung() && rounds > 0 {
                    continue;
                }
                let ended = connection.as_mut().poll(cx);
                let new = std::mem::take(&mut *lock(&streams.0));
                let is_over = ended.is_ready() || new.is_empty() && !bell.was_rung();
                rounds += new.len();
                running.extend(new);
                if is_over || rounds == 0 {
                    break ended;
                }
            };
            let mut wire = lock(&self.0);
            // Whoever holds the stream after an upgrade flushes for itself.
            wire.by_turns = ended.is_pending();
            // An error comes back to the connection at its next write; one that waits wakes it up when it can go on.
            let _ = wire.poll_send(cx);
            bell.rest();
            ended
        })
        .await
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket as TLS reads and writes it: what cannot be done yet would block, and wakes the task when it can.
struct Socket<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn or_pending<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        or_would_block(Pin::new(&mut *self.socket).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let sent = self.session.write_tls(&mut Socket { socket: &mut self.socket, cx });
            if ready!(or_pending(sent))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes once there is room for them.
    fn poll_take(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let taken = self.session.writer().write_vectored(slices)?;
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            ready!(self.poll_send(cx))?;
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.session.reader();
            match reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(ready) => {
                    let length = ready.len().min(buf.remaining());
                    buf.put_slice(&ready[..length]);
                    reader.consume(length);
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(or_pending(self.session.read_tls(&mut Socket { socket: &mut self.socket, cx })))?;
            if let Err(error) = self.session.process_new_packets() {
                // The client is told why.
                let _ = self.poll_send(cx);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_take(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        if wire.by_turns { Poll::Ready(Ok(())) } else { wire.poll_send(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = lock(&self.0);
        wire.session.send_close_notify();
        ready!(wire.poll_send(cx))?;
        Pin::new(&mut wire.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    async fn pair() -> ((Gathered, Turns), TlsStream<TcpStream>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = tokio::join!(
            async { TlsAcceptor::from(Arc::new(server)).accept(listener.accept().await.unwrap().0).await },
            TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("localhost").unwrap(), peer)
        );
        let (socket, session) = accepted.unwrap().into_inner();
        (Gathered::new(socket, session), peer.unwrap())
    }

    #[tokio::test]
    async fn a_turn_is_sent_at_its_end_and_a_flush_sends_again_after_the_last() {
        let ((mut stream, turns), mut peer) = pair().await;
        let wire = stream.0.clone();
        let is_pending = || lock(&wire).session.wants_write();
        let mut read = [0; 4];
        let connection = async {
            stream.write_all(b"ab").await.unwrap();
            stream.flush().await.unwrap();
            stream.write_all(b"cd").await.unwrap();
            stream.flush().await.unwrap();
            assert!(is_pending(), "the turn is not over");
            // Waits for what only the end of the turn sends.
            peer.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"abcd");
            stream
        };
        let mut stream = turns.drive(connection, Streams::default()).await;
        stream.write_all(b"ef").await.unwrap();
        stream.flush().await.unwrap();
        assert!(!is_pending());
        peer.read_exact(&mut read[..2]).await.unwrap();
        assert_eq!(&read[..2], b"ef");
        stream.shutdown().await.unwrap();
        assert_eq!(peer.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_fits_waits_for_its_reader_and_streams_run_in_the_turns() {
        let ((mut stream, turns), mut peer) = pair().await;
        let sent: Vec<u8> = (0..8_u32 << 20).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let reading = tokio::spawn(async move {
            let mut read = vec![0; expected.len()];
            peer.read_exact(&mut read).await.unwrap();
            assert!(read == expected);
            peer.write_all(b"ok").await.unwrap();
            peer.shutdown().await.unwrap();
            peer
        });
        let streams = Streams::default();
        let executor = streams.clone();
        let connection = async {
            let (answer, answered) = tokio::sync::oneshot::channel();
            executor.execute(async move { answer.send(sent).unwrap() });
            stream.write_all(&answered.await.unwrap()).await.unwrap();
            stream.flush().await.unwrap();
            let mut end = Vec::new();
            stream.read_to_end(&mut end).await.unwrap();
            assert_eq!(end, b"ok");
        };
        turns.drive(connection, streams).await;
        reading.await.unwrap();
    }

    /// A stream that wakes itself up until it is told not to.
    fn restless(until: impl Fn() -> bool + Send + 'static) -> impl Future<Output = ()> + Send {
        std::future::poll_fn(move |cx| {
            if until() {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn all_streams_that_wake_themselves_have_their_turn_in_one_and_none_has_it_for_ever() {
        let ((_stream, turns), _peer) = pair().await;
        let streams = Streams::default();
        let (mut turns_had, ended) = (0, Arc::new(AtomicU8::new(0)));
        for _ in 0..8 {
            let (ended, polled) = (ended.clone(), AtomicU8::new(0));
            streams.execute(async move {
                restless(move || polled.fetch_add(1, Ordering::Relaxed) > 0).await;
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        streams.execute(restless(|| false));
        let connection = std::future::poll_fn(|cx| {
            turns_had += 1;
            cx.waker().wake_by_ref();
            match (turns_had, ended.load(Ordering::Relaxed)) {
                (1, ended) => assert_eq!(ended, 0, "the connection has not handed them over"),
                (_, ended) => assert_eq!(ended, 8),
            }
            if turns_had > 50 { Poll::Ready(()) } else { Poll::Pending }
        });
        turns.drive(connection, streams).await;
    }
}
