//! Sealing keys are renewed while servers on one etcd write, are killed and start anew.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coxswain_testkit::Etcd as Servers;

use super::*;
use crate::etcd::{Keyring, every_value};

const SECRETS: usize = 400;
const OLD: [u8; 32] = [7; 32];

/// Keys that lie in the open.
struct Plainly;

impl Keyring for Plainly {
    fn keys(&self, shared: &[u8]) -> Result<Vec<u8>, String> {
        Ok(shared.to_vec())
    }

    fn with_keys(&self, _: &[u8], keys: &[u8]) -> Result<Vec<u8>, String> {
        Ok(keys.to_vec())
    }
}

fn connect(servers: &Servers) -> Etcd {
    etcd::connect(servers).with_keys("keys", Plainly)
}

fn sealer(keys: &[u8]) -> Sealer {
    Sealer::new(keys, &["secret"]).unwrap()
}

/// One more server, which knows the keys of its start.
async fn server(servers: &Servers) -> Store<Plain> {
    let etcd = connect(servers);
    let keys = etcd.shared("keys").await.unwrap().unwrap();
    let log = EtcdLog::open(&etcd, Some(sealer(&keys))).await.unwrap();
    Store::open(Box::new(log), Plain, HistoryLimit::default()).unwrap()
}

/// Every Secret, as a server reads it.
async fn read(store: &Store<Plain>) -> std::collections::BTreeMap<String, String> {
    store.sync().await.unwrap();
    let text = |object: Arc<Object<usize>>| {
        (object.name.to_string(), String::from_utf8(object.bytes.to_vec()).unwrap())
    };
    store.collection("secret").list("").into_iter().map(text).collect()
}

type Acknowledged = Mutex<std::collections::BTreeMap<String, String>>;

/// Writes new Secrets and old ones anew, one after the other.
async fn write(store: &Store<Plain>, id: &str, stop: &AtomicBool, acknowledged: &Acknowledged) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = if number % 2 == 0 { format!("{id}-{number}") } else { format!("s{}", number % SECRETS) };
        let key = Key::new("secret", name.clone());
        let expect = store.get(&key).map_or(Expect::Absent, |object| Expect::At(object.revision));
        let text = format!("{name} by {id} at {number}");
        if store.put(key, expect, text.clone().into(), 0).await.is_ok() {
            acknowledged.lock().unwrap().insert(name, text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_renewed_while_servers_write_and_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = etcd::start(dir.path(), 1) else { return };
    let etcd = connect(&servers);
    etcd.share("keys", OLD.to_vec().into()).await.unwrap();
    let (one, two) = (server(&servers).await, server(&servers).await);
    let acknowledged = Acknowledged::default();
    for number in 0..SECRETS {
        let (name, text) = (format!("s{number}"), format!("first {number}"));
        let key = Key::new("secret", name.clone());
        one.put(key, Expect::Absent, text.clone().into(), 0).await.unwrap();
        acknowledged.lock().unwrap().insert(name, text);
    }
    let mut watch = two.collection("secret").watch("", Revision(0)).unwrap();
    let stop = AtomicBool::new(false);
    let rotations = async {
        for number in 1..=6_u8 {
            let key = [number; 32];
            etcd.add_key(&key).await.unwrap();
            // Whoever renews is cut off somewhere, and so is a server that has just started.
            let cut = Duration::from_millis(u64::from(number) * 7);
            let keys = etcd.shared("keys").await.unwrap().unwrap();
            let _ = tokio::time::timeout(cut, etcd.drop_older_keys(sealer(&keys))).await;
            let third = server(&servers).await;
            drop(third);
            if number % 2 == 0 {
                tokio::time::timeout(Duration::from_secs(60), etcd.drop_older_keys(sealer(&keys)))
                    .await
                    .unwrap()
                    .unwrap();
                // Another server may have been first to drop: then it has.
                let left = etcd.shared("keys").await.unwrap().unwrap();
                assert_eq!(left, key.to_vec(), "the newest key alone is left");
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(
        write(&one, "one", &stop, &acknowledged),
        write(&two, "two", &stop, &acknowledged),
        rotations
    );
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > SECRETS + 20, "there was hardly any load: {}", acknowledged.len());
    let (here, there) = (read(&one).await, read(&two).await);
    assert_eq!(here, there);
    let anew = read(&server(&servers).await).await;
    assert_eq!(here, anew, "a server that starts now reads the same");
    let lost = acknowledged.keys().filter(|name| !here.contains_key(*name)).count();
    assert_eq!(lost, 0, "of {} acknowledged", acknowledged.len());

    let newest = sealer(&[6; 32]);
    let values = every_value(&etcd, "secret").await;
    assert_eq!(values.len(), here.len());
    for (key, value) in values {
        let opened = newest.open(&key, &value).unwrap();
        assert_eq!(String::from_utf8(opened).unwrap(), here[&*key.name]);
    }
    // Nothing that readers see has changed by it.
    let (mut seen, newest) = (0, one.revision().0);
    while seen < newest {
        for event in watch.next().await.unwrap() {
            assert_eq!(event.object.revision.0, seen + 1, "no gap and no duplicate");
            seen += 1;
        }
    }
}

#[tokio::test]
async fn a_server_that_was_away_seals_with_no_older_key() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = etcd::start(dir.path(), 1) else { return };
    let etcd = connect(&servers);
    etcd.share("keys", OLD.to_vec().into()).await.unwrap();
    let store = server(&servers).await;
    let key = Key::new("secret", "a");
    let first = store.put(key.clone(), Expect::Absent, "1".into(), 0).await.unwrap();
    etcd.add_key(&[1; 32]).await.unwrap();
    // Without any wait: the server may not have heard of the key yet.
    store.put(key.clone(), Expect::At(first.revision), "2".into(), 0).await.unwrap();
    let values = every_value(&etcd, "secret").await;
    assert_eq!(sealer(&[1; 32]).open(&key, &values[0].1).unwrap(), b"2");
}
