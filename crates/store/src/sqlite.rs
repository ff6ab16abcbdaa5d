//! The embedded log: one SQLite file in WAL mode, flushed at every group commit.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, params};

use crate::{Key, Log, LogError, Record, Revision, Sealer};

/// A log in one file; anybody with `sqlite3` can inspect it.
pub struct SqliteLog {
    connection: Connection,
    sealer: Option<Sealer>,
}

impl SqliteLog {
    /// Opens or creates the file, readable by its owner alone.
    ///
    /// # Errors
    /// The file cannot be opened or is no store.
    pub fn open(path: &Path, sealer: Option<Sealer>) -> Result<Self, LogError> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS log (
                 revision INTEGER PRIMARY KEY, collection TEXT NOT NULL, name TEXT NOT NULL, value BLOB);
             CREATE TABLE IF NOT EXISTS horizon (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);
             INSERT OR IGNORE INTO horizon VALUES (1, 0);",
        )?;
        Ok(Self { connection, sealer })
    }
}

impl Log for SqliteLog {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
        let horizon = self.connection.query_row("SELECT revision FROM horizon", [], |row| row.get(0))?;
        let mut statement =
            self.connection.prepare("SELECT revision, collection, name, value FROM log ORDER BY revision")?;
        let mut rows = statement.query([])?;
        let mut collections: HashMap<String, Arc<str>> = HashMap::new();
        while let Some(row) = rows.next()? {
            let collection: String = row.get(1)?;
            let shared = collections.entry(collection.clone()).or_insert_with(|| collection.into()).clone();
            let key = Key::new(shared, row.get::<_, String>(2)?);
            let value = match (row.get::<_, Option<Vec<u8>>>(3)?, &self.sealer) {
                (Some(value), Some(sealer)) if sealer.covers(&key) => Some(sealer.open(&key, &value)?.into()),
                (value, _) => value.map(Bytes::from),
            };
            each(Record { revision: Revision(row.get(0)?), key, value });
        }
        Ok(Revision(horizon))
    }

    fn append(&mut self, records: &[Record], forget: &[Revision], horizon: Revision) -> Result<(), LogError> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4)")?;
            for Record { revision, key, value } in records {
                let sealed = match (value, &self.sealer) {
                    (Some(value), Some(sealer)) if sealer.covers(key) => Some(sealer.seal(key, value)?),
                    _ => None,
                };
                let value = sealed.as_deref().or(value.as_deref());
                insert.execute(params![revision.0, &*key.collection, &*key.name, value])?;
            }
            let mut delete = transaction.prepare_cached("DELETE FROM log WHERE revision = ?1")?;
            for revision in forget {
                delete.execute([revision.0])?;
            }
            if !forget.is_empty() {
                transaction.prepare_cached("UPDATE horizon SET revision = ?1")?.execute([horizon.0])?;
            }
        }
        Ok(transaction.commit()?)
    }
}
