//! SPDY/3.1 framing, as far as Kubernetes' clients use it: streams with headers and data, no priorities,
//! no flow control (neither side of their library keeps windows).

use std::collections::HashMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The strings the header compression starts from, each with its length before it, and the rest as is
/// (SPDY protocol draft 3, section 2.6.10.1).
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding \
content-language content-length content-location content-md5 content-range content-type date etag expect expires \
from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location \
max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
transfer-encoding upgrade user-agent vary via warning www-authenticate method get status";
const DICTIONARY_MORE_WORDS: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const DICTIONARY_REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr \
May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;

/// Largest block of headers that is read; clients send a few short ones.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Names (lower case) and values.
pub(super) type Headers = HashMap<String, String>;

/// What we act on or send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The peer opens a stream; `fin` says it will send nothing on it.
    SynStream { id: u32, headers: Headers, fin: bool },
    /// We accept a stream.
    SynReply { id: u32 },
    /// A stream ends at once.
    Reset { id: u32, status: u32 },
    /// Are you there?
    Ping { id: u32 },
    /// No more streams.
    GoAway { last_id: u32 },
    /// Bytes on a stream.
    Data { id: u32, bytes: Bytes, fin: bool },
    /// Anything else: settings, windows, trailing headers.
    Other,
}

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in DICTIONARY_WORDS.split(' ').chain(DICTIONARY_MORE_WORDS) {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(DICTIONARY_REST.as_bytes());
    bytes
}

/// Reads frames; header compression has state for the whole connection.
pub(super) struct FrameReader<R> {
    io: R,
    inflate: Decompress,
    dictionary: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(io: R) -> Self {
        Self { io, inflate: Decompress::new(true), dictionary: dictionary() }
    }

