//! One suite for every log, and what only the durable one promises.

pub mod etcd;
mod history;
mod linearizability;
mod partition;
mod rotation;

use std::sync::Arc;

use bytes::Bytes;

use super::*;

pub struct Plain;

impl Terms for usize {
    fn terms(&self) -> impl Iterator<Item = &str> {
        std::iter::once(if self.is_multiple_of(2) { "even" } else { "odd" })
    }
}

impl View for Plain {
    type Attributes = usize;

    fn attributes(&self, _: &Key, stored: &[u8]) -> usize {
        stored.len()
    }

    fn stamp(&self, stored: &[u8], _: Revision) -> Bytes {
        Bytes::copy_from_slice(stored)
    }
}

const LIMIT: HistoryLimit = HistoryLimit { events: 8, superseded_bytes: 1 << 20 };

fn on_disk(dir: &Path) -> Store<Plain> {
    let sealer = Sealer::new(&[7; 32], &["secret"]).unwrap();
    Store::open(Box::new(SqliteLog::open(&dir.join("db"), Some(sealer)).unwrap()), Plain, LIMIT).unwrap()
}

async fn put(store: &Store<Plain>, name: &str, expect: Expect, value: &'static str) -> Revision {
    let object =
        store.put(Key::new("things", name), expect, Bytes::from_static(value.as_bytes()), value.len()).await;
    object.unwrap().revision
}

fn each(check: impl AsyncFn(Store<Plain>)) {
    let dir = tempfile::tempdir().unwrap();
    let memory = Store::open(Box::new(MemoryLog), Plain, LIMIT).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for store in [memory, on_disk(dir.path())] {
        runtime.block_on(check(store));
    }
    if let Some(servers) = etcd::start(&dir.path().join("etcd"), 1) {
        runtime.block_on(async { check(etcd::open(&servers, LIMIT).await).await });
    }
}

#[test]
fn writes_of_one_commit_happen_together_or_not_at_all() {
    each(async |store| {
        let first = put(&store, "a", Expect::Absent, "1").await;
        let write = |name: &str, expect| Write {
            key: Key::new("things", name),
            expect,
            value: Some((Bytes::from_static(b"22"), 2)),
        };
        let refused = store.commit(vec![write("b", Expect::Absent), write("a", Expect::Absent)]).await;
        assert!(
            matches!(refused, Err((1, CommitError::Conflict(Some(current)))) if current.revision == first)
        );
        assert!(store.get(&Key::new("things", "b")).is_none() && store.revision() == first);
        let written = store.commit(vec![write("b", Expect::Absent), write("a", Expect::At(first))]).await;
        let revisions: Vec<u64> = written.unwrap().iter().map(|object| object.revision.0).collect();
        assert_eq!(revisions, [2, 3]);
    });
}

#[test]
fn a_commit_compares_and_revisions_are_dense() {
    each(async |store| {
        let first = put(&store, "a", Expect::Absent, "1").await;
        let second = put(&store, "a", Expect::At(first), "22").await;
        assert_eq!((first, second), (Revision(1), Revision(2)));
        let stale = store.put(Key::new("things", "a"), Expect::At(first), Bytes::new(), 0).await;
        assert!(matches!(stale, Err(CommitError::Conflict(Some(current))) if current.revision == second));
        let exists = store.put(Key::new("things", "a"), Expect::Absent, Bytes::new(), 0).await;
        assert!(matches!(exists, Err(CommitError::Conflict(Some(_)))));
        assert_eq!(store.revision(), second, "a refused commit takes no revision");
        assert_eq!(*store.get(&Key::new("things", "a")).unwrap().attributes, 2);
    });
}

