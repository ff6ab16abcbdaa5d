//! The audit webhook: events are sent to a service.
//!
//! Many at once, and nothing waits for it: events that come faster than they are sent are dropped, and counted; so are those of
//! a batch that fails again and again. Or one by one, and requests wait: but for the end of what takes long, which nobody does.
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/#webhook-backend>

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::delivery::{AuditDelivery, AuditMode, Pace};
use crate::remote::{Remote, RemoteError};

/// Upstream's number of attempts, and by how much longer it waits after each.
const ATTEMPTS: u32 = 5;
const BACKOFF_FACTOR: f64 = 1.5;
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is left is sent within this time when the server stops.
const LAST: Duration = Duration::from_secs(3);
/// Batches that are sent at the same time; further ones wait.
const MOST_SENDING: usize = 64;

/// Where events are sent.
#[derive(Clone, Debug)]
pub struct AuditWebhookConfig {
    /// A file in the form of a kubeconfig.
    pub file: PathBuf,
    /// Who waits for them, and how many go at once.
    pub delivery: AuditDelivery,
    /// How long is waited after the first failure.
    pub initial_backoff: Duration,
}

/// The way to the service.
pub struct Webhook {
    remote: Arc<Remote>,
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
        if config.delivery.mode != AuditMode::Batch {
            config.delivery.batch_size = 1;
        }
        let (sender, waiting) = channel(config.delivery.buffer_size.max(1));
        let remote = Arc::new(Remote::from_kubeconfig(&config.file)?);
        Ok(Self { remote, config, sender, waiting: waiting.into() })
    }

    /// Who waits for events.
    pub fn mode(&self) -> AuditMode {
        self.config.delivery.mode
    }

    /// Sends an event; false where it is given up.
    pub async fn send(&self, event: Bytes) -> bool {
        deliver(&self.remote, self.config.initial_backoff, &[event]).await
    }

    /// Hands an event over; false where it had to be dropped.
    pub fn write(&self, event: Bytes) -> bool {
        self.sender.try_send(event).is_ok()
    }

    /// Sends batches until the server stops, then what is left; tells of events that were lost. A batch does not wait for
    /// those before it.
    pub async fn run(&self, stop: &CancellationToken, lost: impl Fn(usize)) {
        let mut waiting = self.waiting.lock().await;
        let mut pace = self.config.delivery.throttle.map(|throttle| Pace::new(throttle, Instant::now()));
        let mut sending = JoinSet::new();
        loop {
            let batch = self.next(&mut waiting, stop).await;
            if batch.is_empty() {
                break;
            }
            if let Some(pace) = &mut pace {
                stop.run_until_cancelled(tokio::time::sleep_until(pace.next(Instant::now()))).await;
            }
            while let Some(sent) = sending.try_join_next() {
                lost(sent.unwrap_or(0));
            }
            if sending.len() >= MOST_SENDING {
                lost(sending.join_next().await.and_then(Result::ok).unwrap_or(0));
            }
            let (remote, backoff, stop) = (self.remote.clone(), self.config.initial_backoff, stop.clone());
            sending.spawn(async move {
                let taken = match stop.run_until_cancelled(deliver(&remote, backoff, &batch)).await {
                    Some(taken) => taken,
                    // Once more, and quickly: somebody waits for the end.
                    None => remote.tell(list(&batch), LAST).await.is_ok(),
                };
                if taken { 0 } else { batch.len() }
            });
        }
        while let Some(sent) = sending.join_next().await {
            lost(sent.unwrap_or(0));
        }
    }

    /// The next batch: full, or as much as came in its time; nothing when the server stops.
    async fn next(&self, waiting: &mut Receiver<Bytes>, stop: &CancellationToken) -> Vec<Bytes> {
        let mut batch = Vec::new();
        let mut end = None;
        while batch.len() < self.config.delivery.batch_size.max(1) {
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
            end = end.or_else(|| Some(Instant::now() + self.config.delivery.max_wait));
        }
        batch
    }
}

/// Sends a batch, again and again; false where it is given up.
async fn deliver(remote: &Remote, initial_backoff: Duration, batch: &[Bytes]) -> bool {
    let mut pause = initial_backoff;
    for attempt in 1..=ATTEMPTS {
        let Err(error) = remote.tell(list(batch), TIMEOUT).await else { return true };
        tracing::warn!(%error, attempt, events = batch.len(), "the audit webhook did not take a batch");
        if attempt == ATTEMPTS {
            return false;
        }
        // Whoever is overloaded is given time, and not by all at the same moment.
        tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.2))).await;
        pause = pause.mul_f64(BACKOFF_FACTOR);
    }
    false
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads what is posted, which ends as lists of events do.
    async fn posted(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"]}") {
            assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "the end of a list");
        }
        String::from_utf8(text).unwrap().split("\"items\":").last().unwrap().to_owned()
    }

    #[tokio::test]
    async fn batches_do_not_wait_for_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let file = std::env::temp_dir().join(format!("cox-audit-webhook-{}", std::process::id()));
        let server = format!("http://{}", listener.local_addr().unwrap());
        let kubeconfig = coxswain_meta::json!({"current-context": "a", "users": [{"name": "a", "user": {}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": server}}]});
        std::fs::write(&file, kubeconfig.to_string()).unwrap();
        let second = Duration::from_secs(1);
        let throttle = None;
        let mode = AuditMode::Batch;
        let delivery = AuditDelivery { mode, buffer_size: 10, batch_size: 2, max_wait: second, throttle };
        let config = AuditWebhookConfig { file: file.clone(), delivery, initial_backoff: second };
        let webhook = Webhook::new(config).unwrap();
        std::fs::remove_file(file).unwrap();
        for event in ["1", "2", "3", "4"] {
            assert!(webhook.write(Bytes::from(event)));
        }
        let stop = CancellationToken::new();
        let sink = async {
            let (mut one, _) = listener.accept().await.unwrap();
            let mut batches = vec![posted(&mut one).await];
            // The first is not answered until the second is here.
            let (mut other, _) = listener.accept().await.unwrap();
            batches.push(posted(&mut other).await);
            for stream in [&mut one, &mut other] {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            // Whoever has its answer hangs up.
            for mut stream in [one, other] {
                while stream.read_buf(&mut Vec::new()).await.is_ok_and(|read| read > 0) {}
            }
            stop.cancel();
            batches.sort();
            assert_eq!(batches, ["[1,2]}", "[3,4]}"]);
        };
        let lost = std::cell::Cell::new(0);
        let both = async { tokio::join!(webhook.run(&stop, |count| lost.set(lost.get() + count)), sink) };
        tokio::time::timeout(20 * second, both).await.unwrap();
        assert_eq!(lost.get(), 0);
    }
}
