//! A backup: the current objects of a store in one file, in the clear, with what its owner adds.
//!
//! The revision that a backup knows is not the newest that clients have seen: writes came after it. So what is restored goes on
//! at a revision far behind it, with no history before: clients that resume a watch are told to list anew.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use crate::{Etcd, Key, Log, LogError, Record, Revision, Sealer, SqliteLog};

/// More writes than happen between a backup and its restoration; `etcdutl snapshot restore` is told the same.
const BUMP: u64 = 1_000_000_000;
/// The file of the embedded store in its directory.
pub(crate) const EMBEDDED: &str = "state.db";

/// What a store holds at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Backup {
    /// Every object.
    pub records: Vec<Record>,
    /// The revision of the newest write.
    pub newest: Revision,
    /// What the store's owner keeps with it.
    pub attachment: Vec<u8>,
}

impl Backup {
    /// Reads the embedded store in a directory, which may be in use.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_embedded(dir: &Path, sealer: Option<Sealer>, attachment: Vec<u8>) -> Result<Self, LogError> {
        let mut log = SqliteLog::open_read_only(&dir.join(EMBEDDED), sealer)?;
        let mut current = std::collections::BTreeMap::new();
        let mut newest = Revision(0);
        let horizon = log.load(&mut |record| {
            newest = newest.max(record.revision);
            match record.value {
                Some(_) => current.insert(record.key.clone(), record),
                None => current.remove(&record.key),
            };
        })?;
        Ok(Self { records: current.into_values().collect(), newest: newest.max(horizon), attachment })
    }

    /// Reads the store in etcd.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn of_etcd(etcd: &Etcd, sealer: Option<Sealer>, attachment: Vec<u8>) -> Result<Self, LogError> {
        let (records, newest) = etcd.read(sealer).await?;
        Ok(Self { records, newest, attachment })
    }

    /// Writes the file, readable by its owner alone; it is whole or not there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LogError> {
        let part = path.with_extension("part");
        let _ = fs::remove_file(&part);
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part)?;
        let mut connection = Connection::open(&part)?;
        connection.pragma_update(None, "journal_mode", "OFF")?;
        let transaction = connection.transaction()?;
        transaction.execute_batch(
            "CREATE TABLE objects (
                 collection TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, value BLOB NOT NULL);
             CREATE TABLE backup (newest INTEGER NOT NULL, attachment BLOB NOT NULL);",
        )?;
        {
            let mut insert = transaction.prepare("INSERT INTO objects VALUES (?1, ?2, ?3, ?4)")?;
            for Record { revision, key, value } in &self.records {
                insert.execute(params![&*key.collection, &*key.name, revision.0, value.as_deref()])?;
            }
        }
        transaction.execute("INSERT INTO backup VALUES (?1, ?2)", params![self.newest.0, self.attachment])?;
        transaction.commit()?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(fs::rename(&part, path)?)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is not a backup.
    pub fn read(path: &Path) -> Result<Self, LogError> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let (newest, attachment) =
            connection.query_row("SELECT newest, attachment FROM backup", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let mut objects =
            connection.prepare("SELECT collection, name, revision, value FROM objects ORDER BY revision")?;
        let record = |row: &rusqlite::Row<'_>| {
            let key = Key::new(row.get::<_, String>(0)?, row.get::<_, String>(1)?);
            let value: Vec<u8> = row.get(3)?;
            Ok(Record { revision: Revision(row.get(2)?), key, value: Some(value.into()) })
        };
        let records = objects.query_map([], record)?.collect::<Result<_, _>>()?;
        Ok(Self { records, newest: Revision(newest), attachment })
    }

    /// The revision that a restored store begins with.
    fn begin(&self) -> Revision {
        Revision(self.newest.0 + BUMP)
    }

    /// Makes an embedded store of it, in a directory that has none.
    ///
    /// # Errors
    /// There is one, or it cannot be written.
    pub fn restore_embedded(&self, dir: &Path, sealer: Option<Sealer>) -> Result<(), LogError> {
        let path = dir.join(EMBEDDED);
        if path.exists() {
            return Err(LogError::Io(std::io::Error::other(format!("{} exists already", path.display()))));
        }
        let part = dir.join("restoring.db");
        let _ = fs::remove_file(&part);
        SqliteLog::open(&part, sealer)?.fill(&self.records, self.begin())?;
        Ok(fs::rename(&part, path)?)
    }

    /// Fills an etcd that has no objects with it.
    ///
    /// # Errors
    /// There are objects, or it cannot be written.
    pub async fn restore_etcd(&self, etcd: &Etcd, sealer: Option<Sealer>) -> Result<(), LogError> {
        etcd.fill(sealer, &self.records, self.begin()).await
    }
}
