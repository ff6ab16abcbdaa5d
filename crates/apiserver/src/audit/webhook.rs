//! The audit webhook: events are sent to a service.
//!
//! Many at once, and nothing waits for it: events that come faster than they are sent are dropped, and counted; so are those of
//! a batch that fails again and again. Or one by one, and requests wait: but for the end of what takes long, which nobody does.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/#webhook-backend>

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

use crate::remote::{Remote, RemoteError};

/// Upstream's number of attempts, and by how much longer it waits after each.
const ATTEMPTS: u32 = 5;
const BACKOFF_FACTOR: f64 = 1.5;
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is left is sent within this time when the server stops.
const LAST: Duration = Duration::from_secs(3);

/// Who waits until events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditWebhookMode {
    /// Nobody; they are sent many at once.
    Batch,
    /// The request that they tell of.
    Blocking,
    /// That, which fails where it cannot be told that it came.
    BlockingStrict,
}

/// Where events are sent, and how many at once.
#[derive(Clone, Debug)]
pub struct AuditWebhookConfig {
    /// A file in the form of a kubeconfig.
    pub file: PathBuf,
    /// Who waits for them.
    pub mode: AuditWebhookMode,
    /// Events that wait to be sent.
    pub buffer_size: usize,
    /// Events of a batch.
    pub batch_size: usize,
    /// How long a batch waits to be full.
    pub max_wait: Duration,
    /// How long is waited after the first failure.
    pub initial_backoff: Duration,
}

/// The way to the service.
pub struct Webhook {
    remote: Remote,
    config: AuditWebhookConfig,
    sender: Sender<Bytes>,
    waiting: Mutex<Receiver<Bytes>>,
}

impl Webhook {
    /// Reads its file.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(mut config: AuditWebhookConfig) -> Result<Self, RemoteError> {
        if config.mode != AuditWebhookMode::Batch {
            config.batch_size = 1;
        }
        let (sender, waiting) = channel(config.buffer_size.max(1));
        Ok(Self { remote: Remote::from_kubeconfig(&config.file)?, config, sender, waiting: waiting.into() })
    }

    /// Who waits for events.
    pub fn mode(&self) -> AuditWebhookMode {
        self.config.mode
    }

    /// Sends an event; false where it is given up.
    pub async fn send(&self, event: Bytes) -> bool {
        self.deliver(&[event]).await
    }

    /// Hands an event over; false where it had to be dropped.
    pub fn write(&self, event: Bytes) -> bool {
        self.sender.try_send(event).is_ok()
    }

    /// Sends batches until the server stops, then what is left; tells of events that were lost.
    pub async fn run(&self, stop: &CancellationToken, lost: impl Fn(usize)) {
        let mut waiting = self.waiting.lock().await;
        loop {
            let batch = self.next(&mut waiting, stop).await;
            let taken = match stop.run_until_cancelled(self.deliver(&batch)).await {
                _ if batch.is_empty() => return,
                Some(taken) => taken,
                // Once more, and quickly: somebody waits for the end.
                None => self.remote.tell(list(&batch), LAST).await.is_ok(),
            };
            if !taken {
                lost(batch.len());
            }
        }
    }

    /// The next batch: full, or as much as came in its time; nothing when the server stops.
    async fn next(&self, waiting: &mut Receiver<Bytes>, stop: &CancellationToken) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut end = None;
        while batch.len() < self.config.batch_size.max(1) {
            let event = match end {
                None => stop.run_until_cancelled(waiting.recv()).await.flatten(),
                Some(end) => {
                    let next = tokio::time::timeout_at(end, waiting.recv());
                    stop.run_until_cancelled(next).await.and_then(Result::ok).flatten()
                }
            };
            // What is there already goes with the last batches.
            let Some(event) = event.or_else(|| waiting.try_recv().ok()) else { break };
            batch.push(event);
            end = end.or_else(|| Some(tokio::time::Instant::now() + self.config.max_wait));
        }
        batch
    }

    /// Sends a batch, again and again; false where it is given up.
    async fn deliver(&self, batch: &[Bytes]) -> bool {
        if batch.is_empty() {
            return true;
        }
        let mut pause = self.config.initial_backoff;
        for attempt in 1..=ATTEMPTS {
            let Err(error) = self.remote.tell(list(batch), TIMEOUT).await else { return true };
            tracing::warn!(%error, attempt, events = batch.len(), "the audit webhook did not take a batch");
            if attempt == ATTEMPTS {
                return false;
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.2))).await;
            pause = pause.mul_f64(BACKOFF_FACTOR);
        }
        false
    }
}

fn list(events: &[Bytes]) -> Bytes {
    let mut text = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (number, event) in events.iter().enumerate() {
        if number > 0 {
            text.push(b',');
        }
        text.extend_from_slice(event);
    }
    text.extend_from_slice(b"]}");
    text.into()
}
