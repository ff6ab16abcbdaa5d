//! Servers and the members of their etcd are cut off from each other, on a network of their own: histories stay linearizable,
//! watches see every write once, and what cannot be written is said in time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coxswain_testkit::{Etcd as Servers, EtcdOptions, Isolation, is_root};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::Written;
use super::linearizability::{caught_up, client, judge, seed, watcher};
use super::*;

const MEMBERS: [&str; 3] = ["192.168.78.1", "192.168.78.2", "192.168.78.3"];
const STORES: [&str; 2] = ["192.168.78.4", "192.168.78.5"];
const CLIENTS: usize = 3;
const ROUNDS: usize = 5;
/// The patience with etcd for the read before a write, for one that the write waits behind and for the write, on a machine that
/// is busy. Requests may take a minute.
const LONGEST: Duration = Duration::from_secs(55);

/// What the servers' threads and the one that cuts them off have in common.
#[derive(Default)]
struct Shared {
    lines: Mutex<String>,
    stop: AtomicBool,
    /// How many servers are open, and what was refused in words.
    open: AtomicU64,
    refusals: Mutex<Vec<(Duration, String)>>,
}

/// One server with its clients and a watch, until it is told to stop; what the watch has seen.
async fn serve(servers: &Servers, number: usize, seed: u64, shared: &Shared) -> Vec<Written> {
    let store = etcd::open(servers, HistoryLimit::default()).await;
    shared.open.fetch_add(1, Ordering::Relaxed);
    let called = Mutex::new(HashMap::new());
    let record = |line: &str| {
        let mut lines = shared.lines.lock().unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["call", id, ..] => drop(called.lock().unwrap().insert(id.to_owned(), Instant::now())),
            ["answer", id, ..] => {
                let took = called.lock().unwrap().remove(id).unwrap().elapsed();
                assert!(took < LONGEST, "{line} after {took:?}");
            }
            _ => {}
        }
        lines.push_str(line);
        lines.push('\n');
    };
    let seen = Mutex::new(Vec::new());
    let clients = (0..CLIENTS).map(|at| {
        let random = StdRng::seed_from_u64(seed ^ (number * CLIENTS + at) as u64);
        let (store, record) = (&store, &record);
        async move { client(store, &format!("{number}.{at}"), random, &shared.stop, record).await }
    });
    let prober = async {
        while !shared.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            if let Err(error) = store.sync().await {
                shared.refusals.lock().unwrap().push((began.elapsed(), error.to_string()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let working = async {
        tokio::join!(join_all(clients), prober);
        caught_up(&store).await;
    };
    tokio::select! {
        () = working => {}
        () = watcher(&store, 0, None, |event| seen.lock().unwrap().push(event)) => {}
    }
    let from = seen.lock().unwrap().last().map_or(0, |(at, ..): &Written| *at);
    watcher(&store, from, Some(store.revision().0), |event| seen.lock().unwrap().push(event)).await;
    seen.into_inner().unwrap()
}

/// Cuts off this one and that, and in the end a majority until somebody says so.
fn cut_off(switch: &Isolation, random: &mut StdRng, shared: &Shared) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(random.random_range(200..1500)));
        let ports: Vec<u8> = (1..=5).filter(|_| random.random_bool(0.35)).collect();
        ports.iter().try_for_each(|port| switch.set_port(*port, false))?;
        std::thread::sleep(Duration::from_millis(random.random_range(0..5000)));
        ports.iter().try_for_each(|port| switch.set_port(*port, true))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let before = shared.refusals.lock().unwrap().len();
    [1, 2].iter().try_for_each(|port| switch.set_port(*port, false))?;
    let refused = coxswain_testkit::eventually("a refusal", Duration::from_secs(60), || {
        anyhow::ensure!(shared.refusals.lock().unwrap().len() > before, "everything is answered");
        Ok(())
    });
    [1, 2].iter().try_for_each(|port| switch.set_port(*port, true))?;
    refused
}

#[test]
fn etcd_histories_are_linearizable_over_partitions() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let switch = Isolation::switch().unwrap();
    let connect = |address: &&str, port: usize| Isolation::connected(address, &switch, port as u8).unwrap();
    let members: Vec<_> = MEMBERS.iter().zip(1..).map(|(address, port)| connect(address, port)).collect();
    let machines: Vec<_> = STORES.iter().zip(4..).map(|(address, port)| connect(address, port)).collect();
    let command = move |program: &str, member: usize| {
        let mut command = members[member].network_command("setpriv");
        command.args(["--pdeathsig", "KILL", program]);
        command
    };
    let options = EtcdOptions {
        directory: dir.path(),
        members: MEMBERS.len(),
        addresses: &MEMBERS,
        arguments: &["--unsafe-no-fsync"],
        command: Box::new(command),
    };
    let Some(servers) = Servers::start(options).unwrap() else { return };
    let (seed, servers, shared) = (seed(), Arc::new(servers), Arc::new(Shared::default()));
    let mut random = StdRng::seed_from_u64(seed);
    let histories = std::thread::scope(|scope| {
        let serving: Vec<_> = machines
            .iter()
            .enumerate()
            .map(|(number, machine)| {
                let (servers, shared) = (servers.clone(), shared.clone());
                scope.spawn(move || {
                    machine.inside(move || {
                        let runtime = tokio::runtime::Builder::new_multi_thread()
                            .worker_threads(2)
                            .enable_all()
                            .build()?;
                        Ok(runtime.block_on(serve(&servers, number, seed, &shared)))
                    })
                })
            })
            .collect();
        let opened = coxswain_testkit::eventually("the servers", Duration::from_secs(60), || {
            anyhow::ensure!(shared.open.load(Ordering::Relaxed) == 2, "they open");
            Ok(())
        });
        let cut = opened.and_then(|()| cut_off(&switch, &mut random, &shared));
        shared.stop.store(true, Ordering::Relaxed);
        let histories = serving.into_iter().map(|server| server.join().unwrap().unwrap()).collect::<Vec<_>>();
        cut.unwrap();
        histories
    });
    let longer = histories.iter().max_by_key(|history| history.len()).unwrap();
    for history in &histories {
        assert_eq!(history[..], longer[..history.len()], "every server's watch tells the same");
    }
    let refusals = shared.refusals.lock().unwrap();
    eprintln!("{} refusals, such as {:?}", refusals.len(), refusals.last());
    for (took, error) in refusals.iter() {
        assert!(*took < LONGEST / 2, "{error} after {took:?}");
        assert!(error.starts_with("etcd: "), "{error}");
    }
    judge(&shared.lines.lock().unwrap(), longer);
}