#[test]
fn of_concurrent_commits_on_one_revision_one_wins() {
    each(async |store| {
        let first = put(&store, "a", Expect::Absent, "1").await;
        let store = &store;
        let attempts =
            (0..16).map(|_| store.put(Key::new("things", "a"), Expect::At(first), Bytes::new(), 0));
        let won = join_all(attempts).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(won, 1);
    });
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|f| (Some(Box::pin(f)), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in &mut futures {
            if let Some(running) = future
                && let std::task::Poll::Ready(done) = running.as_mut().poll(cx)
            {
                (*future, *output) = (None, Some(done));
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

#[test]
fn a_watch_sees_every_later_event_once_and_in_order() {
    each(async |store| {
        let first = put(&store, "a", Expect::Absent, "1").await;
        let mut watch = store.collection("things").watch("", first).unwrap();
        let second = put(&store, "b", Expect::Absent, "2").await;
        store.delete(Key::new("things", "a"), first).await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(
                watch
                    .next()
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|e| (e.kind, e.object.name.to_string(), e.object.revision)),
            );
        }
        assert_eq!(
            seen,
            [(EventKind::Put, "b".to_owned(), second), (EventKind::Delete, "a".to_owned(), Revision(3))]
        );
        assert!(watch.ready().unwrap().is_empty());
    });
}

#[test]
fn a_part_ends_with_its_prefix_and_nothing_lies_behind_it() {
    each(async |store| {
        for name in ["a", "n", "n/", "n/a", "n/\u{10ffff}", "n0", "o/a"] {
            put(&store, name, Expect::Absent, "1").await;
        }
        let things = store.collection("things");
        let list = |prefix: &str| things.list(prefix).iter().map(|o| o.name.to_string()).collect::<Vec<_>>();
        assert_eq!(list("n/"), ["n/", "n/a", "n/\u{10ffff}"]);
        assert_eq!(list("n/\u{10ffff}"), ["n/\u{10ffff}"]);
        assert_eq!(list("\u{10ffff}"), [""; 0]);
        assert_eq!(list("").len(), 7);
        // Tokens come from clients: a name that they continue behind may be any.
        for (after, behind) in [("a", 0), ("n/", 2), ("n/a", 1), ("n0", 0), ("z", 0)] {
            let range = Range { prefix: "n/", terms: &[] };
            let page = things.page(range, store.revision(), Some(after), 9, |_| true).unwrap();
            assert_eq!(page.objects.len(), behind, "behind {after}");
        }
    });
}

#[test]
fn a_page_shows_the_past_and_a_forgotten_past_is_refused() {
    each(async |store| {
        for name in ["a", "b", "c", "d"] {
            put(&store, name, Expect::Absent, "1").await;
        }
        let at = store.revision();
        let things = store.collection("things");
        let names = |page: Page<usize>| page.objects.iter().map(|o| o.name.to_string()).collect::<Vec<_>>();
        let first = things.page(Range::default(), at, None, 2, |_| true).unwrap();
        assert_eq!((first.more, first.remaining), (true, 2));
        assert_eq!(names(first), ["a", "b"]);
        store.delete(Key::new("things", "c"), Revision(3)).await.unwrap();
        put(&store, "bb", Expect::Absent, "new").await;
        assert_eq!(names(things.page(Range::default(), at, Some("b"), 9, |_| true).unwrap()), ["c", "d"]);
        assert_eq!(
            names(things.page(Range::default(), store.revision(), Some("b"), 9, |_| true).unwrap()),
            ["bb", "d"]
        );
        let mut slow = things.watch("", at).unwrap();
        for _ in 0..LIMIT.events {
            let now = store.get(&Key::new("things", "d")).unwrap().revision;
            put(&store, "d", Expect::At(now), "x").await;
        }
        assert!(things.page(Range::default(), at, Some("b"), 9, |_| true).is_err());
        assert!(things.watch("", at).is_err());
        assert!(slow.next().await.is_err(), "a watch that fell behind is told");
    });
}

#[tokio::test]
async fn the_durable_log_survives_forgets_and_seals() {
    let dir = tempfile::tempdir().unwrap();
    let store = on_disk(dir.path());
    let mut at = put(&store, "a", Expect::Absent, "0").await;
    for _ in 0..40 {
        at = put(&store, "a", Expect::At(at), "again").await;
    }
    store.put(Key::new("secret", "s"), Expect::Absent, Bytes::from_static(b"top-secret"), 0).await.unwrap();
    let newest = store.revision();
    drop(store);

    let store = on_disk(dir.path());
    assert_eq!(store.revision(), newest);
    assert_eq!(store.get(&Key::new("things", "a")).unwrap().revision, at);
    assert_eq!(&store.get(&Key::new("secret", "s")).unwrap().bytes[..], b"top-secret");
    let behind = Revision(newest.0 - 4);
    let mut watch = store.collection("things").watch("", behind).unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 3, "watches resume over a restart");
    assert!(store.collection("things").watch("", Revision(1)).is_err());

    let file = std::fs::read(dir.path().join("db")).unwrap();
    let wal = std::fs::read(dir.path().join("db-wal")).unwrap_or_default();
    for bytes in [file, wal] {
        assert!(!bytes.windows(10).any(|window| window == b"top-secret"));
    }
    let rows = rusqlite::Connection::open(dir.path().join("db")).unwrap();
    let rows: u64 = rows.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap();
    assert!(rows <= LIMIT.events as u64 + 3, "{rows} rows are kept for two objects");
}

#[tokio::test]
async fn a_log_that_refuses_loses_nothing() {
    struct Full(Arc<std::sync::atomic::AtomicBool>);
    impl Log for Full {
        fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
            Ok(Revision(0))
        }
        fn append(&mut self, _: &[Record], _: &[Revision], _: Revision) -> Result<(), LogError> {
            if self.0.load(std::sync::atomic::Ordering::SeqCst) {
                Err(LogError::Writer("disk full".into()))
            } else {
                Ok(())
            }
        }
    }
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let store = Store::open(Box::new(Full(full.clone())), Plain, LIMIT).unwrap();
    put(&store, "a", Expect::Absent, "1").await;
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = store.put(Key::new("things", "b"), Expect::Absent, Bytes::new(), 0).await;
    assert!(matches!(refused, Err(CommitError::Unavailable(_))));
    assert!(store.get(&Key::new("things", "b")).is_none());
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(put(&store, "b", Expect::Absent, "1").await, Revision(2));
}

