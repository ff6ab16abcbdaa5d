//! The log in etcd, for several servers: one order of appends, kept by comparing one key.
//!
//! Every append is one transaction that compares the `head` key with what this process has seen and writes it anew. So an
//! append succeeds only where nothing was appended in between, our revisions are dense and do not depend on etcd's, and a
//! writer that is behind learns from the watch what it missed. Everybody, this process too, reads the same events in the same
//! order; what this process appended itself is dropped when it comes back.
//!
//! A transaction without an answer is sent again as it is: the comparison lets only one of them happen, and the head says
//! whose it was.

mod follow;
mod history;
mod keys;
mod layout;
mod members;

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub(crate) mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("etcdserverpb");
}

use follow::{Arrivals, Follower};
pub use keys::Keyring;

use keys::Keys;
use layout::{Head, Layout};
use members::{Failed, Members, PATIENCE, PAUSE, described};

use crate::{Arrival, Capacity, Log, LogError, NewestQuestion, Record, Revision, Sealer, Wake};

/// etcd refuses transactions of more operations; one is the head's.
const MOST_RECORDS: usize = 127;
/// etcd refuses requests of more than 1.5 MiB; one value may be larger than this by itself.
const MOST_BYTES: usize = 1 << 20;

/// Where etcd is.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members' client addresses, such as `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// Whom their certificates have to be signed by; the system's authorities where it is not given.
    pub ca_pem: Option<Vec<u8>>,
    /// The certificate and key to show them.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// What all keys begin with, a slash at its end.
    pub prefix: String,
}

impl EtcdConfig {
    /// A cluster at these addresses, with nothing else told.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, ca_pem: None, identity_pem: None, prefix: "/coxswain/".to_owned() }
    }
}

/// A connection to etcd, for what servers share and for the log.
#[derive(Clone)]
pub struct Etcd {
    members: Arc<Members>,
    prefix: String,
    keys: Keys,
}

impl Etcd {
    /// Names the members; the first request connects.
    ///
    /// # Errors
    /// An address or a certificate is malformed.
    pub fn new(config: &EtcdConfig) -> Result<Self, LogError> {
        let keys = Keys::default();
        Ok(Self { members: Arc::new(Members::new(config)?), prefix: config.prefix.clone(), keys })
    }

    /// Knows from now on where the sealing keys are: in what servers share under a name.
    #[must_use]
    pub fn with_keys(mut self, name: &str, keyring: impl Keyring) -> Self {
        self.keys = Keys::shared_as(self.shared_key(name), keyring);
        self
    }

    fn shared_key(&self, name: &str) -> Bytes {
        Layout::new(&self.prefix, None).shared(name)
    }

    /// Puts a key in front of the sealing keys: every server seals with it from then on, and opens with the others still.
    ///
    /// # Errors
    /// etcd does not answer, or there are no keys.
    pub async fn add_key(&self, key: &[u8]) -> Result<(), LogError> {
        self.keys.add(&self.members, &Layout::new(&self.prefix, None), key).await
    }

    /// Seals with the newest key what others have sealed, and drops those; servers may write meanwhile.
    ///
    /// # Errors
    /// etcd does not answer: the same call goes on from there.
    pub async fn drop_older_keys(&self, sealer: Sealer) -> Result<(), LogError> {
        let layout = Layout::new(&self.prefix, Some(sealer));
        self.keys.reread(&self.members, &layout).await?;
        self.keys.drop_older(&self.members, &layout).await
    }

