//! Bodies: of requests as they come, of answers in the pieces that they are made of.
//!
//! A long list is the bytes of the stored objects themselves, which nobody copies before TLS does: a frame of HTTP/2 is told
//! as the pieces that are in it. Where the pieces are small, joining them costs less than naming them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{IoSlice, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::{MapFrame, UnsyncBoxBody};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// With its header, a frame fills one record of TLS.
const FRAME_BYTES: usize = (16 << 10) - 9;
/// A frame has no more pieces: they are written in one call.
const MOST_PIECES: usize = 16;
/// Upstream's bound: shorter answers are not compressed.
const LEAST_COMPRESSED_BYTES: u64 = 128 << 10;

/// So much of a body that nobody wants may arrive.
const MOST_DRAINED_BYTES: usize = 256 << 10;
/// As long as this.
const DRAINING: Duration = Duration::from_millis(500);

/// So much is compressed in one turn.
const MOST_COMPRESSED_AT_ONCE: usize = 256 << 10;

/// What a frame of a body has: pieces of other things' memory.
#[derive(Default)]
pub struct Data {
    /// Empty only where nothing is left.
    first: Bytes,
    more: VecDeque<Bytes>,
    /// How long all of them are, which everybody who handles a frame asks.
    length: usize,
}

impl Data {
    /// The data as one piece.
    pub fn joined(mut self) -> Bytes {
        self.copy_to_bytes(self.remaining())
    }
}

impl From<Bytes> for Data {
    fn from(piece: Bytes) -> Self {
        Self { length: piece.len(), first: piece, more: VecDeque::new() }
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = std::iter::once(&self.first).chain(&self.more).filter(|piece| !piece.is_empty());
        let filled = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while count >= self.first.len() && !self.more.is_empty() {
            count -= self.first.len();
            self.first = self.more.pop_front().unwrap_or_default();
        }
        self.first.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        if length <= self.first.len() {
            let head = self.first.split_to(length);
            self.length -= length;
            self.advance(0);
            return head;
        }
        let mut joined = BytesMut::with_capacity(length);
        joined.put(self.take(length));
        joined.freeze()
    }
}

/// The body of a request or an answer.
pub struct Body(Content);

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

enum Content {
    Whole(Bytes),
    Parts(Parts),
    Compressed(Box<Compressed>),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

/// A body whose frames are one piece each.
pub type Joined = MapFrame<Body, fn(Frame<Data>) -> Frame<Bytes>>;

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// Another kind of body.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match body.is_end_stream() {
            true => Self::empty(),
            false => Self(Content::Stream(body.map_err(Into::into).boxed_unsync())),
        }
    }

    /// The body of a request as it comes in, and what its handler leaves of it unread, where there is anything.
    pub fn incoming(body: Incoming) -> (Self, Option<Unread>) {
        if body.is_end_stream() {
            return (Self::empty(), None);
        }
        let shared = Shared(Arc::new(Mutex::new(body)));
        (Self::new(Shared(shared.0.clone())), Some(Unread(shared)))
    }

    /// What comes piece by piece.
    pub fn from_stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::new(StreamBody::new(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)))))
    }

    /// A long answer, whose parts are never joined.
    pub fn from_parts(parts: Vec<Bytes>) -> Self {
        let left = parts.iter().map(Bytes::len).sum();
        let joins = left / parts.len().max(1) < FRAME_BYTES / MOST_PIECES;
        Self(Content::Parts(Parts { parts: parts.into_iter(), rest: Bytes::new(), left, joins }))
    }

    /// The body compressed with gzip, where it is an answer of our own that is worth it.
    pub fn compressed(self) -> Result<Self, Self> {
        let worth = !matches!(self.0, Content::Stream(_))
            && self.size_hint().exact().is_some_and(|size| size > LEAST_COMPRESSED_BYTES);
        if !worth {
            return Err(self);
        }
        let encoder = GzEncoder::new(Vec::new(), Compression::fast());
        Ok(Self(Content::Compressed(Box::new(Compressed {
            body: self,
            encoder: Some(encoder),
            rests: false,
        }))))
    }

    /// The body in frames of one piece each.
    pub fn joined(self) -> Joined {
        self.map_frame(|frame| frame.map_data(Data::joined))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self(Content::Whole(whole.into()))
    }
}

impl http_body::Body for Body {
    type Data = Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, BoxError>>> {
        let data = match &mut self.0 {
            Content::Whole(whole) => (!whole.is_empty()).then(|| Data::from(std::mem::take(whole))),
            Content::Parts(parts) => parts.frame(),
            Content::Compressed(compressed) => return compressed.poll_frame(cx),
            Content::Stream(stream) => {
                return Pin::new(stream)
                    .poll_frame(cx)
                    .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(Data::from))));
            }
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Whole(whole) => whole.is_empty(),
            Content::Parts(parts) => parts.left == 0,
            Content::Compressed(compressed) => compressed.encoder.is_none(),
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(whole) => SizeHint::with_exact(whole.len() as u64),
            Content::Parts(parts) => SizeHint::with_exact(parts.left as u64),
            Content::Compressed(_) => SizeHint::default(),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}

struct Shared(Arc<Mutex<Incoming>>);

