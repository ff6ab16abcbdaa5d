//! The CRI server: requests to calls, results to answers. No decision is made here.

mod image;
mod runtime;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use coxswain_cri::v1::image_service_server::ImageServiceServer;
use coxswain_cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::error::{RuntimeError, during};
use crate::runtime::{Runtime, RuntimeConfig};
use crate::streaming::Streaming;

/// Largest message either way: lists of everything on a full node.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The runtime could not be started, or its server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Taking over what is on disk failed.
    #[error(transparent)]
    Runtime(Box<dyn std::error::Error + Send + Sync>),
    /// The CRI server failed.
    #[error("CRI server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl From<RuntimeError> for ServeError {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(Box::new(error))
    }
}

/// How long calls in flight may delay the end: an exec or a pull can take forever.
const CALL_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Service(Arc<Runtime>);

/// Serves CRI on `config.socket` until cancelled. Sandboxes and containers go on running after that, and
/// the next server takes them over.
pub async fn serve(config: RuntimeConfig, cancel: CancellationToken) -> Result<(), ServeError> {
    // Somebody else in this process may have chosen a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (streaming, streams) = Streaming::bind().await.map_err(during("listening for streams"))?;
    let socket = config.socket.clone();
    let runtime = Runtime::open(config, streaming, cancel.clone()).await?;
    runtime.tasks.spawn(crate::streaming::serve(runtime.clone(), streams));
    // The socket appears once everything is known: who connects gets true answers.
    let listener = bind(&socket).map_err(during("listening for CRI"))?;
    let service = Service(runtime.clone());
    let server = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(ImageServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.clone().cancelled_owned());
    let impatience = async {
        cancel.cancelled().await;
        tokio::time::sleep(CALL_PATIENCE).await;
    };
    let served = tokio::select! {
        served = server => served,
        () = impatience => Ok(()),
    };
    cancel.cancel();
    runtime.tasks.close();
    runtime.tasks.wait().await;
    let _ = std::fs::remove_file(&socket);
    Ok(served?)
}

fn bind(socket: &std::path::Path) -> std::io::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Whether every wanted label is there.
fn labels_match(
    labels: &std::collections::HashMap<String, String>,
    wanted: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
