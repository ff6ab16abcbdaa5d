//! A client that asks without pause, one connection a request, and counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use coxswain_testkit::{Cluster, Isolation, Request, Response};

/// What came back.
#[derive(Debug, Default)]
pub struct Answers {
    /// Answers by the host that gave them.
    pub by_host: BTreeMap<String, u64>,
    /// Answers by the version that gave them.
    pub by_version: BTreeMap<String, u64>,
    /// What failed and why.
    pub failures: Vec<String>,
}

impl Answers {
    /// All requests.
    pub fn total(&self) -> u64 {
        self.by_host.values().sum::<u64>() + self.failures.len() as u64
    }

    /// Takes one outcome into the account.
    pub fn count(&mut self, outcome: Result<Response, coxswain_testkit::HttpError>) {
        match outcome {
            Ok(response) if response.code == 200 => {
                let text = response.text();
                let field =
                    |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                *self.by_host.entry(field("host: ").unwrap_or_default()).or_default() += 1;
                *self.by_version.entry(field("version: ").unwrap_or_default()).or_default() += 1;
            }
            Ok(response) => self.failures.push(format!("{} {}", response.code, response.text())),
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

/// Requests that are being sent.
pub struct Load {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Answers>>,
}

impl Load {
    /// Starts sending `GET /` to an address from the node, from this many threads.
    pub fn start(cluster: &Cluster, address: SocketAddr, threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let send = move |isolation: Arc<Isolation>, stop: Arc<AtomicBool>| {
            let mut answers = Answers::default();
            while !stop.load(Ordering::Relaxed) {
                answers.count(isolation.http(address, &Request::get("/")));
            }
            answers
        };
        let senders = (0..threads)
            .map(|_| {
                let (isolation, stop) = (cluster.isolation(), stop.clone());
                std::thread::spawn(move || send(isolation, stop))
            })
            .collect();
        Self { stop, senders }
    }

    /// Stops and gives what came back.
    ///
    /// # Panics
    /// A sender did.
    pub fn stop(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for sender in self.senders {
            let answers = sender.join().expect("a sender does not panic");
            for (host, count) in answers.by_host {
                *all.by_host.entry(host).or_default() += count;
            }
            for (version, count) in answers.by_version {
                *all.by_version.entry(version).or_default() += count;
            }
            all.failures.extend(answers.failures);
        }
        all
    }
}
