//! The HTTPS door: TLS 1.2 and up, optional client certificates, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ApiServer;
use crate::body::Body;
use crate::gather::{Gathered, Streams};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first request comes within this time, and the headers of every other; HTTP/2's peers answer pings besides.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// What a stream has ready to be sent: a turn's worth, which stays in the cache until it is encrypted.
const SEND_BUFFER_BYTES: usize = 128 << 10;
/// More connections than this wait to be accepted.
const MOST_CONNECTIONS: usize = 16_384;

/// The listener failed.
#[derive(Debug, thiserror::Error)]
#[error("the API server's listener: {0}")]
pub struct ServeError(#[from] std::io::Error);

/// Serves connections until `cancel`, then lets running requests end.
///
/// # Errors
/// The listener failed for good.
pub async fn serve(
    api: ApiServer,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let (acceptor, connections) = (TlsAcceptor::from(tls), TaskTracker::new());
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Some(place) = cancel.run_until_cancelled(places.clone().acquire_owned()).await {
        let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await else { break };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                // Out of descriptors: those that end free some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (api, acceptor, cancel) = (api.clone(), acceptor.clone(), cancel.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = connection(api, stream, address, acceptor, cancel).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    connections.close();
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, connections.wait()).await;
    Ok(())
}

async fn connection(
    api: ApiServer,
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    cancel: CancellationToken,
) -> Result<(), crate::body::BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let (stream, session) = stream.into_inner();
    let peer = api.peer(session.peer_certificates(), address.ip());
    let known = Arc::new((peer, AtomicBool::new(false)));
    let asked = known.clone();
    let (stream, turns) = Gathered::new(stream, session);
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, known) = (api.clone(), known.clone());
        known.1.store(true, Ordering::Relaxed);
        async move {
            let (head, body) = request.into_parts();
            let (body, unread) = Body::incoming(body);
            // HTTP/1.1 has its own ways.
            let unread = unread.filter(|_| head.version == Version::HTTP_2);
            let response = api.handle(&known.0, Request::from_parts(head, body)).await;
            if let Some(unread) = unread {
                unread.drain().await;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let silent = async {
        tokio::time::sleep(HEADER_TIMEOUT).await;
        if asked.1.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let streams = Streams::default();
    let mut builder = auto::Builder::new(streams.clone());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(1000);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let serving = async {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => Err("no request came".into()),
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    turns.drive(serving, streams).await
}
