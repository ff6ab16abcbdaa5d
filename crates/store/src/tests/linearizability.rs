//! Concurrent clients while what they write to is killed: the histories they record are linearizable, and watches that resume
//! see every write once.
//!
//! `COX_TEST_SEED` repeats a run's choices, `COX_TEST_KILLS` asks for more kills than CI has time for.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{self, Answer, Call, Written};
use super::*;

const KEYS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 6;
const THIS_PROCESS: &str = "tests::linearizability::a_process_that_is_killed";
const PATIENCE: Duration = Duration::from_secs(60);

pub fn seed() -> u64 {
    let seed = std::env::var("COX_TEST_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    eprintln!("COX_TEST_SEED={seed}");
    seed
}

fn kills(usual: usize) -> usize {
    std::env::var("COX_TEST_KILLS").ok().map_or(usual, |kills| kills.parse().unwrap())
}

pub type Record<'a> = &'a (dyn Fn(&str) + Sync);

/// Asks for one thing after the other, and remembers what it was told.
pub async fn client(
    store: &Store<Plain>,
    id: &str,
    mut random: StdRng,
    stop: &AtomicBool,
    record: Record<'_>,
) {
    let mut known: HashMap<&str, u64> = HashMap::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{id}.{number}");
        let key = KEYS[random.random_range(0..KEYS.len())];
        let expect = *known.entry(key).or_default();
        let call = match random.random_range(0..10) {
            0..5 => Call::Put { expect, value: id.clone() },
            5 if expect > 0 => Call::Delete { expect },
            5..8 => Call::Get,
            _ => Call::List,
        };
        record(&history::call_line(&id, key, &call));
        let answer = ask(store, key, &call).await;
        record(&history::answer_line(&id, &answer));
        match answer {
            Answer::Written(revision) => {
                known.insert(key, if matches!(call, Call::Delete { .. }) { 0 } else { revision });
            }
            Answer::Refused(revision) | Answer::Found(revision) => {
                known.insert(key, revision);
            }
            Answer::Unknown | Answer::Listed(..) => {}
        }
    }
}

async fn ask(store: &Store<Plain>, name: &str, call: &Call) -> Answer {
    if store.sync().await.is_err() {
        return Answer::Unknown;
    }
    let key = Key::new("things", name);
    let revision = |object: Option<Arc<Object<usize>>>| object.map_or(0, |object| object.revision.0);
    let expected = |expect: u64| if expect == 0 { Expect::Absent } else { Expect::At(Revision(expect)) };
    let outcome = match call {
        Call::Get => return Answer::Found(revision(store.get(&key))),
        Call::List => {
            let at = store.revision();
            let page = store.collection("things").page(Range::default(), at, None, usize::MAX, |_| true);
            let Ok(page) = page else { return Answer::Unknown };
            let named = page.objects.iter().map(|object| (object.name.to_string(), object.revision.0));
            return Answer::Listed(at.0, named.collect());
        }
        Call::Put { expect, value } => {
            store.put(key, expected(*expect), value.clone().into(), value.len()).await
        }
        Call::Delete { expect } => store.delete(key, Revision(*expect)).await,
    };
    match outcome {
        Ok(object) => Answer::Written(object.revision.0),
        Err(CommitError::Conflict(current)) => Answer::Refused(revision(current)),
        Err(CommitError::Unavailable(_)) => Answer::Unknown,
    }
}

/// Tells of every event behind a revision, until one, or for ever.
pub async fn watcher(store: &Store<Plain>, from: u64, until: Option<u64>, mut saw: impl FnMut(Written)) {
    let mut watch = store.collection("things").watch("", Revision(from)).unwrap();
    let mut seen = from;
    while until.is_none_or(|until| seen < until) {
        for event in watch.next().await.unwrap() {
            seen = event.object.revision.0;
            let value = String::from_utf8(event.object.bytes.to_vec()).unwrap();
            saw((seen, event.object.name.to_string(), (event.kind == EventKind::Put).then_some(value)));
        }
    }
}

fn saw_line((revision, key, value): &Written) -> String {
    format!("saw {revision} {key} {}", value.as_deref().unwrap_or("-"))
}

fn seen(lines: &str) -> Vec<Written> {
    let saw = |line: &str| {
        let mut words = line.strip_prefix("saw ")?.split(' ');
        let (revision, key, value) = (words.next()?.parse().ok()?, words.next()?.to_owned(), words.next()?);
        Some((revision, key, (value != "-").then(|| value.to_owned())))
    };
    lines.lines().filter_map(saw).collect()
}

pub fn judge(lines: &str, written: &[Written]) {
    let operations = history::parse(lines.lines());
    if let Err(error) = history::check(&operations, written) {
        let kept = std::env::temp_dir().join("coxswain-history.txt");
        let _ = std::fs::write(&kept, lines);
        panic!("{error}\nthe history is in {}", kept.display());
    }
    let answered = operations.iter().filter(|operation| operation.answer != Answer::Unknown).count();
    eprintln!("{answered} of {} operations answered, {} writes", operations.len(), written.len());
    assert!(written.len() > 20, "there was hardly any load");
}

