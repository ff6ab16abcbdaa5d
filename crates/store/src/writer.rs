//! The one writer: compares, numbers and logs the writes of all callers in batches, then shows them to readers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use crate::hub::{Hub, Trimmed};
use crate::{CommitError, Expect, Key, Log, LogError, Object, Record, Revision, View, Write};

/// Bounds the latency of a commit behind a burst, and the memory of a batch.
const LARGEST_BATCH: usize = 512;

/// The objects as they are now, in the order of the writes; or the write that was refused, and why.
type Outcome<A> = Result<Vec<Arc<Object<A>>>, (usize, CommitError<A>)>;

struct Request<V: View> {
    writes: Vec<Write<V::Attributes>>,
    reply: oneshot::Sender<Outcome<V::Attributes>>,
}

/// A handle on the writer thread, which ends with the last handle.
pub struct Writer<V: View> {
    requests: mpsc::Sender<Request<V>>,
    refusing: Arc<AtomicBool>,
}

impl<V: View> Writer<V> {
    /// Loads the log into the hub and starts the thread.
    pub fn start(mut log: Box<dyn Log>, hub: Arc<Hub<V>>) -> Result<Self, LogError> {
        let mut newest = Revision(0);
        let mut records = Vec::new();
        let horizon = log.load(&mut |record| records.push(record))?;
        let mut trimmed = Trimmed::default();
        hub.set_horizon(horizon);
        for record in records {
            newest = record.revision;
            hub.load(record, horizon, &mut trimmed);
        }
        hub.publish(newest.max(horizon));
        let (requests, receiver) = mpsc::channel();
        let refusing = Arc::new(AtomicBool::new(false));
        let thread = Thread { log, hub, trimmed, refusing: refusing.clone() };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || thread.run(&receiver))
            .map_err(|error| LogError::Writer(error.to_string()))?;
        Ok(Self { requests, refusing })
    }

    /// Whether the log refused what was written last.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Queues writes that belong together and waits until all are durable and visible, or none.
    pub async fn commit(&self, writes: Vec<Write<V::Attributes>>) -> Outcome<V::Attributes> {
        let gone = || (0, CommitError::Unavailable("the writer has ended".to_owned()));
        let (reply, outcome) = oneshot::channel();
        self.requests.send(Request { writes, reply }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

struct Thread<V: View> {
    log: Box<dyn Log>,
    hub: Arc<Hub<V>>,
    /// What the hub's history no longer holds and the log may forget with the next batch.
    trimmed: Trimmed,
    refusing: Arc<AtomicBool>,
}

impl<V: View> Thread<V> {
    fn run(mut self, receiver: &mpsc::Receiver<Request<V>>) {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            batch.extend(receiver.try_iter().take(LARGEST_BATCH - 1));
            self.commit(batch);
        }
    }

    fn commit(&mut self, batch: Vec<Request<V>>) {
        let mut pending: HashMap<Key, Option<Revision>> = HashMap::new();
        let mut accepted = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        let mut revision = self.hub.revision();
        let mut refused = Vec::new();
        for request in batch {
            let current = |key: &Key| match pending.get(key) {
                Some(revision) => *revision,
                None => self.hub.collection(&key.collection).get(&key.name).map(|object| object.revision),
            };
            let holds = |write: &Write<V::Attributes>| match write.expect {
                Expect::Absent => current(&write.key).is_none(),
                Expect::At(revision) => current(&write.key) == Some(revision),
            };
            if let Some(failed) = request.writes.iter().position(|write| !holds(write)) {
                refused.push((failed, request));
                continue;
            }
            for write in &request.writes {
                revision = Revision(revision.0 + 1);
                pending.insert(write.key.clone(), write.value.is_some().then_some(revision));
                let value = write.value.as_ref().map(|(stored, _)| stored.clone());
                records.push(Record { revision, key: write.key.clone(), value });
            }
            accepted.push(request);
        }
        self.write(records, accepted);
        // Only now, so that a conflict with a write of the same batch shows that write.
        for (failed, request) in refused {
            let key = &request.writes[failed].key;
            let current = self.hub.collection(&key.collection).get(&key.name);
            let _ = request.reply.send(Err((failed, CommitError::Conflict(current))));
        }
    }

    fn write(&mut self, records: Vec<Record>, accepted: Vec<Request<V>>) {
        if records.is_empty() {
            return;
        }
        let forget = std::mem::take(&mut self.trimmed.revisions);
        let appended = self.log.append(&records, &forget, self.trimmed.horizon);
        self.refusing.store(appended.is_err(), Ordering::Relaxed);
        if let Err(error) = appended {
            tracing::error!(%error, "writes refused");
            self.trimmed.revisions = forget;
            for request in accepted {
                let _ = request.reply.send(Err((0, CommitError::Unavailable(error.to_string()))));
            }
            return;
        }
        let newest = records.last().map(|record| record.revision).unwrap_or_default();
        let mut replies = Vec::with_capacity(accepted.len());
        let mut records = records.into_iter();
        for request in accepted {
            let written = request.writes.into_iter().zip(records.by_ref());
            let applied = written.map(|(write, record)| {
                self.hub.apply(record, write.value.map(|(_, attributes)| attributes), &mut self.trimmed)
            });
            replies.push((request.reply, applied.collect()));
        }
        self.hub.publish(newest);
        for (reply, objects) in replies {
            let _ = reply.send(Ok(objects));
        }
    }
}
