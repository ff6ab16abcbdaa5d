//! The embedded log: one SQLite file in WAL mode, flushed at every group commit.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, params};

use crate::{Key, Log, LogError, Record, Revision, Sealer};

/// Free pages are looked for after so many appends.
const APPENDS_BETWEEN_SHRINKS: u32 = 64;
/// So many pages are given back at once at most: it takes the time of writing them.
const MOST_PAGES_GIVEN_BACK: u64 = 2048;
/// What a burst made of the write-ahead log is cut down to.
const LARGEST_WAL_BYTES: u32 = 16 << 20;
/// `PRAGMA auto_vacuum` of a file that can give pages back.
const INCREMENTAL: u8 = 2;

/// A log in one file; anybody with `sqlite3` can inspect it.
pub struct SqliteLog {
    connection: Connection,
    sealer: Option<Sealer>,
    appends: u32,
}

impl SqliteLog {
    /// Opens or creates the file, readable by its owner alone.
    ///
    /// # Errors
    /// The file cannot be opened or is no store.
    pub fn open(path: &Path, sealer: Option<Sealer>) -> Result<Self, LogError> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        let mut connection = Connection::open(path)?;
        make_shrinkable(&connection)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", LARGEST_WAL_BYTES)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS log (
                 revision INTEGER PRIMARY KEY, collection TEXT NOT NULL, name TEXT NOT NULL, value BLOB);
             CREATE TABLE IF NOT EXISTS horizon (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);
             INSERT OR IGNORE INTO horizon VALUES (1, 0);",
        )?;
        if let Some(sealer) = sealer.as_ref().filter(|sealer| sealer.has_older_keys()) {
            let count = renew(&mut connection, sealer)?;
            tracing::info!(count, "what older keys had sealed is sealed by the newest");
        }
        Ok(Self { connection, sealer, appends: 0 })
    }

    /// Opens a file that is there to read it, while another process may write to it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_read_only(path: &Path, sealer: Option<Sealer>) -> Result<Self, LogError> {
        Ok(Self {
            connection: Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            sealer,
            appends: 0,
        })
    }

    /// Takes all records of a state in, with no history before it, and leaves nothing beside the file.
    pub(crate) fn fill(mut self, records: &[Record], newest: Revision) -> Result<(), LogError> {
        self.append(records, &[], newest)?;
        self.connection.execute("UPDATE horizon SET revision = ?1", [newest.0])?;
        Ok(self.connection.close().map_err(|(_, error)| error)?)
    }

    /// Gives back pages where more than a quarter of the file is free.
    fn shrink(&self) -> Result<(), LogError> {
        let count = |pragma| self.connection.pragma_query_value(None, pragma, |row| row.get::<_, u64>(0));
        let (free, all) = (count("freelist_count")?, count("page_count")?);
        if free > all / 4 {
            let pages = (free - all / 8).min(MOST_PAGES_GIVEN_BACK);
            let mut giving = self.connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = giving.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(())
    }
}

/// Seals by the newest key what older ones have sealed, history too, at once or not at all: then the older ones open nothing.
fn renew(connection: &mut Connection, sealer: &Sealer) -> Result<usize, LogError> {
    let transaction = connection.transaction()?;
    let mut renewed = Vec::new();
    {
        let mut statement = transaction
            .prepare("SELECT revision, collection, name, value FROM log WHERE value IS NOT NULL")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let key = Key::new(row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            if sealer.covers(&key)
                && let Some(value) = sealer.renew(&key, row.get_ref(3)?.as_blob().unwrap_or_default())?
            {
                renewed.push((row.get::<_, u64>(0)?, value));
            }
        }
        let mut update = transaction.prepare("UPDATE log SET value = ?2 WHERE revision = ?1")?;
        for (revision, value) in &renewed {
            update.execute(params![revision, value])?;
        }
    }
    transaction.commit()?;
    Ok(renewed.len())
}

/// Lets a file give pages back; one of an older version is rewritten for it, once.
fn make_shrinkable(connection: &Connection) -> Result<(), LogError> {
    let mode: u8 = connection.pragma_query_value(None, "auto_vacuum", |row| row.get(0))?;
    if mode != INCREMENTAL {
        connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        let tables: u64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            connection.execute_batch("VACUUM")?;
        }
    }
    Ok(())
}

impl Log for SqliteLog {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
        let horizon = self.connection.query_row("SELECT revision FROM horizon", [], |row| row.get(0))?;
        let mut statement =
            self.connection.prepare("SELECT revision, collection, name, value FROM log ORDER BY revision")?;
        let mut rows = statement.query([])?;
        let mut collections: HashMap<String, Arc<str>> = HashMap::new();
        while let Some(row) = rows.next()? {
            let text = |at| row.get_ref(at)?.as_str().map_err(rusqlite::Error::from);
            let collection: &str = text(1)?;
            let shared = match collections.get(collection) {
                Some(shared) => shared.clone(),
                None => collections.entry(collection.to_owned()).or_insert(collection.into()).clone(),
            };
            let key = Key::new(shared, text(2)?);
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
        transaction.commit()?;
        self.appends += 1;
        if self.appends.is_multiple_of(APPENDS_BETWEEN_SHRINKS)
            && let Err(error) = self.shrink()
        {
            // The records are durable all the same.
            tracing::warn!(%error, "the file was not shrunk");
        }
        Ok(())
    }
}