/// Not a test by itself: clients and a watcher of a store in the directory that the environment names, until they are killed.
#[test]
#[ignore = "a part of embedded_histories_are_linearizable_over_kills"]
fn a_process_that_is_killed() {
    let Ok(dir) = std::env::var("COX_STORE_CHILD") else { return };
    let dir = Path::new(&dir);
    let round: u64 = std::env::var("COX_STORE_ROUND").unwrap().parse().unwrap();
    let seed: u64 = std::env::var("COX_TEST_SEED").unwrap().parse().unwrap();
    let resume = seen(&std::fs::read_to_string(dir.join("lines")).unwrap()).last().map_or(0, |(at, ..)| *at);
    let file = std::fs::OpenOptions::new().append(true).mode(0o600).open(dir.join("lines")).unwrap();
    // One write a line, so that a kill cuts none.
    let record = |line: &str| (&file).write_all(format!("{line}\n").as_bytes()).unwrap();
    let store = Store::open_embedded(dir, None, Plain).unwrap();
    let stop = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clients = (0..CLIENTS).map(|number| {
            let id = format!("{round}.{number}");
            let random = StdRng::seed_from_u64(seed ^ (round << 8) ^ number as u64);
            let (store, stop, record) = (&store, &stop, &record);
            async move { client(store, &id, random, stop, record).await }
        });
        let watching = watcher(&store, resume, None, |event| record(&saw_line(&event)));
        tokio::join!(join_all(clients), watching);
    });
}

/// A child that dies with this test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

#[test]
fn embedded_histories_are_linearizable_over_kills() {
    let (seed, kills) = (seed(), kills(20));
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let lines = dir.path().join("lines");
    std::fs::write(&lines, "").unwrap();
    for round in 0..kills {
        let before = std::fs::metadata(&lines).unwrap().len();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS_PROCESS, "--ignored", "--nocapture"])
            .env("COX_STORE_CHILD", dir.path())
            .env("COX_STORE_ROUND", round.to_string())
            .env("COX_TEST_SEED", seed.to_string())
            .stdout(Stdio::null())
            .spawn();
        let mut child = Killed(child.unwrap());
        coxswain_testkit::eventually("load", PATIENCE, || {
            anyhow::ensure!(child.0.try_wait()?.is_none(), "the process ended");
            anyhow::ensure!(std::fs::metadata(&lines)?.len() > before, "no operation yet");
            Ok(())
        })
        .unwrap();
        // The moment of the crash is what the seed says.
        std::thread::sleep(Duration::from_micros(random.random_range(0..80_000)));
    }
    let lines = std::fs::read_to_string(&lines).unwrap();
    let mut written = seen(&lines);
    let store = Store::open_embedded(dir.path(), None, Plain).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let from = written.last().map_or(0, |(at, ..)| *at);
    runtime.block_on(watcher(&store, from, Some(store.revision().0), |event| written.push(event)));
    judge(&lines, &written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_histories_are_linearizable_over_the_loss_of_members() {
    let dir = tempfile::tempdir().unwrap();
    let Some(servers) = etcd::start(dir.path(), 3) else { return };
    let (seed, kills) = (seed(), kills(4));
    let mut random = StdRng::seed_from_u64(seed);
    let limit = HistoryLimit::default();
    let stores = [etcd::open(&servers, limit).await, etcd::open(&servers, limit).await];
    let lines = Mutex::new(String::new());
    let record = |line: &str| {
        let mut lines = lines.lock().unwrap();
        lines.push_str(line);
        lines.push('\n');
    };
    let stop = AtomicBool::new(false);
    let clients = (0..CLIENTS).map(|number| {
        let random = StdRng::seed_from_u64(seed ^ number as u64);
        let (store, stop, record) = (&stores[number % stores.len()], &stop, &record);
        async move { client(store, &number.to_string(), random, stop, record).await }
    });
    let chaos = async {
        for _ in 0..kills {
            let member = random.random_range(0..3);
            tokio::time::sleep(Duration::from_millis(random.random_range(200..1500))).await;
            servers.kill_member(member).unwrap();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2000))).await;
            servers.start_member(member).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(clients), chaos);
    let mut histories = Vec::new();
    for store in &stores {
        caught_up(store).await;
        let mut written = Vec::new();
        watcher(store, 0, Some(store.revision().0), |event| written.push(event)).await;
        histories.push(written);
    }
    assert_eq!(histories[0], histories[1], "every server's watch tells the same");
    judge(&lines.into_inner().unwrap(), &histories[0]);
}

/// Waits until members that were just started answer again.
pub async fn caught_up(store: &Store<Plain>) {
    let synced = async { while store.sync().await.is_err() {} };
    tokio::time::timeout(PATIENCE, synced).await.expect("etcd answers again");
}
