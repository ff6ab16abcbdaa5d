//! A registry that only gives: manifests and blobs of [`Images`] over plain HTTP, for the node that pulls in the cluster's
//! namespace.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::images::{Images, MANIFEST};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until the process ends.
pub fn serve(listener: TcpListener, images: Images) {
    let images = Arc::new(images);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let images = images.clone();
            // Who hangs up is no concern of a test registry.
            std::thread::spawn(move || answer(&connection, &images));
        }
    });
}

enum Answer {
    Ok,
    NotFound,
    Found { media_type: &'static str, digest: String, file: File },
}

fn answer(connection: &TcpStream, images: &Images) -> io::Result<()> {
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(connection.take(64 << 10));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::from("…");
    while !header.trim().is_empty() {
        header.clear();
        reader.read_line(&mut header)?;
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut connection = connection;
    match find(path, images) {
        Answer::Ok => write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Answer::NotFound => {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}"#;
            let head = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\n";
            write!(connection, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
        }
        Answer::Found { media_type, digest, mut file } => {
            let length = file.metadata()?.len();
            write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\
                 Docker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n"
            )?;
            if method == "GET" {
                io::copy(&mut file, &mut connection)?;
            }
            Ok(())
        }
    }
}

/// `/v2/<repository>/manifests/<reference>` or `/v2/<repository>/blobs/<digest>`.
fn find(path: &str, images: &Images) -> Answer {
    let path = path.split('?').next().unwrap_or_default();
    let Some(rest) = path.strip_prefix("/v2/") else { return Answer::NotFound };
    if rest.is_empty() {
        return Answer::Ok;
    }
    let found = if let Some((repository, reference)) = rest.split_once("/manifests/") {
        images.manifest(repository, reference).map(|digest| (MANIFEST, digest))
    } else {
        rest.split_once("/blobs/").map(|(_, digest)| ("application/octet-stream", digest.to_owned()))
    };
    let open = |(media_type, digest): (&'static str, String)| {
        let file = File::open(images.blob(&digest)?).ok()?;
        Some(Answer::Found { media_type, digest, file })
    };
    found.and_then(open).unwrap_or(Answer::NotFound)
}
