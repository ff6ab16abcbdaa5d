//! The audit log: one JSON document a line, written by a thread of its own, with files that are turned over.
//!
//! A request waits until its events are written, or nothing waits for them: then those that come faster than the disk takes
//! them are dropped, and counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::tz::TimeZone;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::delivery::{AuditDelivery, AuditMode, Pace};

/// Events that are written by one call, where there are as many.
const MOST_TOGETHER: usize = 1000;

/// Where the log is and when its files are turned over.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Older files go after so many days; 0 keeps them.
    pub max_age_days: u64,
    /// So many older files stay; 0 keeps all.
    pub max_backups: usize,
    /// A file is turned over at this size; 0 for never.
    pub max_size_bytes: u64,
    /// Who waits for events, and how many are written at once.
    pub delivery: AuditDelivery,
}

/// An event, and who waits until it is written.
type Entry = (Bytes, Option<oneshot::Sender<bool>>);

/// The way into the log.
pub struct Log {
    mode: AuditMode,
    sender: SyncSender<Entry>,
}

impl Log {
    /// Opens the file and starts the thread that writes it, which ends with the log.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(config: LogConfig) -> io::Result<Self> {
        let (sender, events) = sync_channel(config.delivery.buffer_size.max(1));
        let mode = config.delivery.mode;
        let mut output = Output::open(config)?;
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || output.run(&events))?;
        Ok(Self { mode, sender })
    }

    /// Who waits for events.
    pub fn mode(&self) -> AuditMode {
        self.mode
    }

    /// Hands an event over; false where it had to be dropped.
    pub fn write(&self, event: Bytes) -> bool {
        self.sender.try_send((event, None)).is_ok()
    }

    /// Writes an event; false where that failed.
    pub async fn written(&self, event: Bytes) -> bool {
        let (done, written) = oneshot::channel();
        self.sender.try_send((event, Some(done))).is_ok() && written.await.unwrap_or(false)
    }
}

struct Output {
    config: LogConfig,
    file: BufWriter<Box<dyn Write + Send>>,
    size_bytes: u64,
}

impl Output {
    fn open(config: LogConfig) -> io::Result<Self> {
        if config.path == Path::new("-") {
            return Ok(Self { config, file: BufWriter::new(Box::new(io::stdout())), size_bytes: 0 });
        }
        let (file, size_bytes) = open(&config.path)?;
        Ok(Self { config, file: BufWriter::new(Box::new(file)), size_bytes })
    }

    fn run(&mut self, events: &Receiver<Entry>) {
        let delivery = self.config.delivery;
        let batches = delivery.mode == AuditMode::Batch;
        let mut pace = delivery.throttle.filter(|_| batches).map(|pace| Pace::new(pace, Instant::now()));
        while let Ok(first) = events.recv() {
            let mut batch = vec![first];
            if batches {
                let end = Instant::now() + delivery.max_wait;
                while batch.len() < delivery.batch_size {
                    let left = end.saturating_duration_since(Instant::now());
                    let Ok(entry) = events.recv_timeout(left) else { break };
                    batch.push(entry);
                }
            }
            if let Some(pace) = &mut pace {
                let now = Instant::now();
                // The pace is a matter of time, and this thread has nothing else to do.
                std::thread::sleep(pace.next(now).saturating_duration_since(now));
            } else {
                // What came meanwhile goes with it: one call to the kernel for many events.
                batch.extend(events.try_iter().take(MOST_TOGETHER));
            }
            let written =
                batch.iter().try_for_each(|(event, _)| self.write(event)).and_then(|()| self.file.flush());
            if let Err(error) = &written {
                tracing::error!(%error, path = %self.config.path.display(), "the audit log cannot be written");
            }
            for done in batch.into_iter().filter_map(|(_, done)| done) {
                // Who does not wait any more need not know.
                let _ = done.send(written.is_ok());
            }
        }
    }

    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        let length = u64::try_from(event.len()).unwrap_or(u64::MAX).saturating_add(1);
        let limit = self.config.max_size_bytes;
        if limit > 0 && self.size_bytes > 0 && self.size_bytes.saturating_add(length) > limit {
            self.turn_over()?;
        }
        self.size_bytes += length;
        self.file.write_all(event)?;
        self.file.write_all(b"\n")
    }

    fn turn_over(&mut self) -> io::Result<()> {
        let path = &self.config.path;
        if path == Path::new("-") {
            return Ok(());
        }
        self.file.flush()?;
        let now = SystemTime::now();
        fs::rename(path, backup_name(path, now))?;
        let (file, size_bytes) = open(path)?;
        self.file = BufWriter::new(Box::new(file));
        self.size_bytes = size_bytes;
        let age = Duration::from_secs(self.config.max_age_days.saturating_mul(24 * 3600));
        for old in expired(backups(path)?, self.config.max_backups, age, now) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// `audit-2006-01-02T15-04-05.000.log` of `audit.log`.
fn backup_name(path: &Path, at: SystemTime) -> PathBuf {
    let part =
        |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let at = jiff::Timestamp::try_from(at).unwrap_or_default().to_zoned(TimeZone::UTC);
    let stamp = at.strftime("%Y-%m-%dT%H-%M-%S%.3f");
    let extension = path.extension().map(|_| format!(".{}", part(path.extension()))).unwrap_or_default();
    path.with_file_name(format!("{}-{stamp}{extension}", part(path.file_stem())))
}

/// The older files, the newest first, with the times they were last written.
fn backups(path: &Path) -> io::Result<Vec<(PathBuf, SystemTime)>> {
    let stem = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stamp =
            name.strip_prefix(&stem).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if stamp && file.extension() == path.extension() {
            let written = fs::metadata(&file)?.modified()?;
            found.push((file, written));
        }
    }
    // Their names are their times.
    found.sort_by(|a, b| b.0.cmp(&a.0));
    Ok(found)
}

