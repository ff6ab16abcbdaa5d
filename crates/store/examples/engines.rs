//! What an operation of the store costs with each engine: CPU time of this process, and of etcd beside it.
//! `cargo run --release -p coxswain-store --example engines`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use coxswain_store::{
    Etcd, EtcdConfig, EtcdLog, Expect, HistoryLimit, Key, MemoryLog, Revision, SqliteLog, Store, Terms, View,
};
use coxswain_testkit::EtcdOptions;

const OBJECTS: usize = 10_000;
const OBJECT_BYTES: usize = 3_200;
const CLIENTS: usize = 64;
/// What a tick of the kernel's accounts is.
const MICROSECONDS_A_TICK: f64 = 10_000.0;

struct Plain;

/// Nothing that objects are found by.
#[derive(Debug)]
struct Nothing;

impl Terms for Nothing {
    fn terms(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
}

impl View for Plain {
    type Attributes = Nothing;

    fn attributes(&self, _: &Key, _: &[u8]) -> Nothing {
        Nothing
    }

    fn stamp(&self, stored: &[u8], _: Revision) -> Bytes {
        Bytes::copy_from_slice(stored)
    }
}

/// The CPU time of a process, in ticks.
fn ticks(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    [11, 12].iter().filter_map(|&at| fields.get(at)?.parse::<f64>().ok()).sum()
}

async fn measure<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    engine: &str,
    etcd: Option<u32>,
    work: impl Fn(usize) -> F,
) {
    let other = etcd.map(|pid| pid.to_string());
    let both = || (ticks("self"), other.as_deref().map_or(0.0, ticks));
    let (before, begin) = (both(), Instant::now());
    let clients: Vec<_> = (0..CLIENTS).map(|client| tokio::spawn(work(client))).collect();
    for client in clients {
        client.await.expect("a client panicked");
    }
    let (after, seconds) = (both(), begin.elapsed().as_secs_f64());
    let cost = |ticks: f64| ticks * MICROSECONDS_A_TICK / OBJECTS as f64;
    println!(
        "{engine:<9} {what:<12} {:>9.0} /s {:>7.1} µs CPU {:>7.1} µs of etcd",
        OBJECTS as f64 / seconds,
        cost(after.0 - before.0),
        cost(after.1 - before.1)
    );
}

fn keys(client: usize) -> impl Iterator<Item = Key> {
    (client..OBJECTS).step_by(CLIENTS).map(|number| Key::new("pods", format!("default/pod-{number:05}")))
}

fn object() -> Bytes {
    vec![b'x'; OBJECT_BYTES].into()
}

async fn run(engine: &str, store: Store<Plain>, etcd: Option<u32>) {
    let store = Arc::new(store);
    let writes = |expect: fn(&Store<Plain>, &Key) -> Expect| {
        let store = store.clone();
        move |client| {
            let store = store.clone();
            async move {
                for key in keys(client) {
                    let expect = expect(&store, &key);
                    store.put(key, expect, object(), Nothing).await.map(drop).expect("a write");
                }
            }
        }
    };
    measure("create", engine, etcd, writes(|_, _| Expect::Absent)).await;
    measure("update", engine, etcd, writes(|store, key| Expect::At(now(store, key)))).await;
    let reader = store.clone();
    let read = move |client| {
        let store = reader.clone();
        async move {
            for key in keys(client) {
                store.sync().await.expect("a consistent read");
                assert!(store.get(&key).is_some());
            }
        }
    };
    measure("get", engine, etcd, read).await;
    let deleter = store.clone();
    let delete = move |client| {
        let store = deleter.clone();
        async move {
            for key in keys(client) {
                let at = now(&store, &key);
                store.delete(key, at).await.map(drop).expect("a deletion");
            }
        }
    };
    measure("delete", engine, etcd, delete).await;
}

fn now(store: &Store<Plain>, key: &Key) -> Revision {
    store.get(key).map_or(Revision(0), |object| object.revision)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(".")?;
    println!("{OBJECTS} objects of {OBJECT_BYTES} bytes, {CLIENTS} clients; durable where the engine is");
    run("memory", Store::open(Box::new(MemoryLog), Plain, HistoryLimit::default())?, None).await;
    let log = SqliteLog::open(&dir.path().join("db"), None)?;
    run("embedded", Store::open(Box::new(log), Plain, HistoryLimit::default())?, None).await;
    with_etcd(&dir.path().join("etcd")).await
}

async fn with_etcd(dir: &Path) -> anyhow::Result<()> {
    let Some(servers) = coxswain_testkit::Etcd::start(EtcdOptions::on_loopback(dir, 1))? else {
        return Ok(());
    };
    let [ca, certificate, key] = servers.certificates();
    let config = EtcdConfig {
        ca_pem: Some(std::fs::read(ca)?),
        identity_pem: Some((std::fs::read(certificate)?, std::fs::read(key)?)),
        ..EtcdConfig::new(servers.endpoints().to_vec())
    };
    let log = EtcdLog::open(&Etcd::new(&config)?, None).await?;
    run("etcd", Store::open(Box::new(log), Plain, HistoryLimit::default())?, servers.pid(0)).await;
    Ok(())
}