impl Shared {
    fn body(&self) -> MutexGuard<'_, Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// What is left of a request's body when it is answered. A client that is still sending when the answer is complete is told
/// to stop, and some (curl) take that for a failure of the request.
pub struct Unread(Shared);

impl Unread {
    /// Lets what is on its way arrive, for a moment and within bounds, unless somebody goes on reading.
    pub async fn drain(mut self) {
        if Arc::strong_count(&self.0.0) > 1 {
            return;
        }
        let arriving = async {
            let mut left = MOST_DRAINED_BYTES;
            while let Some(Ok(frame)) = self.0.frame().await {
                let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
                left = rest;
            }
        };
        let _ = tokio::time::timeout(DRAINING, arriving).await;
    }
}

/// A body that is told in parts and sent in frames of one size.
struct Parts {
    parts: std::vec::IntoIter<Bytes>,
    /// What the last frame had no room for.
    rest: Bytes,
    left: usize,
    /// Whether the parts are too small to be told one by one.
    joins: bool,
}

impl Parts {
    fn frame(&mut self) -> Option<Data> {
        let most = self.left.min(FRAME_BYTES);
        let mut room = most;
        let (mut pieces, mut joined) = (VecDeque::new(), BytesMut::new());
        match self.joins {
            true => joined.reserve(room),
            false => pieces.reserve(MOST_PIECES),
        }
        while room > 0 && pieces.len() < MOST_PIECES {
            if self.rest.is_empty() {
                self.rest = self.parts.next()?;
            }
            let piece = self.rest.split_to(self.rest.len().min(room));
            (room, self.left) = (room - piece.len(), self.left - piece.len());
            match self.joins {
                true => joined.put(piece),
                false if piece.is_empty() => {}
                false => pieces.push_back(piece),
            }
        }
        if self.joins {
            pieces.push_back(joined.freeze());
        }
        let first = pieces.pop_front().filter(|first| !first.is_empty())?;
        Some(Data { first, more: pieces, length: most - room })
    }
}

/// A body that is compressed as it is sent.
struct Compressed {
    body: Body,
    /// None once all was told.
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// Whether the other streams of the connection come first.
    rests: bool,
}

impl Compressed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Data>, BoxError>>> {
        if std::mem::take(&mut self.rests) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut taken = 0;
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(None) };
            let next = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().ok(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => None,
            };
            let Some(mut data) = next else {
                let end = self.encoder.take().map(GzEncoder::finish).transpose()?;
                return Poll::Ready(end.map(|end| Ok(Frame::data(Data::from(Bytes::from(end))))));
            };
            taken += data.remaining();
            while data.has_remaining() {
                let written = encoder.write(data.chunk())?;
                data.advance(written);
            }
            if encoder.get_ref().len() >= FRAME_BYTES || taken >= MOST_COMPRESSED_AT_ONCE {
                let frame = std::mem::take(encoder.get_mut());
                self.rests = true;
                return Poll::Ready(Some(Ok(Frame::data(Data::from(Bytes::from(frame))))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use hyper::service::service_fn;
    use hyper::{client, server};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_has_come_before_the_answer_is_complete() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let refuse = service_fn(|request: http::Request<Incoming>| async {
            let (body, unread) = Body::incoming(request.into_body());
            drop(body);
            unread.expect("a body on its way").drain().await;
            Ok::<_, Infallible>(http::Response::new(Body::empty().joined()))
        });
        tokio::spawn(
            server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(far), refuse),
        );
        let client = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near));
        let (mut client, connection) = client.await.expect("a connection");
        tokio::spawn(connection);
        let (send, pieces) = futures::channel::mpsc::unbounded();
        send.unbounded_send(Bytes::from_static(b"first")).expect("the body");
        let body = Body::from_stream(pieces).joined();
        let request = http::Request::post("http://a/").body(body).expect("a request");
        let answer = tokio::spawn(async move { client.send_request(request).await });
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(!answer.is_finished(), "the body has not ended");
        drop(send);
        assert_eq!(answer.await.expect("a task").expect("an answer").status(), 200);
    }

    /// Frames of a body, as they are written: the pieces of each.
    async fn frames(mut body: Body) -> Vec<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("a frame").into_data().ok().expect("data");
            let mut slices = [IoSlice::new(&[]); 64];
            let count = data.chunks_vectored(&mut slices);
            frames.push(slices[..count].iter().map(|slice| slice.to_vec()).collect());
        }
        frames
    }

    fn parts(count: usize, length: usize) -> Vec<Bytes> {
        (0..count).map(|at| vec![at as u8; length].into()).collect()
    }

    #[tokio::test]
    async fn large_parts_are_sent_where_they_are_and_small_ones_joined() {
        for (parts, most) in
            [(parts(100, 3700), MOST_PIECES), (parts(5000, 300), 1), (parts(40, 1100), MOST_PIECES)]
        {
            let whole = parts.concat();
            let frames = frames(Body::from_parts(parts)).await;
            assert_eq!(frames.concat().concat(), whole);
            let lengths: Vec<usize> = frames.iter().map(|pieces| pieces.concat().len()).collect();
            assert!(lengths.iter().all(|length| *length <= FRAME_BYTES), "{lengths:?}");
            assert!(frames.iter().all(|pieces| pieces.len() <= most));
        }
    }

    #[tokio::test]
    async fn a_long_answer_is_compressed_and_a_short_one_or_anothers_is_not() {
        let parts = parts(100, 3700);
        let whole = parts.concat();
        let Ok(body) = Body::from_parts(parts).compressed() else { panic!("long enough") };
        let compressed = body.collect().await.expect("a body").to_bytes();
        let mut plain = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut plain).expect("gzip");
        assert!(plain == whole && compressed.len() < whole.len());
        assert!(Body::from(vec![0; 128 << 10]).compressed().is_err());
        let foreign = futures::stream::iter([Bytes::from(vec![0; 1 << 20])]);
        assert!(Body::from_stream(foreign).compressed().is_err());
    }
}