#[tokio::test]
async fn the_file_does_not_outgrow_its_data_and_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = on_disk(dir.path());
    let size = || {
        let length = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |found| found.len());
        length("db") + length("db-wal")
    };
    let write = async |name: String, expect, bytes: usize| {
        let written = store.put(Key::new("things", name), expect, vec![b'x'; bytes].into(), 0).await;
        written.unwrap().revision
    };
    let mut at = Vec::new();
    for name in 0..10 {
        at.push(write(name.to_string(), Expect::Absent, 4000).await);
    }
    for round in 0..3000 {
        at[round % 10] = write((round % 10).to_string(), Expect::At(at[round % 10]), 4000).await;
    }
    // Ten objects, a history of eight, and a log of a thousand pages before they are moved into the file.
    assert!(size() < 6 << 20, "{} bytes are kept for 40,000", size());
    let mut many = Vec::new();
    for name in 0..600 {
        many.push((name, write(format!("burst-{name}"), Expect::Absent, 40_000).await));
    }
    let burst = size();
    assert!(burst > 20 << 20, "{burst}");
    for (name, at) in many {
        store.delete(Key::new("things", format!("burst-{name}")), at).await.unwrap();
    }
    for round in 0..3000 {
        at[round % 10] = write((round % 10).to_string(), Expect::At(at[round % 10]), 10).await;
    }
    assert!(
        std::fs::metadata(dir.path().join("db")).unwrap().len() < 8 << 20,
        "{} of {burst} bytes are left",
        size()
    );
}

#[test]
fn objects_are_found_by_the_terms_they_have_now() {
    each(async |store| {
        let a = put(&store, "a", Expect::Absent, "odd").await;
        put(&store, "b", Expect::Absent, "even").await;
        let c = put(&store, "c", Expect::Absent, "even").await;
        let things = store.collection("things");
        let even = ["even".to_owned()];
        let range = Range { prefix: "", terms: &even };
        let found = || {
            let objects = things.list_at(range, store.revision()).unwrap();
            objects.iter().map(|object| object.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(), ["b", "c"]);
        let at = store.revision();
        put(&store, "a", Expect::At(a), "even").await;
        put(&store, "c", Expect::At(c), "odd").await;
        assert_eq!(found(), ["a", "b"]);
        let then = things.page(range, at, None, 9, |object| *object.attributes % 2 == 0).unwrap();
        assert_eq!(then.objects.iter().map(|object| &*object.name).collect::<Vec<_>>(), ["b", "c"]);
        let nobodys = ["none".to_owned()];
        let none = things.list_at(Range { prefix: "", terms: &nobodys }, store.revision());
        assert_eq!(none.map(|objects| objects.len()), Some(0));
    });
}

#[test]
fn what_is_not_published_yet_is_not_read() {
    let hub = hub::Hub::new(Plain, LIMIT);
    let key = Key { collection: "things".into(), name: "a".into() };
    let apply = |revision, value: Option<&'static str>| {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        let record = Record { revision: Revision(revision), key: key.clone(), value };
        hub.apply(hub.prepare(record, None), &mut hub::Trimmed::default());
    };
    let read = || hub.collection("things").get_at("a", hub.revision()).map(|object| object.revision.0);
    apply(1, Some("x"));
    assert_eq!(read(), None);
    hub.publish(Revision(1));
    apply(2, Some("y"));
    apply(3, None);
    assert_eq!(read(), Some(1), "as a list at that revision shows it");
    hub.publish(Revision(3));
    assert_eq!(read(), None);
}
