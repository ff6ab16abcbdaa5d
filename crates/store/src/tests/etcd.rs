//! What only a log that several servers share promises, against a real etcd.

use std::path::Path;
use std::sync::Mutex;

use coxswain_testkit::{Etcd as Servers, EtcdOptions};

use super::*;

/// An etcd on loopback; none without Go.
pub fn start(dir: &Path, members: usize) -> Option<Servers> {
    start_with(dir, members, &["--unsafe-no-fsync"])
}

fn start_with(dir: &Path, members: usize, arguments: &[&str]) -> Option<Servers> {
    Servers::start(EtcdOptions { arguments, ..EtcdOptions::on_loopback(dir, members) }).unwrap()
}

/// A connection to it.
pub fn connect(servers: &Servers) -> Etcd {
    let [ca, certificate, key] = servers.certificates().map(|path| std::fs::read(path).unwrap());
    let config = EtcdConfig {
        ca_pem: Some(ca),
        identity_pem: Some((certificate, key)),
        ..EtcdConfig::new(servers.endpoints().to_vec())
    };
    Etcd::new(&config).unwrap()
}

/// A store of one more server on it.
pub async fn open(servers: &Servers, limit: HistoryLimit) -> Store<Plain> {
    let sealer = Sealer::new(&[7; 32], &["secret"]).unwrap();
    let log = EtcdLog::open(&connect(servers), Some(sealer)).await.unwrap();
    Store::open(Box::new(log), Plain, limit).unwrap()
}

#[tokio::test]
async fn servers_see_each_other_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = start(dir.path(), 1) else { return };
    let (one, two) = (open(&servers, LIMIT).await, open(&servers, LIMIT).await);
    let mut watch = two.collection("things").watch("", Revision(0)).unwrap();
    let first = put(&one, "a", Expect::Absent, "1").await;
    two.sync().await.unwrap();
    assert_eq!(two.get(&Key::new("things", "a")).unwrap().revision, first);
    // Two servers want the same; then each has the next revision in turn.
    let at = Expect::At(first);
    let write = |store| put_as(store, "a", at, "22");
    let (left, right) = tokio::join!(write(&one), write(&two));
    assert_eq!([&left, &right].iter().filter(|outcome| outcome.is_ok()).count(), 1, "{left:?} {right:?}");
    let mut newest = left.or(right).unwrap();
    for store in [&two, &one, &two] {
        store.sync().await.unwrap();
        let next = put(store, "a", Expect::At(newest), "333").await;
        assert_eq!(next, Revision(newest.0 + 1));
        newest = next;
    }
    let mut seen = Vec::new();
    while seen.len() < newest.0 as usize {
        seen.extend(watch.next().await.unwrap().into_iter().map(|event| event.object.revision.0));
    }
    assert_eq!(seen, (1..=newest.0).collect::<Vec<_>>());
}

async fn put_as(
    store: &Store<Plain>,
    name: &str,
    expect: Expect,
    value: &'static str,
) -> Result<Revision, CommitError<usize>> {
    let key = Key::new("things", name);
    store.put(key, expect, Bytes::from_static(value.as_bytes()), 0).await.map(|object| object.revision)
}

#[tokio::test]
async fn a_server_that_starts_anew_resumes_watches_and_opens_what_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = start(dir.path(), 1) else { return };
    let store = open(&servers, HistoryLimit::default()).await;
    let first = put(&store, "a", Expect::Absent, "1").await;
    store.put(Key::new("secret", "s"), Expect::Absent, Bytes::from_static(b"top"), 0).await.unwrap();
    store.delete(Key::new("things", "a"), first).await.unwrap();
    drop(store);
    let store = open(&servers, HistoryLimit::default()).await;
    assert_eq!(store.revision(), Revision(3));
    assert_eq!(&store.get(&Key::new("secret", "s")).unwrap().bytes[..], b"top");
    let mut watch = store.collection("things").watch("", first).unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!((events[0].kind, events[0].object.revision), (EventKind::Delete, Revision(3)));
    assert_eq!(put(&store, "b", Expect::Absent, "1").await, Revision(4));
}

#[tokio::test]
async fn a_full_etcd_is_read_and_takes_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let quota = ["--unsafe-no-fsync", "--quota-backend-bytes=4194304"];
    let Some(servers) = start_with(dir.path(), 1, &quota) else { return };
    let store = open(&servers, LIMIT).await;
    let huge = Bytes::from(vec![b'x'; 2_000_000]);
    let refused = store.put(Key::new("things", "huge"), Expect::Absent, huge, 0).await.unwrap_err();
    assert!(refused.to_string().contains("too large"), "{refused}");
    let big = Bytes::from(vec![b'x'; 500_000]);
    let mut written = 0;
    let refused = loop {
        let key = Key::new("things", format!("n{written}"));
        match store.put(key, Expect::Absent, big.clone(), 0).await {
            Ok(_) if written < 100 => written += 1,
            Ok(_) => panic!("the quota is not met"),
            Err(error) => break error,
        }
    };
    assert!(refused.to_string().contains("database space exceeded"), "{refused}");
    assert!(store.is_refusing_writes() && written > 0);
    store.sync().await.unwrap();
    // The write that finds the quota met may be refused after it was applied: its outcome is open, as of any that is refused so.
    let there = store.collection("things").len();
    assert!((written..=written + 1).contains(&there), "{there} of {written}");
}

