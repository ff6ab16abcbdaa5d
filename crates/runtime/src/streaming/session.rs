//! A remote command's streams, whatever carries them, and how its end is told.

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Chunks in flight a stream; behind them the other side waits.
const QUEUE_CHUNKS: usize = 16;

/// A terminal's size, as clients send it.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    pub width: u16,
    pub height: u16,
}

/// How a remote command ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Exited(i32),
    Failed(String),
}

/// The command's side of the streams.
pub(super) struct Session {
    pub stdin: mpsc::Receiver<Bytes>,
    pub stdout: mpsc::Sender<Bytes>,
    pub stderr: mpsc::Sender<Bytes>,
    pub resize: mpsc::Receiver<Size>,
    pub outcome: oneshot::Sender<Outcome>,
    /// The client has gone.
    pub gone: CancellationToken,
}

/// The carrier's side.
pub(super) struct Carrier {
    pub stdin: mpsc::Sender<Bytes>,
    pub stdout: mpsc::Receiver<Bytes>,
    pub stderr: mpsc::Receiver<Bytes>,
    pub resize: mpsc::Sender<Size>,
    pub outcome: oneshot::Receiver<Outcome>,
    pub gone: CancellationToken,
}

/// Both sides of a new session.
pub(super) fn session() -> (Session, Carrier) {
    let (stdin_sender, stdin) = mpsc::channel(QUEUE_CHUNKS);
    let (stdout, stdout_receiver) = mpsc::channel(QUEUE_CHUNKS);
    let (stderr, stderr_receiver) = mpsc::channel(QUEUE_CHUNKS);
    let (resize_sender, resize) = mpsc::channel(QUEUE_CHUNKS);
    let (outcome, outcome_receiver) = oneshot::channel();
    let gone = CancellationToken::new();
    let session = Session { stdin, stdout, stderr, resize, outcome, gone: gone.clone() };
    let carrier = Carrier {
        stdin: stdin_sender,
        stdout: stdout_receiver,
        stderr: stderr_receiver,
        resize: resize_sender,
        outcome: outcome_receiver,
        gone,
    };
    (session, carrier)
}

impl Outcome {
    /// What goes over the error stream. From version 4 of the protocol on that is a `Status`; before it,
    /// a failure's text and nothing for success.
    pub fn encode(&self, as_status: bool) -> Option<Bytes> {
        if as_status { Some(self.status()) } else { self.message().map(Bytes::from) }
    }

    fn message(&self) -> Option<String> {
        match self {
            Self::Exited(0) => None,
            Self::Exited(code) => {
                Some(format!("command terminated with non-zero exit code: exit status {code}"))
            }
            Self::Failed(message) => Some(message.clone()),
        }
    }

    fn status(&self) -> Bytes {
        let message = self.message();
        let status = match self {
            Self::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {}", message.as_deref().unwrap_or_default()),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        };
        Bytes::from(status.to_string())
    }
}
