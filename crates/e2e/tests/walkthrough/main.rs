//! The notepad walkthrough: what a newcomer does with a cluster, from the first `kubectl get nodes` to pulling the plug,
//! with real `kubectl` and real containers, on one cluster.
//!
//! Steps build on each other and say what they saw. Nothing is asserted about time; waits end with their condition.
#![allow(missing_docs)]

mod access;
mod bad_input;
mod configuration;
mod crashes;
mod healing;
mod rollout;
mod serving;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coxswain_testkit::{Api, Cluster, NODE_IP, Options, is_root};

/// No condition takes longer than this, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);
const NODE_PORT: u16 = 30036;

/// The cluster that is walked through.
struct Walk {
    cluster: Cluster,
    api: Api,
}

/// A step does something and says what it saw.
type Step = fn(&Walk) -> anyhow::Result<String>;

const STEPS: &[(&str, Step)] = &[
    ("1 the node is ready and three pods run", serving::three_pods_run),
    ("2 configuration and a client pod come up", configuration::comes_up),
    ("2 the service answers inside, by address and by name", serving::answers_inside),
    ("2 the service answers outside, from every replica", serving::answers_outside),
    ("2 logs, exec, cp and port-forward reach the pods", access::reaches_the_pods),
    ("3 ten replicas, a hundred, three", serving::scales),
    ("4 a rolling update loses no request", rollout::updates_without_loss),
    ("4 history and undo", rollout::undoes),
    ("4 a paused rollout waits", rollout::pauses_and_resumes),
    ("4 an image that does not exist stalls the rollout, not the service", rollout::stalls_and_is_undone),
    ("5 a deleted pod and a killed process come back", healing::deleted_and_killed_come_back),
    ("5 a failing liveness probe restarts", healing::liveness_restarts),
    ("5 a failing readiness probe takes out of the service", healing::readiness_takes_out),
    ("6 configuration by file and environment, and its change", configuration::reaches_the_pods),
    ("7 killed twenty times, nothing is lost", crashes::nothing_is_lost),
    ("8 bad input is refused in words", bad_input::is_refused),
    ("8 a huge and a truncated body are refused", bad_input::bad_bodies_are_refused),
    ("the server stops cleanly and its pods stay", crashes::pods_survive_a_clean_stop),
];

#[test]
fn walkthrough() {
    if !is_root() {
        return;
    }
    let began = Instant::now();
    let cluster = Cluster::start(Options::default()).unwrap_or_else(|error| panic!("the cluster: {error:#}"));
    let api = cluster.api().expect("a ready cluster has a kubeconfig");
    eprintln!("the cluster is ready ({:.1?})", began.elapsed());
    let walk = Walk { cluster, api };
    for (name, step) in STEPS {
        let began = Instant::now();
        // A failed step panics, so that the cluster shows its log.
        let saw = step(&walk).unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", walk.describe()));
        eprintln!("ok: {name} ({:.1?})\n    {saw}", began.elapsed());
    }
}

impl Walk {
    /// What a failed step shows besides its error.
    fn describe(&self) -> String {
        let commands: [&[&str]; 2] =
            [&["get", "pods,deployments,replicasets", "-o", "wide"], &["get", "events"]];
        let show = |arguments: &&[&str]| match self.cluster.try_kubectl(arguments) {
            Ok(ran) => {
                let lines: Vec<&str> = ran.stdout.lines().collect();
                lines[lines.len().saturating_sub(60)..].join("\n") + &ran.stderr
            }
            Err(error) => error.to_string(),
        };
        commands.iter().map(show).collect::<Vec<_>>().join("\n")
    }

    fn apply(&self, manifest: PathBuf) -> anyhow::Result<String> {
        self.cluster.kubectl(&["apply", "-f", manifest.to_str().expect("a path of ours")])
    }

    /// A command in the client pod.
    fn in_reader(&self, command: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["exec", "reader", "--"], command].concat())
    }

    fn outside(&self) -> SocketAddr {
        SocketAddr::new(NODE_IP.parse().expect("an address"), NODE_PORT)
    }
}

/// A manifest of the example.
fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/notepad").join(name)
}

/// A manifest of this test.
fn manifest(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name)
}
