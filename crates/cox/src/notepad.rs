//! The demo app: a notepad over HTTP that says which pod and version answers.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// After SIGTERM requests are still taken for this long: proxies need a moment to stop sending them.
const LAME_DUCK: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(5);
const LONGEST_NOTE_BYTES: usize = 4096;
const MOST_NOTES: usize = 1000;

/// Flags of the demo app.
#[derive(Args)]
pub struct NotepadArgs {
    /// The version to show.
    #[arg(long, default_value = "1")]
    app_version: String,
    /// The port to listen on.
    #[arg(long, default_value_t = 8083)]
    port: u16,
}

struct Notepad {
    host: String,
    version: String,
    title: String,
    notes: Mutex<Vec<String>>,
}

/// Serves until SIGTERM.
pub fn run(args: &NotepadArgs) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    let title = std::env::var("TITLE").unwrap_or_else(|_| "Notepad".to_owned());
    let notepad =
        Arc::new(Notepad { host, version: args.app_version.clone(), title, notes: Mutex::default() });
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(notepad, args.port))
}

async fn serve(notepad: Arc<Notepad>, port: u16) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await?;
    let connections = GracefulShutdown::new();
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tokio::time::sleep(LAME_DUCK).await;
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted { Ok((stream, _)) => stream, Err(_) => continue },
            () = &mut stop => break,
        };
        let notepad = notepad.clone();
        let service = service_fn(move |request| {
            let notepad = notepad.clone();
            async move { Ok::<_, Infallible>(notepad.answer(request).await) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        let connection = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
    let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
    Ok(())
}

impl Notepad {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/healthz") => reply(StatusCode::OK, "ok\n".into()),
            (&Method::GET, "/") => reply(StatusCode::OK, self.page()),
            (&Method::GET, "/notes") => reply(StatusCode::OK, self.listed()),
            (&Method::POST, "/notes") => self.add(request).await,
            _ => reply(StatusCode::NOT_FOUND, "no such page\n".into()),
        }
    }

    fn listed(&self) -> String {
        self.notes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|note| format!("{note}\n"))
            .collect()
    }

    fn page(&self) -> String {
        let notes = self.listed();
        let notes =
            if notes.is_empty() { "(no notes yet: curl -d 'my note' …/notes)\n".to_owned() } else { notes };
        format!("{}\nhost: {}\nversion: {}\n\n{notes}", self.title, self.host, self.version)
    }

    async fn add(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Ok(body) = Limited::new(request.into_body(), LONGEST_NOTE_BYTES).collect().await else {
            return reply(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a note has at most {LONGEST_NOTE_BYTES} bytes\n"),
            );
        };
        let note = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if note.is_empty() || notes.len() >= MOST_NOTES {
            return reply(StatusCode::BAD_REQUEST, "the note is empty, or the notepad is full\n".into());
        }
        notes.push(note);
        reply(StatusCode::CREATED, "noted\n".into())
    }
}

fn reply(code: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = code;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