    /// The next frame; an error at the connection's end.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0u8; 8];
        self.io.read_exact(&mut head).await?;
        let mut head = &head[..];
        let first = head.get_u32();
        let flags_and_length = head.get_u32();
        let (flags, length) = ((flags_and_length >> 24) as u8, flags_and_length & 0x00ff_ffff);
        let mut body = vec![0; length as usize];
        self.io.read_exact(&mut body).await?;
        let fin = flags & FLAG_FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Frame::Data { id: first, bytes: body.into(), fin });
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(invalid("an SPDY version other than 3"));
        }
        self.control(first as u16, fin, &body)
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: &[u8]) -> io::Result<Frame> {
        let (ids, headers_at) = match kind {
            SYN_STREAM => (1, Some(10)),
            // Compressed headers must pass the decompressor, wanted or not.
            SYN_REPLY | 8 => (1, Some(4)),
            RST_STREAM => (2, None),
            PING | GOAWAY => (1, None),
            _ => return Ok(Frame::Other),
        };
        if body.len() < headers_at.unwrap_or(ids * 4) {
            return Err(invalid("a short SPDY frame"));
        }
        let headers = headers_at.map(|at| self.headers(&body[at..])).transpose()?.unwrap_or_default();
        let id = body.get_u32() & 0x7fff_ffff;
        Ok(match kind {
            SYN_STREAM => Frame::SynStream { id, headers, fin },
            RST_STREAM => Frame::Reset { id, status: body.get_u32() },
            PING => Frame::Ping { id },
            GOAWAY => Frame::GoAway { last_id: id },
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, compressed: &[u8]) -> io::Result<Headers> {
        let block = self.inflate(compressed)?;
        let mut rest = block.as_slice();
        let count = take_u32(&mut rest)?;
        let mut headers = Headers::new();
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_ascii_lowercase();
            headers.insert(name, take_text(&mut rest)?);
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::with_capacity(4096);
        loop {
            let before = (self.inflate.total_in(), output.len());
            match self.inflate.decompress_vec(input, &mut output, FlushDecompress::Sync) {
                Err(error) if error.needs_dictionary().is_some() => {
                    input = &input[(self.inflate.total_in() - before.0) as usize..];
                    self.inflate.set_dictionary(&self.dictionary).map_err(io::Error::other)?;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
                Ok(Status::StreamEnd) => return Ok(output),
                Ok(_) => input = &input[(self.inflate.total_in() - before.0) as usize..],
            }
            if output.len() > MAX_HEADER_BYTES {
                return Err(invalid("too many SPDY headers"));
            }
            if output.len() == output.capacity() {
                output.reserve(4096);
            } else if input.is_empty() || output.len() == before.1 {
                return Ok(output);
            }
        }
    }
}

/// Writes frames.
pub(super) struct FrameWriter {
    deflate: Compress,
}

impl FrameWriter {
    pub fn new() -> io::Result<Self> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary()).map_err(io::Error::other)?;
        Ok(Self { deflate })
    }

    /// A frame as bytes.
    pub fn encode(&mut self, frame: &Frame) -> io::Result<Bytes> {
        let mut body = BytesMut::new();
        let kind = match frame {
            Frame::Data { id, bytes, fin } => {
                body.put_u32(*id);
                body.put_u32((u32::from(*fin) << 24) | bytes.len() as u32);
                body.extend_from_slice(bytes);
                return Ok(body.freeze());
            }
            Frame::SynReply { id } => {
                body.put_u32(*id);
                body.extend_from_slice(&self.no_headers()?);
                SYN_REPLY
            }
            Frame::SynStream { id, headers, .. } => {
                body.put_u32(*id);
                body.put_u32(0);
                body.put_u16(0);
                body.extend_from_slice(&self.headers(headers)?);
                SYN_STREAM
            }
            Frame::Reset { id, status } => {
                body.put_u32(*id);
                body.put_u32(*status);
                RST_STREAM
            }
            Frame::Ping { id } => {
                body.put_u32(*id);
                PING
            }
            Frame::GoAway { last_id } => {
                body.put_u32(*last_id);
                body.put_u32(0);
                GOAWAY
            }
            Frame::Other => return Ok(Bytes::new()),
        };
        let mut whole = BytesMut::with_capacity(8 + body.len());
        whole.put_u16(0x8000 | VERSION);
        whole.put_u16(kind);
        whole.put_u32(body.len() as u32);
        whole.extend_from_slice(&body);
        Ok(whole.freeze())
    }

    fn no_headers(&mut self) -> io::Result<Vec<u8>> {
        self.headers(&Headers::new())
    }

    fn headers(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        block.put_u32(headers.len() as u32);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
        // Room for the worst case, so that one call takes it all.
        let mut output = Vec::with_capacity(block.len() * 2 + 128);
        self.deflate.compress_vec(&block, &mut output, FlushCompress::Sync).map_err(io::Error::other)?;
        Ok(output)
    }
}

fn take_u32(rest: &mut &[u8]) -> io::Result<u32> {
    if rest.len() < 4 { Err(invalid("a short header block")) } else { Ok(rest.get_u32()) }
}

fn take_text(rest: &mut &[u8]) -> io::Result<String> {
    let length = take_u32(rest)? as usize;
    let (text, more) = rest.split_at_checked(length).ok_or_else(|| invalid("a short header"))?;
    *rest = more;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        let bytes = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &bytes {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        // The Adler-32 sum by which zlib streams name it.
        assert_eq!((bytes.len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn frames_read_back_as_written() {
        let header =
            |kind: &str| Headers::from([("streamtype".into(), kind.into()), ("port".into(), "80".into())]);
        let frames = [
            Frame::SynStream { id: 1, headers: header("error"), fin: false },
            // The second block leans on the first: compression has state.
            Frame::SynStream { id: 3, headers: header("data"), fin: false },
            Frame::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true },
            Frame::Ping { id: 7 },
            Frame::Reset { id: 3, status: 5 },
            Frame::GoAway { last_id: 3 },
        ];
        let mut writer = FrameWriter::new().unwrap();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| writer.encode(frame).unwrap()).collect();
        let mut reader = FrameReader::new(bytes.as_slice());
        for frame in &frames {
            assert_eq!(reader.next().await.unwrap(), *frame);
        }
        assert!(reader.next().await.is_err(), "the end");
    }
}
