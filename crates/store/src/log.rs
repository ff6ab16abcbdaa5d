//! What a log promises, and the log that promises least: memory.

use bytes::Bytes;

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
    #[error("embedded store: {0}")]
    Seal(#[from] crate::SealError),
    /// The file is not ours to read.
    #[error("embedded store: {0}")]
    Io(#[from] std::io::Error),
    /// The writer could not be started.
    #[error("the store's writer: {0}")]
    Writer(String),
}

/// An append-only log of writes that forgets what compaction names.
pub trait Log: Send {
    /// Reads every record in the order of revisions, and the revision below which history has been forgotten.
    ///
    /// # Errors
    /// The log cannot be read whole.
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<Revision, LogError>;

    /// Appends the records and forgets the revisions in `forget`, all or nothing; on return the records are durable.
    ///
    /// # Errors
    /// Nothing was appended.
    fn append(&mut self, records: &[Record], forget: &[Revision], horizon: Revision) -> Result<(), LogError>;
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
