//! A revisioned key-value store: what the API server keeps, and the history its watches read.
//!
//! The store knows bytes and revisions, never kinds. The rules, which every [`Log`] lets hold:
//! - revisions are dense and monotonic; every write has one of its own;
//! - a commit compares the revisions last written to its keys and is atomic over all of them;
//! - an acknowledged commit survives power loss (of a durable log), and reads that start after it see it;
//! - a watch from revision R delivers every later event of its collection exactly once and in order, or says that
//!   the history no longer reaches back to R.
//!
//! Writes of many callers share one flush (group commit): one writer thread owns the log. Several servers may share one log,
//! in etcd: the rules hold over all of them.

mod backup;
mod etcd;
mod hub;
mod log;
mod seal;
mod sqlite;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use backup::Backup;
pub use etcd::{Etcd, EtcdConfig, EtcdLog, Keyring};
pub use hub::{Collection, Event, EventKind, HistoryLimit, Object, Page, Range, Watch};
pub use log::{Arrival, Capacity, Log, LogError, MemoryLog, NewestQuestion, Record, Wake};
pub use seal::{SealError, Sealer};
pub use sqlite::SqliteLog;

use hub::Hub;
use writer::Writer;

/// A point in the store's history; `0` is before the first write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where an object is kept: a collection (one a resource) and a name within it, such as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The collection, such as `pods` or `deployments.apps`.
    pub collection: Arc<str>,
    /// The name in the collection; unique there and sorted by bytes.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its two parts.
    pub fn new(collection: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { collection: collection.into(), name: name.into() }
    }
}

/// How the owner of the store sees stored bytes: what is served, and what it selects by.
pub trait View: Send + Sync + 'static {
    /// What selectors read of an object without parsing it.
    type Attributes: Terms;

    /// The attributes of stored bytes.
    fn attributes(&self, key: &Key, stored: &[u8]) -> Self::Attributes;

    /// The bytes with the revision written into them; replaces the one they carry.
    fn stamp(&self, stored: &[u8], revision: Revision) -> Bytes;
}

/// What objects are found by besides their names.
pub trait Terms: Send + Sync + 'static {
    /// The terms of an object, in an order of their own; a collection finds the objects of a term without looking at others.
    fn terms(&self) -> impl Iterator<Item = &str>;

    /// Another state has taken the object's place, and only the history holds this one: time to drop what was derived from it.
    fn superseded(&self) {}
}

/// What a commit requires of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no object.
    Absent,
    /// The object was last written at this revision.
    At(Revision),
}

/// One write of a commit.
#[derive(Debug)]
pub struct Write<A> {
    /// What is written.
    pub key: Key,
    /// What must be there now.
    pub expect: Expect,
    /// What will be there: the bytes and their attributes; none deletes.
    pub value: Option<(Bytes, A)>,
}

/// Why a commit did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CommitError<A> {
    /// The key is not as expected; what is there now.
    #[error("the object has changed")]
    Conflict(Option<Arc<Object<A>>>),
    /// The log cannot take writes, or does not say whether it took this one.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
}

/// The history does not reach back that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is compacted; the oldest kept is {oldest}")]
pub struct Compacted {
    /// The revision asked for.
    pub asked: Revision,
    /// The oldest revision that can be asked for.
    pub oldest: Revision,
}

/// The store: current objects and recent history in memory over a log that survives.
pub struct Store<V: View> {
    hub: Arc<Hub<V>>,
    writer: Writer<V>,
}

impl<V: View> Store<V> {
    /// Opens the store on a log.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn open(log: Box<dyn Log>, view: V, limit: HistoryLimit) -> Result<Self, LogError> {
        let hub = Arc::new(Hub::new(view, limit));
        let writer = Writer::start(log, hub.clone())?;
        Ok(Self { hub, writer })
    }

    /// Opens the embedded store in a directory.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn open_embedded(dir: &Path, sealer: Option<Sealer>, view: V) -> Result<Self, LogError> {
        Self::open(
            Box::new(SqliteLog::open(&dir.join(backup::EMBEDDED), sealer)?),
            view,
            HistoryLimit::default(),
        )
    }

    /// Waits until reads see everything that any server was acknowledged before this was called. A store with a log of its own
    /// always does.
    ///
    /// # Errors
    /// The log does not answer.
    pub async fn sync(&self) -> Result<(), LogError> {
        self.writer.sync().await
    }

    /// Whether other servers write to the same log.
    pub fn is_shared(&self) -> bool {
        self.writer.is_shared()
    }

    /// The revision of the newest write that reads see.
    pub fn revision(&self) -> Revision {
        self.hub.revision()
    }

    /// Whether the newest write was refused by the log; the next may be taken again.
    pub fn is_refusing_writes(&self) -> bool {
        self.writer.is_refusing()
    }

    /// The collection of a name; it need not hold anything yet.
    pub fn collection(&self, name: &str) -> Arc<Collection<V::Attributes>> {
        self.hub.collection(name)
    }

    /// How many objects each collection holds, by name; empty ones are left out.
    pub fn sizes(&self) -> Vec<(String, usize)> {
        self.hub.sizes()
    }

    /// One object, as of now.
    pub fn get(&self, key: &Key) -> Option<Arc<Object<V::Attributes>>> {
        // What is applied and not published yet is for nobody: a list that is asked for next would not show it.
        let published = self.hub.revision();
        self.hub.collection(&key.collection).get_at(&key.name, published)
    }

    /// Writes several keys, all or none; each key may be written once. The objects come back in the order of the writes, as
    /// they are served; a deleted one in its last state, stamped with the revision of the deletion.
    ///
    /// # Errors
    /// The place of the write that was refused, and why; nothing was written.
    pub async fn commit(
        &self,
        writes: Vec<Write<V::Attributes>>,
    ) -> Result<Vec<Arc<Object<V::Attributes>>>, (usize, CommitError<V::Attributes>)> {
        self.writer.commit(writes).await
    }

    /// Writes an object and returns it as it is served.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was written.
    pub async fn put(
        &self,
        key: Key,
        expect: Expect,
        stored: Bytes,
        attributes: V::Attributes,
    ) -> Result<Arc<Object<V::Attributes>>, CommitError<V::Attributes>> {
        self.commit_one(Write { key, expect, value: Some((stored, attributes)) }).await
    }

    /// Deletes an object and returns its last state, stamped with the revision of the deletion.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was written.
    pub async fn delete(
        &self,
        key: Key,
        expect: Revision,
    ) -> Result<Arc<Object<V::Attributes>>, CommitError<V::Attributes>> {
        self.commit_one(Write { key, expect: Expect::At(expect), value: None }).await
    }

    /// One write by itself.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was written.
    pub async fn commit_one(
        &self,
        write: Write<V::Attributes>,
    ) -> Result<Arc<Object<V::Attributes>>, CommitError<V::Attributes>> {
        let mut objects = self.commit(vec![write]).await.map_err(|(_, error)| error)?;
        Ok(objects.remove(0))
    }
}

#[cfg(test)]
mod tests;
