//! The one writer: compares, numbers and logs the writes of all callers in batches, then shows them to readers.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::hub::{Hub, Trimmed};
use crate::{CommitError, Expect, Key, Log, LogError, Object, Record, Revision, View};

/// Bounds the latency of a commit behind a burst, and the memory of a batch.
const LARGEST_BATCH: usize = 512;

type Outcome<A> = Result<Arc<Object<A>>, CommitError<A>>;

struct Request<V: View> {
    key: Key,
    expect: Expect,
    value: Option<(Bytes, V::Attributes)>,
    reply: oneshot::Sender<Outcome<V::Attributes>>,
}

/// A handle on the writer thread, which ends with the last handle.
pub struct Writer<V: View> {
    requests: mpsc::Sender<Request<V>>,
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
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || Thread { log, hub, trimmed }.run(&receiver))
            .map_err(|error| LogError::Writer(error.to_string()))?;
        Ok(Self { requests })
    }

    /// Queues one write and waits until it is durable and visible, or refused.
    pub async fn commit(
        &self,
        key: Key,
        expect: Expect,
        value: Option<(Bytes, V::Attributes)>,
    ) -> Outcome<V::Attributes> {
        let gone = || CommitError::Unavailable("the writer has ended".to_owned());
        let (reply, outcome) = oneshot::channel();
        self.requests.send(Request { key, expect, value, reply }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

struct Thread<V: View> {
    log: Box<dyn Log>,
    hub: Arc<Hub<V>>,
    /// What the hub's history no longer holds and the log may forget with the next batch.
    trimmed: Trimmed,
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
            let current = match pending.get(&request.key) {
                Some(revision) => *revision,
                None => {
                    self.hub.collection(&request.key.collection).get(&request.key.name).map(|o| o.revision)
                }
            };
            let holds = match request.expect {
                Expect::Absent => current.is_none(),
                Expect::At(revision) => current == Some(revision),
            };
            if !holds {
                refused.push(request);
                continue;
            }
            revision = Revision(revision.0 + 1);
            pending.insert(request.key.clone(), request.value.is_some().then_some(revision));
            let value = request.value.as_ref().map(|(stored, _)| stored.clone());
            records.push(Record { revision, key: request.key.clone(), value });
            accepted.push(request);
        }
        self.write(records, accepted);
        // Only now, so that a conflict with a write of the same batch shows that write.
        for request in refused {
            let current = self.hub.collection(&request.key.collection).get(&request.key.name);
            let _ = request.reply.send(Err(CommitError::Conflict(current)));
        }
    }

    fn write(&mut self, records: Vec<Record>, accepted: Vec<Request<V>>) {
        if records.is_empty() {
            return;
        }
        let forget = std::mem::take(&mut self.trimmed.revisions);
        if let Err(error) = self.log.append(&records, &forget, self.trimmed.horizon) {
            tracing::error!(%error, "writes refused");
            self.trimmed.revisions = forget;
            for request in accepted {
                let _ = request.reply.send(Err(CommitError::Unavailable(error.to_string())));
            }
            return;
        }
        let newest = records.last().map(|record| record.revision).unwrap_or_default();
        let mut replies = Vec::with_capacity(records.len());
        for (record, request) in records.into_iter().zip(accepted) {
            let object =
                self.hub.apply(record, request.value.map(|(_, attributes)| attributes), &mut self.trimmed);
            replies.push((request.reply, object));
        }
        self.hub.publish(newest);
        for (reply, object) in replies {
            let _ = reply.send(Ok(object));
        }
    }
}
