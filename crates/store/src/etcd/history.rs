//! What a server reads when it starts, and how much of the past etcd keeps for that.
//!
//! Every few minutes one of the servers (whoever's comparison succeeds) notes our revision and etcd's together, and has etcd
//! forget what is older than the note before the last. A server that starts reads the objects as they were at a note and
//! follows from there, so that watches resume over a restart.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval_at};

use super::Position;
use super::keys::Keys;
use super::layout::{Head, Layout, Mark, decode_marks, encode_marks, put, written_at};
use super::members::{Members, ScanError, described, is_compacted};
use super::proto::TxnRequest;
use crate::{LogError, Record, Revision};

/// Upstream's compaction interval.
const PERIOD: Duration = Duration::from_secs(300);
/// A start does not read more of the past than this.
const MOST_REPLAYED: u64 = 20_000;

/// So often is the present read anew because it has become past, and was compacted.
const COMPACTIONS: u32 = 5;

/// The objects at one moment.
pub struct Snapshot {
    pub records: Vec<Record>,
    pub at: Position,
    /// The revision of etcd at which this was read.
    pub etcd: i64,
}

/// Writes the first head, unless there is one.
pub async fn make_head(members: &Members, layout: &Layout) -> Result<(), LogError> {
    let first = Head { revision: Revision(0), writer: 0, append: 0 };
    let request = TxnRequest {
        compare: vec![written_at(layout.head(), 0)],
        success: vec![put(layout.head(), first.encode())],
    };
    members.idempotent_txn(request).await.map(drop)
}

/// The newest revision that any server was acknowledged, and etcd's revision of it.
pub async fn newest(members: &Members, layout: &Layout) -> Result<Position, LogError> {
    let (head, _) = members.get(layout.head(), 0).await.map_err(|status| described(&status))?;
    position(head).ok_or_else(no_head)
}

fn position(head: Option<super::proto::KeyValue>) -> Option<Position> {
    let head = head?;
    Some(Position { revision: Head::decode(&head.value)?.revision, head: head.mod_revision })
}

fn no_head() -> LogError {
    LogError::Etcd("what it holds is not a cluster of ours".to_owned())
}

