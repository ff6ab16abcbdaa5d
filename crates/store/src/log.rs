//! What a log promises, and the log that promises least: memory.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::{Key, Revision};

/// One write, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The write's own revision.
    pub revision: Revision,
    /// What was written.
    pub key: Key,
    /// The bytes, or none where the key was deleted.
    pub value: Option<Bytes>,
}

/// Why a log failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database refused.
    #[error("embedded store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A value was changed, or sealed with another key.
    #[error("the store: {0}")]
    Seal(#[from] crate::SealError),
    /// The file is not ours to read.
    #[error("embedded store: {0}")]
    Io(#[from] std::io::Error),
    /// etcd refused, or did not answer.
    #[error("etcd: {0}")]
    Etcd(String),
    /// Another writer of the log was first; what it appended arrives.
    #[error("another server has written meanwhile")]
    Behind,
    /// The writer could not be started.
    #[error("the store's writer: {0}")]
    Writer(String),
}

/// How much one append holds.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Records.
    pub records: usize,
    /// Bytes of values; one commit may have more by itself.
    pub bytes: usize,
    /// Whether a key may be written more than once.
    pub repeats: bool,
}

/// What other writers of a log did.
#[derive(Debug)]
pub enum Arrival {
    /// One append, in order.
    Appended(Vec<Record>),
    /// Nobody knows what was appended, but this is the state that it led to.
    Replaced(Vec<Record>, Revision),
}

/// Called when something has arrived.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// Asks for the newest revision that any writer of a log has been acknowledged.
pub type NewestQuestion = mpsc::UnboundedSender<oneshot::Sender<Result<Revision, LogError>>>;

/// An append-only log of writes that forgets what is not needed.
///
/// A log may have one writer, or several on different machines. Appends of all writers stand in one order, and one that does
/// not follow on all before it fails as [`LogError::Behind`]: so whoever succeeds has seen everything, and comparing with what
/// one has seen is comparing with what is there.
pub trait Log: Send {
    /// Reads the current objects and the history behind the horizon, which is in the order of revisions; gives the horizon, the
    /// revision up to which history has been forgotten.
    ///
    /// # Errors
    /// The log cannot be read whole.
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<Revision, LogError>;

    /// Appends the records, all or nothing, and may forget the revisions in `forget`; on return the records are durable.
    ///
    /// # Errors
    /// Nothing was appended; or, where there are several writers, the log does not say what was: then it arrives.
    fn append(&mut self, records: &[Record], forget: &[Revision], horizon: Revision) -> Result<(), LogError>;

    /// How much one append holds.
    fn capacity(&self) -> Capacity {
        Capacity { records: usize::MAX, bytes: usize::MAX, repeats: true }
    }

    /// Calls `wake` from now on when others have appended.
    fn follow(&mut self, _wake: Wake) {}

    /// What others have appended since this was last called, once and in order.
    fn arrived(&mut self) -> Vec<Arrival> {
        Vec::new()
    }

    /// How to ask for the newest revision; none for a log of one writer, which knows.
    fn questions(&self) -> Option<NewestQuestion> {
        None
    }
}

/// A log that keeps nothing: the store then lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryLog;

impl Log for MemoryLog {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
        Ok(Revision(0))
    }

    fn append(&mut self, _: &[Record], _: &[Revision], _: Revision) -> Result<(), LogError> {
        Ok(())
    }
}
