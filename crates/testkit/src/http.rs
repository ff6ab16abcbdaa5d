//! HTTP/1.1 as tests need it: one request a connection, on plain or TLS streams, with bodies that may be wrong on
//! purpose. It has no retries: a test that counts failures must see each.

use std::io::{self, BufRead, BufReader, Read, Write};

/// Why a request had no answer.
#[derive(Debug)]
pub enum HttpError {
    /// The connection failed or ended early.
    Io(io::Error),
    /// What came is not HTTP.
    Malformed(String),
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Malformed(what) => write!(f, "not HTTP: {what:?}"),
        }
    }
}

impl std::error::Error for HttpError {}

impl From<io::Error> for HttpError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The method, such as `GET`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers besides `Host`, `Connection` and the body's length.
    pub headers: Vec<(String, String)>,
    /// The body that is sent.
    pub body: Vec<u8>,
    /// The length that is announced, where it is not the body's.
    pub announced_length: Option<usize>,
}

impl Request {
    /// A `GET`.
    pub fn get(path: &str) -> Self {
        Self { method: "GET".into(), path: path.into(), ..Self::default() }
    }

    /// A request with a body of a media type.
    pub fn with_body(method: &str, path: &str, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type".to_owned(), media_type.to_owned())];
        Self { method: method.into(), path: path.into(), headers, body: body.into(), announced_length: None }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn head(&self, host: &str) -> String {
        let mut head =
            format!("{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = self.announced_length.unwrap_or(self.body.len());
        if length > 0 || self.method != "GET" {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head + "\r\n"
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub code: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a request whose answer is read whole.
pub(crate) fn exchange(
    stream: impl Read + Write,
    host: &str,
    request: &Request,
) -> Result<Response, HttpError> {
    let (head, mut body) = open(stream, host, request)?;
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes)?;
    Ok(Response { body: bytes, ..head })
}

/// Sends a request; the body of the answer is read by the caller.
pub(crate) fn open<S: Read + Write>(
    mut stream: S,
    host: &str,
    request: &Request,
) -> Result<(Response, Body<S>), HttpError> {
    stream.write_all(request.head(host).as_bytes())?;
    // A server may answer and close before it has read a body it refuses.
    let sent = stream.write_all(&request.body).and_then(|()| stream.flush());
    let mut reader = BufReader::new(stream);
    let head = match (read_head(&mut reader), sent) {
        (Ok(head), _) => head,
        (Err(_), Err(error)) => return Err(error.into()),
        (Err(error), Ok(())) => return Err(error),
    };
    let value =
        |name: &str| head.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let framing = if value("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        Framing::Chunked { left: 0 }
    } else if let Some(length) = value("content-length") {
        Framing::Length(length.parse().map_err(|_| HttpError::Malformed(length.to_owned()))?)
    } else {
        Framing::Close
    };
    Ok((head, Body { reader, framing }))
}

fn read_head(reader: &mut impl BufRead) -> Result<Response, HttpError> {
    let mut line = || -> Result<String, HttpError> {
        let mut text = String::new();
        if reader.read_line(&mut text)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(text.trim_end().to_owned())
    };
    let status = line()?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| HttpError::Malformed(status.clone()))?;
    let mut headers = Vec::new();
    loop {
        let text = line()?;
        if text.is_empty() {
            return Ok(Response { code, headers, body: Vec::new() });
        }
        let (name, value) = text.split_once(':').ok_or_else(|| HttpError::Malformed(text.clone()))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

enum Framing {
    Chunked { left: usize },
    Length(usize),
    Close,
    End,
}

/// The body of an answer that is still coming.
pub(crate) struct Body<S: Read> {
    reader: BufReader<S>,
    framing: Framing,
}

impl<S: Read> Body<S> {
    fn next_chunk(&mut self) -> io::Result<usize> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            // The end of the chunk before.
            line.clear();
            self.reader.read_line(&mut line)?;
        }
        let size = line.trim().split(';').next().unwrap_or_default();
        usize::from_str_radix(size, 16).map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

impl<S: Read> Read for Body<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked { left: 0 } = self.framing {
            self.framing = match self.next_chunk()? {
                0 => Framing::End,
                left => Framing::Chunked { left },
            };
        }
        let limit = match &self.framing {
            Framing::Chunked { left } | Framing::Length(left) => buffer.len().min(*left),
            Framing::Close => buffer.len(),
            Framing::End => 0,
        };
        let count = self.reader.read(&mut buffer[..limit])?;
        match &mut self.framing {
            Framing::Chunked { left } | Framing::Length(left) => {
                if count == 0 && limit > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= count;
                if matches!(self.framing, Framing::Length(0)) {
                    self.framing = Framing::End;
                }
            }
            Framing::Close | Framing::End => {}
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Canned(io::Cursor<&'static [u8]>);

    impl Read for Canned {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Canned {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn check(answer: &'static str, expected: Option<&str>) {
        let got = exchange(Canned(io::Cursor::new(answer.as_bytes())), "host", &Request::get("/"));
        assert_eq!(got.ok().map(|response| response.text()).as_deref(), expected, "{answer:?}");
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", Some("abc"));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            Some("abc"),
        );
        check("HTTP/1.1 200 OK\r\n\r\nabc", Some("abc"));
        check("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", None);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", None);
        check("", None);
    }
}