/// The objects at the oldest note that is not too far back, or as they are now.
pub async fn oldest_snapshot(members: &Members, layout: &Layout, keys: &Keys) -> Result<Snapshot, LogError> {
    let (noted, _) = members.get(layout.history(), 0).await.map_err(|status| described(&status))?;
    let now = newest(members, layout).await?;
    let marks = noted.map(|kv| decode_marks(&kv.value)).unwrap_or_default();
    let near = |mark: &Mark| now.revision.0.saturating_sub(mark.revision.0) <= MOST_REPLAYED;
    for mark in marks.into_iter().filter(near) {
        match snapshot(members, layout, mark.etcd).await {
            Ok(snapshot) => return Ok(snapshot),
            // Somebody else compacts this etcd, too.
            Err(ScanError::Etcd(status)) if is_compacted(&status) => {}
            // It was sealed with a key that is gone.
            Err(ScanError::Value(LogError::Seal(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    current_snapshot(members, layout, keys).await
}

/// The objects as they are now.
pub async fn current_snapshot(members: &Members, layout: &Layout, keys: &Keys) -> Result<Snapshot, LogError> {
    for _ in 0..COMPACTIONS {
        let (_, etcd) = members.get(layout.head(), 0).await.map_err(|status| described(&status))?;
        // Not older than what they are to open.
        keys.reread(members, layout).await?;
        match snapshot(members, layout, etcd).await {
            Err(ScanError::Etcd(status)) if is_compacted(&status) => {}
            read => return Ok(read?),
        }
    }
    Err(LogError::Etcd("it is compacted while it is read".to_owned()))
}

async fn snapshot(members: &Members, layout: &Layout, etcd: i64) -> Result<Snapshot, ScanError> {
    let (head, _) = members.get(layout.head(), etcd).await.map_err(ScanError::Etcd)?;
    let at = position(head).ok_or_else(|| ScanError::Value(no_head()))?;
    let mut records = Vec::new();
    let take = |kv: super::proto::KeyValue| {
        if let Some(key) = layout.key(&kv.key) {
            records.push(layout.record(key, &kv.value)?);
        }
        Ok(())
    };
    members.scan(layout.objects(), etcd, take).await?;
    Ok(Snapshot { records, at, etcd })
}

/// Takes notes and lets etcd forget, for as long as the log is open; `noted` is the revision of etcd that wrote the newest note.
pub async fn keep(members: Arc<Members>, layout: Arc<Layout>, noted: i64) {
    let mut period = interval_at(Instant::now() + PERIOD, PERIOD);
    // Who wrote the note that this process saw last: where it is another one a period later, another server keeps the history.
    let mut seen = noted;
    loop {
        period.tick().await;
        match note(&members, &layout, Some(seen)).await {
            Ok(now) => seen = now,
            Err(error) => tracing::warn!(%error, "the history in etcd was not shortened"),
        }
    }
}

/// Takes a note where nobody has since `seen`; gives the revision of etcd that wrote the newest one.
pub async fn note(members: &Members, layout: &Layout, seen: Option<i64>) -> Result<i64, LogError> {
    let (noted, _) = members.get(layout.history(), 0).await.map_err(|status| described(&status))?;
    let written = noted.as_ref().map_or(0, |kv| kv.mod_revision);
    if written != 0 && seen != Some(written) {
        return Ok(written);
    }
    let (head, etcd) = members.get(layout.head(), 0).await.map_err(|status| described(&status))?;
    let at = position(head).ok_or_else(no_head)?;
    let before = noted.map(|kv| decode_marks(&kv.value)).unwrap_or_default();
    let marks: Vec<Mark> =
        before.last().copied().into_iter().chain([Mark { revision: at.revision, etcd }]).collect();
    let request = TxnRequest {
        compare: vec![written_at(layout.history(), written)],
        success: vec![put(layout.history(), encode_marks(&marks))],
    };
    let answer = members.idempotent_txn(request).await?;
    if answer.succeeded && marks.len() > 1 {
        match members.compact(marks[0].etcd).await {
            Err(status) if !is_compacted(&status) => return Err(described(&status)),
            _ => {}
        }
    }
    let (noted, _) = members.get(layout.history(), 0).await.map_err(|status| described(&status))?;
    Ok(noted.map_or(0, |kv| kv.mod_revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::etcd::{connect, open, start};
    use crate::{EventKind, Expect, HistoryLimit, Key};

    #[tokio::test]
    async fn history_is_kept_for_two_notes_and_who_needs_more_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let Some(servers) = start(dir.path(), 1) else { return };
        let etcd = connect(&servers);
        let (members, layout) = (etcd.members.clone(), Arc::new(Layout::new(&etcd.prefix, None)));
        make_head(&members, &layout).await.unwrap();
        let first = newest(&members, &layout).await.unwrap();
        let mut seen = note(&members, &layout, None).await.unwrap();
        assert_eq!(note(&members, &layout, None).await.unwrap(), seen, "somebody has taken the note");
        let store = open(&servers, HistoryLimit::default()).await;
        let mut marks = Vec::new();
        for name in ["a", "b", "c"] {
            let key = Key::new("things", name);
            store.put(key, Expect::Absent, "1".into(), 0).await.unwrap();
            seen = note(&members, &layout, Some(seen)).await.unwrap();
            let (noted, _) = members.get(layout.history(), 0).await.unwrap();
            marks = decode_marks(&noted.unwrap().value);
        }
        assert_eq!(marks.iter().map(|mark| mark.revision.0).collect::<Vec<_>>(), [2, 3]);
        let old = members.get(layout.head(), first.head).await.unwrap_err();
        assert!(is_compacted(&old), "{old}");
        let there = oldest_snapshot(&members, &layout, &Keys::default()).await.unwrap();
        assert_eq!((there.at.revision, there.records.len()), (Revision(2), 2));

        let arrivals = Arc::new(crate::etcd::follow::Arrivals::new(1, first));
        let keys = Keys::default();
        let follower = crate::etcd::Follower { members, layout, arrivals: arrivals.clone(), keys };
        let following = tokio::spawn(follower.run(first.head));
        arrivals.reached(Revision(3)).await;
        let (arrived, at) = arrivals.take(first);
        assert!(
            matches!(&arrived[..], [crate::Arrival::Replaced(records, Revision(3))] if records.len() == 3)
        );
        assert_eq!(at.revision, Revision(3));
        following.abort();

        let again = open(&servers, HistoryLimit::default()).await;
        let events = again.collection("things").watch("", Revision(2)).unwrap().next().await.unwrap();
        assert_eq!((events.len(), events[0].kind), (1, EventKind::Put));
        assert!(again.collection("things").watch("", Revision(1)).is_err());
    }
}
