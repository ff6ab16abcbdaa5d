//! The one writer: compares, numbers and logs the writes of all callers in batches, then shows them to readers.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::hub::{Hub, Prepared, Trimmed};
use crate::{
    Arrival, Capacity, CommitError, Expect, Key, Log, LogError, NewestQuestion, Object, Record, Revision,
    View, Write,
};

/// Bounds the latency of a commit behind a burst, and the memory of a batch.
const LARGEST_BATCH: usize = 512;

/// Records that are prepared together, and packs of them that wait for a thread at most.
const PACK: usize = 512;
const PACKS_WAITING: usize = 4;

/// The objects as they are now, in the order of the writes; or the write that was refused, and why.
type Outcome<A> = Result<Vec<Arc<Object<A>>>, (usize, CommitError<A>)>;

/// What is known to be written elsewhere has to arrive within this time.
const PATIENCE: Duration = Duration::from_secs(10);

enum Message<V: View> {
    Commit(Request<V>),
    /// Other writers of the log have appended.
    Arrived,
    /// The store is closed.
    End,
}

struct Request<V: View> {
    writes: Vec<Write<V::Attributes>>,
    reply: oneshot::Sender<Outcome<V::Attributes>>,
}

/// A handle on the writer thread, which ends with it.
pub struct Writer<V: View> {
    messages: mpsc::Sender<Message<V>>,
    refusing: Arc<AtomicBool>,
    published: watch::Receiver<Revision>,
    questions: Option<NewestQuestion>,
}

impl<V: View> Writer<V> {
    /// Loads the log into the hub and starts the thread.
    pub fn start(mut log: Box<dyn Log>, hub: Arc<Hub<V>>) -> Result<Self, LogError> {
        let mut newest = Revision(0);
        let (records, horizon) = load(&mut *log, &hub)?;
        let mut trimmed = Trimmed::default();
        hub.set_horizon(horizon);
        for record in records {
            newest = record.revision;
            hub.load(record, horizon, &mut trimmed);
        }
        let newest = newest.max(horizon);
        hub.publish(newest);
        let (messages, receiver) = mpsc::channel();
        let (publisher, published) = watch::channel(newest);
        let refusing = Arc::new(AtomicBool::new(false));
        let questions = log.questions();
        let wake = messages.clone();
        log.follow(Box::new(move || drop(wake.send(Message::Arrived))));
        let mut thread = Thread { log, hub, trimmed, refusing: refusing.clone(), publisher };
        thread.follow();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || thread.run(&receiver))
            .map_err(|error| LogError::Writer(error.to_string()))?;
        Ok(Self { messages, refusing, published, questions })
    }

    /// Whether the log has other writers.
    pub fn is_shared(&self) -> bool {
        self.questions.is_some()
    }

    /// Waits until everything is visible that was acknowledged to anybody before this was called.
    pub async fn sync(&self) -> Result<(), LogError> {
        let Some(questions) = &self.questions else { return Ok(()) };
        let gone = || LogError::Writer("it has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        questions.send(reply).map_err(|_| gone())?;
        let newest = answer.await.map_err(|_| gone())??;
        let mut published = self.published.clone();
        let arriving = published.wait_for(|revision| *revision >= newest);
        match tokio::time::timeout(PATIENCE, arriving).await {
            Ok(arrived) => arrived.map(drop).map_err(|_| gone()),
            Err(_) => Err(LogError::Etcd(format!("revision {newest} does not arrive"))),
        }
    }

    /// Whether the log refused what was written last.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Queues writes that belong together and waits until all are durable and visible, or none.
    pub async fn commit(&self, writes: Vec<Write<V::Attributes>>) -> Outcome<V::Attributes> {
        let gone = || (0, CommitError::Unavailable("the writer has ended".to_owned()));
        let (reply, outcome) = oneshot::channel();
        self.messages.send(Message::Commit(Request { writes, reply })).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// Reads a log. To make of its records what readers see takes longer than to read them, and threads beside do it.
fn load<V: View>(
    log: &mut dyn Log,
    hub: &Hub<V>,
) -> Result<(impl Iterator<Item = Prepared<V::Attributes>> + use<V>, Revision), LogError> {
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (mut senders, mut preparing) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (sender, packs) = mpsc::sync_channel::<Vec<Record>>(PACKS_WAITING);
            let prepare = |pack: Vec<Record>| -> Vec<_> {
                pack.into_iter().map(|record| hub.prepare(record, None)).collect()
            };
            preparing.push(scope.spawn(move || packs.into_iter().map(prepare).collect::<VecDeque<_>>()));
            senders.push(sender);
        }
        // Packs go round the threads, and so they come back.
        let (mut pack, mut turn) = (Vec::with_capacity(PACK), 0);
        let horizon = log.load(&mut |record| {
            pack.push(record);
            if pack.len() == PACK {
                let full = std::mem::replace(&mut pack, Vec::with_capacity(PACK));
                // A thread that panicked is met below.
                let _ = senders[turn % threads].send(full);
                turn += 1;
            }
        })?;
        let _ = senders[turn % threads].send(pack);
        drop(senders);
        let joined = preparing.into_iter().map(|thread| {
            thread.join().map_err(|_| LogError::Writer("a record of the log cannot be read".to_owned()))
        });
        let mut prepared = joined.collect::<Result<Vec<_>, _>>()?;
        let mut turn = 0;
        let packs = std::iter::from_fn(move || {
            turn += 1;
            prepared[(turn - 1) % threads].pop_front()
        });
        Ok((packs.flatten(), horizon))
    })
}

