//! Containers' log files: rotation, the last words of a container, and where a container's log is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::kubelet::Kubelet;
use crate::model::{ContainerRecord, PodId};

const LOOK: Duration = Duration::from_secs(10);
const LARGEST: u64 = 10 << 20;
const FILES: usize = 5;
/// A termination message is at most this long.
const WORDS: u64 = 4096;
/// A log that stands in for it, this long and this many lines.
const LOG_WORDS: u64 = 2048;
const LOG_LINES: usize = 80;

/// Rotates logs that have grown too large, until the kubelet ends.
pub async fn rotate(kubelet: Arc<Kubelet>) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        for pod in kubelet.table.pods() {
            let id = PodId::of(&pod);
            for path in current_logs(&kubelet.dirs.logs(&id)).await {
                rotate_one(&kubelet, &id, &path).await;
            }
        }
    }
}

/// The log files that are too large, of a pod's directory.
async fn current_logs(pod_dir: &Path) -> Vec<PathBuf> {
    let dir = pod_dir.to_owned();
    let work = move || -> Vec<PathBuf> {
        let children = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let large = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == "log") && path.metadata().is_ok_and(|m| m.len() > LARGEST)
        };
        children(&dir).flat_map(|dir| children(&dir).filter(large).collect::<Vec<_>>()).collect()
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

async fn rotate_one(kubelet: &Kubelet, id: &PodId, path: &Path) {
    let Ok(containers) = kubelet.cri.containers(Some(&id.uid)).await else { return };
    for container in
        containers.iter().filter(|c| c.state() == coxswain_cri::v1::ContainerState::ContainerRunning)
    {
        let Ok(Some(status)) = kubelet.cri.container_status(&container.id).await else { continue };
        if Path::new(&status.log_path) != path {
            continue;
        }
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let aside = PathBuf::from(format!("{}.{stamp}", path.display()));
        if std::fs::rename(path, &aside).is_ok() && kubelet.cri.reopen_log(&container.id).await.is_err() {
            // Without a new file the container would write into the moved one for ever.
            let _ = std::fs::rename(&aside, path);
        }
        let mut old = rotated(path);
        while old.len() >= FILES {
            let _ = std::fs::remove_file(old.remove(0));
        }
    }
}

/// The moved-away files of a log, the oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// Removes a dead container's log with its rotated files.
pub async fn remove(log_path: &str) {
    if log_path.is_empty() {
        return;
    }
    let path = PathBuf::from(log_path);
    let files = rotated(&path);
    for file in files.into_iter().chain([path]) {
        let _ = tokio::fs::remove_file(file).await;
    }
}

/// Reads what an ended container left as its termination message into the record.
pub async fn last_words(record: &mut ContainerRecord) {
    let Some((path, or_log)) = record.last_words.clone() else { return };
    let said = tail(Path::new(&path), WORDS).await.unwrap_or_default();
    if !said.is_empty() {
        record.message = String::from_utf8_lossy(&said).into_owned();
    } else if or_log && record.exit_code != 0 {
        let log = tail(Path::new(&record.log_path), LOG_WORDS * 4).await.unwrap_or_default();
        record.message = log_words(&String::from_utf8_lossy(&log));
    }
}

/// The last lines of a CRI log without their heads.
fn log_words(log: &str) -> String {
    // Only what is tagged as full ends its line.
    let words = |line: &str| {
        let mut parts = line.splitn(4, ' ').skip(2);
        let end = if parts.next()? == "P" { "" } else { "\n" };
        Some(format!("{}{end}", parts.next()?))
    };
    let lines: Vec<String> = log.lines().filter_map(words).collect();
    let mut text = lines[lines.len().saturating_sub(LOG_LINES)..].concat();
    let most = usize::try_from(LOG_WORDS).unwrap_or(usize::MAX);
    if text.len() > most {
        let mut from = text.len() - most;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text.drain(..from);
    }
    text
}

async fn tail(path: &Path, bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(std::io::SeekFrom::Start(length.saturating_sub(bytes))).await?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content).await?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stands_in_for_last_words_without_its_heads() {
        let log = "2026-01-01T00:00:00Z stdout F one two\n2026-01-01T00:00:01Z stderr F three\n";
        assert_eq!(log_words(log), "one two\nthree\n");
        assert_eq!(log_words("t stdout F one\nt stdout P DO\nt stdout P NE\n"), "one\nDONE");
        assert_eq!(log_words(""), "");
    }
}