#[tokio::test]
async fn what_servers_share_is_the_first_one_s() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = start(dir.path(), 1) else { return };
    let etcd = connect(&servers);
    assert_eq!(etcd.shared("keys").await.unwrap(), None);
    let (one, two) = tokio::join!(etcd.share("keys", "one".into()), etcd.share("keys", "two".into()));
    assert_eq!(one.unwrap(), two.unwrap());
}

/// A log whose other writers are the test.
struct Shared(Arc<Mutex<Vec<Arrival>>>);

impl Log for Shared {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<Revision, LogError> {
        Ok(Revision(0))
    }

    fn append(&mut self, _: &[Record], _: &[Revision], _: Revision) -> Result<(), LogError> {
        if self.0.lock().unwrap().is_empty() { Ok(()) } else { Err(LogError::Behind) }
    }

    fn arrived(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn where_history_is_gone_the_state_is_taken_and_watches_are_told() {
    let arrivals = Arc::new(Mutex::default());
    let store = Store::open(Box::new(Shared(arrivals.clone())), Plain, LIMIT).unwrap();
    let first = put(&store, "a", Expect::Absent, "1").await;
    let mut watch = store.collection("things").watch("", first).unwrap();
    let there = Record { revision: Revision(70), key: Key::new("things", "b"), value: Some("2".into()) };
    arrivals.lock().unwrap().push(Arrival::Replaced(vec![there], Revision(75)));
    let refused = put_as(&store, "a", Expect::At(first), "x").await;
    assert!(matches!(refused, Err(CommitError::Conflict(None))), "{refused:?}");
    assert_eq!(watch.next().await.unwrap_err().oldest, Revision(75));
    assert_eq!(store.get(&Key::new("things", "b")).unwrap().revision, Revision(70));
    assert_eq!(put(&store, "c", Expect::Absent, "1").await, Revision(76));
}

#[tokio::test]
async fn a_backup_moves_between_the_engines() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = start(&dir.path().join("etcd"), 1) else { return };
    let sealer = || Some(Sealer::new(&[7; 32], &["secret"]).unwrap());
    let (embedded, file) = (dir.path().join("a"), dir.path().join("backup"));
    std::fs::create_dir_all(&embedded).unwrap();
    let store = Store::open_embedded(&embedded, sealer(), Plain).unwrap();
    let first = put(&store, "a", Expect::Absent, "1").await;
    store.put(Key::new("secret", "s"), Expect::Absent, Bytes::from_static(b"top"), 0).await.unwrap();
    let gone = put(&store, "gone", Expect::Absent, "1").await;
    store.delete(Key::new("things", "gone"), gone).await.unwrap();
    // The store is open, and goes on being written to.
    let backup = Backup::of_embedded(&embedded, sealer(), b"keys".to_vec()).unwrap();
    put(&store, "a", Expect::At(first), "22").await;
    let newest = store.revision();
    backup.write(&file).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(backup.restore_embedded(&embedded, sealer()).is_err(), "there is a store");

    let etcd = connect(&servers);
    Backup::read(&file).unwrap().restore_etcd(&etcd, sealer()).await.unwrap();
    assert!(backup.restore_etcd(&etcd, sealer()).await.is_err(), "there is a store");
    let moved = open(&servers, LIMIT).await;
    assert_eq!(moved.get(&Key::new("things", "a")).unwrap().revision, first);
    assert_eq!(&moved.get(&Key::new("secret", "s")).unwrap().bytes[..], b"top");
    assert!(moved.get(&Key::new("things", "gone")).is_none());
    assert!(moved.revision() > newest, "no client has seen a newer one");
    assert!(moved.collection("things").watch("", newest).is_err(), "who resumes is told to list anew");
    let next = put(&moved, "a", Expect::At(first), "333").await;
    assert_eq!(next, Revision(backup.newest.0 + 1_000_000_001));

    let back = Backup::of_etcd(&etcd, sealer(), b"keys".to_vec()).await.unwrap();
    let other = dir.path().join("b");
    std::fs::create_dir_all(&other).unwrap();
    back.restore_embedded(&other, sealer()).unwrap();
    let store = Store::open_embedded(&other, sealer(), Plain).unwrap();
    assert_eq!(store.get(&Key::new("things", "a")).unwrap().revision, next);
    assert_eq!(&store.get(&Key::new("secret", "s")).unwrap().bytes[..], b"top");
    assert!(store.collection("things").watch("", next).is_err());
    assert!(put(&store, "b", Expect::Absent, "1").await > next);
}