    /// What the servers share under a name.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn shared(&self, name: &str) -> Result<Option<Bytes>, LogError> {
        let (found, _) =
            self.members.get(self.shared_key(name), 0).await.map_err(|status| described(&status))?;
        Ok(found.map(|kv| kv.value))
    }

    /// Shares a value under a name that has none; what is shared in the end, which may be another server's.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn share(&self, name: &str, value: Bytes) -> Result<Bytes, LogError> {
        let key = self.shared_key(name);
        let request = proto::TxnRequest {
            compare: vec![layout::written_at(key.clone(), 0)],
            success: vec![layout::put(key, value)],
        };
        self.members.idempotent_txn(request).await?;
        self.shared(name).await?.ok_or_else(|| LogError::Etcd(format!("{name} was removed")))
    }

    /// The current objects, and the revision of the newest write.
    ///
    /// # Errors
    /// etcd does not answer, or what it holds is not ours.
    pub async fn read(&self, sealer: Option<Sealer>) -> Result<(Vec<Record>, Revision), LogError> {
        let layout = Layout::new(&self.prefix, sealer);
        let snapshot = history::current_snapshot(&self.members, &layout, &self.keys).await?;
        Ok((snapshot.records, snapshot.at.revision))
    }

    /// Fills an etcd that holds no objects with those of a backup; the next write has the revision after `newest`.
    ///
    /// # Errors
    /// There are objects already, or etcd does not take these.
    pub async fn fill(
        &self,
        sealer: Option<Sealer>,
        records: &[Record],
        newest: Revision,
    ) -> Result<(), LogError> {
        let layout = Layout::new(&self.prefix, sealer);
        let (head, _) = self.members.get(layout.head(), 0).await.map_err(|status| described(&status))?;
        if head.is_some() {
            return Err(LogError::Etcd("it holds a cluster already".to_owned()));
        }
        for part in parts(records) {
            if !self.members.idempotent_txn(layout.fill(part)?).await?.succeeded {
                return Err(LogError::Etcd("a server has started on it meanwhile".to_owned()));
            }
        }
        let head = Head { revision: newest, writer: 0, append: 0 };
        let request = proto::TxnRequest {
            compare: vec![layout::written_at(layout.head(), 0)],
            success: vec![layout::put(layout.head(), head.encode())],
        };
        self.members.idempotent_txn(request).await.map(drop)
    }
}

/// Records in parts that one transaction holds.
fn parts(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    parts_by(records, MOST_RECORDS, MOST_BYTES, |record| record.value.as_ref().map_or(0, Bytes::len))
}

/// Parts of at most so many, and so many bytes unless one alone has more.
fn parts_by<T>(
    all: &[T],
    most: usize,
    most_bytes: usize,
    size: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += size(item);
            bytes <= most_bytes
        };
        let fitting = rest.iter().take(most).take_while(fits).count().max(1);
        let (part, left) = rest.split_at_checked(fitting)?;
        rest = left;
        Some(part)
    })
}

/// Where this process stands in the order of appends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// The newest revision that the store knows of.
    pub revision: Revision,
    /// The revision of etcd that wrote the head which says so.
    pub head: i64,
}

/// The log of one server in etcd.
pub struct EtcdLog {
    runtime: Handle,
    members: Arc<Members>,
    layout: Arc<Layout>,
    /// Tells this process's appends from all others.
    writer: u64,
    appends: u64,
    at: Position,
    arrivals: Arc<Arrivals>,
    loaded: (Vec<Record>, Revision),
    questions: NewestQuestion,
    _tasks: Tasks,
}