impl<V: View> Drop for Writer<V> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.messages.send(Message::End);
    }
}

struct Thread<V: View> {
    log: Box<dyn Log>,
    hub: Arc<Hub<V>>,
    /// What the hub's history no longer holds and the log may forget with the next batch.
    trimmed: Trimmed,
    refusing: Arc<AtomicBool>,
    publisher: watch::Sender<Revision>,
}

/// What becomes of some requests that are looked at together.
struct Batch<V: View> {
    accepted: Vec<Request<V>>,
    records: Vec<Record>,
    bytes: usize,
    pending: HashMap<Key, Option<Revision>>,
    refused: Vec<(usize, Request<V>)>,
}

impl<V: View> Thread<V> {
    fn run(mut self, receiver: &mpsc::Receiver<Message<V>>) {
        let capacity = self.log.capacity();
        while let Ok(first) = receiver.recv() {
            let mut waiting = VecDeque::new();
            for message in std::iter::once(first).chain(receiver.try_iter().take(LARGEST_BATCH - 1)) {
                match message {
                    Message::Commit(request) => waiting.push_back(request),
                    Message::Arrived => {}
                    Message::End => return,
                }
            }
            self.follow();
            while !waiting.is_empty() {
                let batch = self.decide(&mut waiting, capacity);
                self.commit(batch, &mut waiting);
            }
        }
    }

    /// Applies what other writers of the log have appended.
    fn follow(&mut self) {
        for arrival in self.log.arrived() {
            match arrival {
                Arrival::Appended(records) => {
                    let newest = records.last().map(|record| record.revision);
                    for record in records {
                        self.hub.apply(self.hub.prepare(record, None), &mut self.trimmed);
                    }
                    self.publish(newest.unwrap_or_else(|| self.hub.revision()));
                }
                Arrival::Replaced(records, newest) => {
                    self.hub.replace(records, newest);
                    self.publish(newest);
                }
            }
        }
    }

    fn publish(&mut self, newest: Revision) {
        self.hub.publish(newest);
        self.publisher.send_replace(newest);
    }