/// The files that go.
fn expired(backups: Vec<(PathBuf, SystemTime)>, most: usize, age: Duration, now: SystemTime) -> Vec<PathBuf> {
    let old =
        |written: SystemTime| !age.is_zero() && now.duration_since(written).is_ok_and(|since| since > age);
    let backups = backups.into_iter().enumerate();
    let gone = backups.filter(|(at, (_, written))| (most > 0 && *at >= most) || old(*written));
    gone.map(|(_, (file, _))| file).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(path: &Path, mode: AuditMode) -> LogConfig {
        let max_wait = Duration::from_secs(3600);
        let delivery = AuditDelivery { mode, buffer_size: 10, batch_size: 3, max_wait, throttle: None };
        LogConfig { path: path.to_owned(), max_age_days: 0, max_backups: 0, max_size_bytes: 0, delivery }
    }

    #[tokio::test]
    async fn who_waits_knows_whether_it_is_written() {
        let path = std::env::temp_dir().join(format!("cox-audit-blocking-{}.log", std::process::id()));
        let log = Log::open(config(&path, AuditMode::Blocking)).unwrap();
        assert!(log.written(Bytes::from("event")).await);
        assert_eq!(fs::read_to_string(&path).unwrap(), "event\n");
        fs::remove_file(&path).unwrap();
        let full = Log::open(config(Path::new("/dev/full"), AuditMode::BlockingStrict)).unwrap();
        assert!(!full.written(Bytes::from("event")).await);
    }

    #[test]
    fn a_batch_waits_until_it_is_full() {
        let path = std::env::temp_dir().join(format!("cox-audit-batch-{}.log", std::process::id()));
        let mut output = Output::open(config(&path, AuditMode::Batch)).unwrap();
        let (sender, events) = sync_channel(10);
        let writer = std::thread::spawn(move || output.run(&events));
        for event in ["1", "2", "3"] {
            sender.send((Bytes::from(event), None)).unwrap();
        }
        let end = Instant::now() + Duration::from_secs(20);
        while fs::read_to_string(&path).unwrap() != "1\n2\n3\n" {
            assert!(Instant::now() < end, "a full batch is written at once");
            std::thread::yield_now();
        }
        sender.send((Bytes::from("4"), None)).unwrap();
        // Nothing else comes: what is there is written.
        drop(sender);
        writer.join().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n4\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn files_are_turned_over_and_only_some_stay() {
        let dir = std::env::temp_dir().join(format!("cox-audit-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("audit.log");
        let config = LogConfig { max_backups: 1, max_size_bytes: 25, ..config(&path, AuditMode::Blocking) };
        let mut output = Output::open(config).unwrap();
        for _ in 0..6 {
            output.write(b"0123456789").unwrap();
            // Files are told apart by the millisecond.
            while backup_name(&path, SystemTime::now()).exists() {}
        }
        output.file.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0123456789\n0123456789\n");
        assert_eq!(backups(&path).unwrap().len(), 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn old_files_go_by_number_and_age() {
        let now = SystemTime::now();
        let at = |name: &str, days: u64| (PathBuf::from(name), now - Duration::from_secs(days * 24 * 3600));
        let files = || vec![at("c", 1), at("b", 2), at("a", 9)];
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(expired(files(), 0, 5 * day, now), [PathBuf::from("a")]);
        assert_eq!(expired(files(), 1, Duration::ZERO, now), [PathBuf::from("b"), PathBuf::from("a")]);
        assert!(expired(files(), 0, Duration::ZERO, now).is_empty());
    }
}