/// Tasks that end with the log.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl EtcdLog {
    /// Reads what is in etcd, and follows it from there on.
    ///
    /// # Errors
    /// etcd does not answer, or what it holds is not ours.
    pub async fn open(etcd: &Etcd, sealer: Option<Sealer>) -> Result<Self, LogError> {
        let layout = Arc::new(Layout::new(&etcd.prefix, sealer));
        let members = etcd.members.clone();
        history::make_head(&members, &layout).await?;
        // The first note of all is taken before the first write.
        let noted = history::note(&members, &layout, None).await?;
        let snapshot = history::oldest_snapshot(&members, &layout, &etcd.keys).await?;
        let writer = random()?;
        let arrivals = Arc::new(Arrivals::new(writer, snapshot.at));
        let follower = Follower {
            members: members.clone(),
            layout: layout.clone(),
            arrivals: arrivals.clone(),
            keys: etcd.keys.clone(),
        };
        let mut tasks = Tasks(vec![tokio::spawn(follower.run(snapshot.etcd))]);
        let newest = history::newest(&members, &layout).await?.revision;
        if newest > snapshot.at.revision {
            let reached = timeout(PATIENCE, arrivals.reached(newest)).await;
            reached.map_err(|_| LogError::Etcd(format!("revision {newest} does not arrive")))?;
        }
        tasks.0.push(tokio::spawn(history::keep(members.clone(), layout.clone(), noted)));
        tasks.0.push(tokio::spawn(etcd.keys.clone().finish_rotations(members.clone(), layout.clone())));
        let (questions, asked) = mpsc::unbounded_channel();
        tasks.0.push(tokio::spawn(answer(members.clone(), layout.clone(), asked)));
        Ok(Self {
            runtime: Handle::current(),
            members,
            layout,
            writer,
            appends: 0,
            at: snapshot.at,
            arrivals,
            loaded: (snapshot.records, snapshot.at.revision),
            questions,
            _tasks: tasks,
        })
    }

    async fn append_one(&mut self, records: &[Record]) -> Result<(), LogError> {
        self.arrivals.forget_until(self.at.head);
        if !self.arrivals.is_empty() {
            return Err(LogError::Behind);
        }
        self.appends += 1;
        let revision = records.last().map_or(self.at.revision, |record| record.revision);
        let head = Head { revision, writer: self.writer, append: self.appends };
        let request = self.layout.append(records, &head, self.at.head)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match self.members.txn(request.clone()).await {
                Ok(answer) if answer.succeeded => {
                    let etcd = answer.header.map_or(0, |header| header.revision);
                    self.own_is_in(Position { revision, head: etcd });
                    return Ok(());
                }
                Ok(_) => return self.resolve(&head, end).await,
                Err(Failed::Unknown(_)) if Instant::now() < end => sleep(PAUSE).await,
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// Somebody has appended where this append was to be: another server, or an attempt of this one that had no answer.
    async fn resolve(&mut self, head: &Head, end: Instant) -> Result<(), LogError> {
        match timeout_at(end, self.arrivals.first()).await {
            Ok(Some((first, etcd))) if first == *head => {
                self.own_is_in(Position { revision: head.revision, head: etcd });
                self.arrivals.forget_until(etcd);
                Ok(())
            }
            Ok(Some(_)) => Err(LogError::Behind),
            Ok(None) => Err(LogError::Etcd("the history of what was written meanwhile is gone".to_owned())),
            Err(_) => Err(LogError::Etcd("it does not say what was written".to_owned())),
        }
    }

    fn own_is_in(&mut self, at: Position) {
        self.at = at;
        self.arrivals.own_until(at.revision);
    }
}

impl Log for EtcdLog {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
        let (records, horizon) = std::mem::take(&mut self.loaded);
        records.into_iter().for_each(each);
        Ok(horizon)
    }

    fn append(&mut self, records: &[Record], _: &[Revision], _: Revision) -> Result<(), LogError> {
        self.runtime.clone().block_on(self.append_one(records))
    }

    fn capacity(&self) -> Capacity {
        Capacity { records: MOST_RECORDS, bytes: MOST_BYTES, repeats: false }
    }

    fn follow(&mut self, wake: Wake) {
        self.arrivals.wake_with(wake);
    }

    fn arrived(&mut self) -> Vec<Arrival> {
        self.arrivals.forget_until(self.at.head);
        let (arrived, at) = self.arrivals.take(self.at);
        self.at = at;
        arrived
    }

    fn questions(&self) -> Option<NewestQuestion> {
        Some(self.questions.clone())
    }
}

/// Answers what the newest revision is: one read for all who ask while the one before is under way.
async fn answer(
    members: Arc<Members>,
    layout: Arc<Layout>,
    mut asked: mpsc::UnboundedReceiver<oneshot::Sender<Result<Revision, LogError>>>,
) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, usize::MAX).await > 0 {
        let newest = history::newest(&members, &layout).await;
        for reply in waiting.drain(..) {
            // Who asked may have left.
            let _ = reply.send(match &newest {
                Ok(at) => Ok(at.revision),
                Err(LogError::Etcd(text)) => Err(LogError::Etcd(text.clone())),
                Err(error) => Err(LogError::Etcd(error.to_string())),
            });
        }
    }
}

fn random() -> Result<u64, LogError> {
    let value = ring::rand::generate::<[u8; 8]>(&ring::rand::SystemRandom::new());
    let value = value.map_err(|_| LogError::Etcd("no randomness".to_owned()))?;
    Ok(u64::from_le_bytes(value.expose()))
}

/// The values of a collection as they lie there.
#[cfg(test)]
pub(crate) async fn every_value(etcd: &Etcd, collection: &str) -> Vec<(crate::Key, Vec<u8>)> {
    let layout = Layout::new(&etcd.prefix, None);
    let mut values = Vec::new();
    let take = |kv: proto::KeyValue| {
        let body = kv.value.splitn(2, |byte| *byte == b'\n').nth(1).unwrap_or_default();
        values.push((layout.key(&kv.key).ok_or_else(|| LogError::Etcd("a key".to_owned()))?, body.to_vec()));
        Ok(())
    };
    let read = etcd.members.scan(layout.collection(collection), 0, take).await;
    assert!(read.is_ok());
    values
}