    /// Takes as many requests as one append holds, and numbers their writes.
    fn decide(&self, waiting: &mut VecDeque<Request<V>>, capacity: Capacity) -> Batch<V> {
        let mut batch = Batch {
            accepted: Vec::with_capacity(waiting.len()),
            records: Vec::with_capacity(waiting.len()),
            bytes: 0,
            pending: HashMap::new(),
            refused: Vec::new(),
        };
        let mut revision = self.hub.revision();
        while let Some(request) = waiting.front() {
            let bytes =
                request.writes.iter().filter_map(|write| Some(write.value.as_ref()?.0.len())).sum::<usize>();
            let full = batch.records.len() + request.writes.len() > capacity.records
                || batch.bytes + bytes > capacity.bytes
                || !capacity.repeats
                    && request.writes.iter().any(|write| batch.pending.contains_key(&write.key));
            if full && !batch.records.is_empty() {
                break;
            }
            let Some(request) = waiting.pop_front() else { break };
            let current = |key: &Key| match batch.pending.get(key) {
                Some(revision) => *revision,
                None => {
                    self.hub.collection(&key.collection).newest_of(&key.name).map(|object| object.revision)
                }
            };
            let holds = |write: &Write<V::Attributes>| match write.expect {
                Expect::Absent => current(&write.key).is_none(),
                Expect::At(revision) => current(&write.key) == Some(revision),
            };
            if let Some(failed) = request.writes.iter().position(|write| !holds(write)) {
                batch.refused.push((failed, request));
                continue;
            }
            batch.bytes += bytes;
            for write in &request.writes {
                revision = Revision(revision.0 + 1);
                batch.pending.insert(write.key.clone(), write.value.is_some().then_some(revision));
                let value = write.value.as_ref().map(|(stored, _)| stored.clone());
                batch.records.push(Record { revision, key: write.key.clone(), value });
            }
            batch.accepted.push(request);
        }
        batch
    }

    /// Appends a batch and answers; what another writer came before goes back to those that wait.
    fn commit(&mut self, batch: Batch<V>, waiting: &mut VecDeque<Request<V>>) {
        let Batch { accepted, records, refused, .. } = batch;
        match self.append(&records) {
            Ok(()) => self.apply(records, accepted),
            Err(LogError::Behind) => {
                self.follow();
                // What was refused for a write of this batch may be right now.
                waiting.extend(refused.into_iter().map(|(_, request)| request));
                return accepted.into_iter().rev().for_each(|request| waiting.push_front(request));
            }
            Err(error) => {
                tracing::error!(%error, "writes refused");
                for request in accepted {
                    let _ = request.reply.send(Err((0, CommitError::Unavailable(error.to_string()))));
                }
            }
        }
        // Only now, so that a conflict with a write of the same batch shows that write.
        for (failed, request) in refused {
            let key = &request.writes[failed].key;
            let current = self.hub.collection(&key.collection).newest_of(&key.name);
            let _ = request.reply.send(Err((failed, CommitError::Conflict(current))));
        }
    }

    fn append(&mut self, records: &[Record]) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        let forget = std::mem::take(&mut self.trimmed.revisions);
        let appended = self.log.append(records, &forget, self.trimmed.horizon);
        let refusing = !matches!(appended, Ok(()) | Err(LogError::Behind));
        self.refusing.store(refusing, Ordering::Relaxed);
        if appended.is_err() {
            self.trimmed.revisions = forget;
        }
        appended
    }

    fn apply(&mut self, records: Vec<Record>, accepted: Vec<Request<V>>) {
        let Some(newest) = records.last().map(|record| record.revision) else { return };
        let mut replies = Vec::with_capacity(accepted.len());
        let mut records = records.into_iter();
        for request in accepted {
            let written = request.writes.into_iter().zip(records.by_ref());
            let applied = written.map(|(write, record)| {
                let attributes = write.value.map(|(_, attributes)| attributes);
                self.hub.apply(self.hub.prepare(record, attributes), &mut self.trimmed)
            });
            replies.push((request.reply, applied.collect()));
        }
        self.publish(newest);
        for (reply, objects) in replies {
            let _ = reply.send(Ok(objects));
        }
    }
}
