//! Step 7: what steps 1 to 6 do is done once more, by a user who tries again where the server is away, while the server is
//! killed at moments that a seed chooses.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use coxswain_e2e::load::{Answers, Load};
use coxswain_e2e::pods::{container_id, identities, is_ready, labelled, restarts, wait_ready};
use coxswain_testkit::{Request, Watched, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::rollout::{DEPLOYMENT, runs, waits_for_its_image};
use crate::{LONG, Walk, example, healing, manifest};

const KILLS: usize = 20;
/// So often at most while one thing is done, so that they fall on all of them and none is kept from ending.
const KILLS_IN_AN_ACT: usize = 3;
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/default/replicasets?labelSelector=app%3Dnotepad";
/// Between attempts at a server that is being restarted.
const RETRY: Duration = Duration::from_millis(20);

/// What a user does and what must come of it, whatever happens to the server meanwhile. It can be repeated.
type Act = fn(&Walk) -> anyhow::Result<()>;

const ACTS: &[(&str, Act)] = &[
    ("1 applied, three pods run", applied),
    ("2 served inside and outside", served),
    ("3 scaled", scaled),
    ("4 updated and undone", updated_and_undone),
    ("4 paused and resumed", paused_and_resumed),
    ("4 stalled and undone", stalled_and_undone),
    ("5 a deleted pod and a killed process", deleted_and_killed),
    ("5 probes", probed),
    ("6 configuration", reconfigured),
];

/// What is going on while the server is being killed.
#[derive(Default)]
struct Progress {
    acts: AtomicUsize,
    kills: AtomicUsize,
    over: AtomicBool,
}

pub fn nothing_is_lost(walk: &Walk) -> anyhow::Result<String> {
    let seed = match std::env::var("COX_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random::<u64>(),
    };
    eprintln!("    COX_TEST_SEED={seed}");
    let settled = ["titled", "reader"];
    let before = settled.map(|app| wait_ready(&walk.api, app, 1, LONG).map(|pods| identities(&pods)));
    let load = Load::start(&walk.cluster, walk.outside(), 1);
    let progress = Progress::default();
    let (walked, written, killed) = std::thread::scope(|scope| {
        let user = scope.spawn(|| walk_again(walk, &progress));
        let writer = scope.spawn(|| write_without_end(walk, &progress));
        let killed = kill_often(walk, &progress, StdRng::seed_from_u64(seed));
        (user.join(), writer.join(), killed)
    });
    let answers = load.stop();
    let walked = walked.unwrap_or_else(|_| panic!("the user panicked"));
    let acknowledged = written.unwrap_or_else(|_| panic!("the writer panicked"));
    killed?;
    let rounds = walked?;
    walk.cluster.wait_for_nodes()?;
    restarts_are_accounted_for(walk)?;
    for (app, before) in settled.into_iter().zip(before) {
        let (before, after) = (before?, identities(&wait_ready(&walk.api, app, 1, LONG)?));
        anyhow::ensure!(before == after, "containers changed:\n{before:?}\n{after:?}");
    }
    let found = walk.api.get(CONFIG_MAPS)?;
    let found: HashSet<&str> = found["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|o| o["metadata"]["name"].as_str())
        .collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !found.contains(name.as_str())).collect();
    anyhow::ensure!(lost.is_empty(), "{} of {} objects lost: {lost:?}", lost.len(), acknowledged.len());
    Ok(format!(
        "{} kills in {rounds} round(s); {} acknowledged objects kept, no container restarted by it; {} of {} requests failed",
        progress.kills.into_inner(),
        acknowledged.len(),
        answers.failures.len(),
        answers.total()
    ))
}

pub fn pods_survive_a_clean_stop(walk: &Walk) -> anyhow::Result<String> {
    let before = identities(&wait_ready(&walk.api, "notepad", 3, LONG)?);
    walk.cluster.stop_server()?;
    let served = walk.cluster.http(walk.outside(), &Request::get("/healthz"))?;
    anyhow::ensure!(served.code == 200, "the service answers without the server: {}", served.code);
    walk.cluster.start_server()?;
    walk.cluster.wait_until_ready()?;
    walk.cluster.wait_for_nodes()?;
    let after = identities(&wait_ready(&walk.api, "notepad", 3, LONG)?);
    anyhow::ensure!(before == after, "{before:?}\n{after:?}");
    Ok("SIGTERM ended it with success; the service answered meanwhile; the same containers run".to_owned())
}

/// Walks until the server was killed often enough; gives the number of rounds.
fn walk_again(walk: &Walk, progress: &Progress) -> anyhow::Result<usize> {
    let walked = (|| {
        let mut rounds = 0;
        while progress.kills.load(Ordering::Relaxed) < KILLS {
            rounds += 1;
            for (name, act) in ACTS {
                progress.acts.fetch_add(1, Ordering::Relaxed);
                let before = progress.kills.load(Ordering::Relaxed);
                act(walk).with_context(|| format!("{name}, round {rounds}"))?;
                let kills = progress.kills.load(Ordering::Relaxed) - before;
                eprintln!("    {name}: {kills} kills");
            }
        }
        Ok(rounds)
    })();
    progress.over.store(true, Ordering::Relaxed);
    walked
}

/// Kills and starts until the walk is over; waits for readiness only now and then, so that starting is interrupted too.
fn kill_often(walk: &Walk, progress: &Progress, mut random: StdRng) -> anyhow::Result<()> {
    let killed = (|| {
        let mut latest = (0, 0);
        while !progress.over.load(Ordering::Relaxed) {
            // The moment of a crash is what the seed says.
            std::thread::sleep(Duration::from_millis(random.random_range(0..2500)));
            let act = progress.acts.load(Ordering::Relaxed);
            latest = if latest.0 == act { (act, latest.1 + 1) } else { (act, 1) };
            if latest.1 > KILLS_IN_AN_ACT {
                continue;
            }
            walk.cluster.kill_server()?;
            walk.cluster.start_server()?;
            progress.kills.fetch_add(1, Ordering::Relaxed);
            if random.random_bool(0.7) {
                walk.cluster.wait_until_ready()?;
            }
        }
        walk.cluster.wait_until_ready()
    })();
    progress.over.store(true, Ordering::Relaxed);
    killed
}

/// Creates objects one after the other; gives the names of those that were acknowledged.
fn write_without_end(walk: &Walk, progress: &Progress) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if progress.over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("crash-{number}");
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        match walk.api.write("POST", CONFIG_MAPS, &object) {
            Ok(_) => acknowledged.push(name),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
    acknowledged
}

/// Only what was killed on purpose was restarted.
fn restarts_are_accounted_for(walk: &Walk) -> anyhow::Result<()> {
    for (app, pods, expected) in [("notepad", 3, 1), ("probed", 1, 1)] {
        let pods = wait_ready(&walk.api, app, pods, LONG)?;
        let count: u64 = pods.values().map(restarts).sum();
        anyhow::ensure!(count == expected, "{app}: {count} restarts: {:?}", identities(&pods));
    }
    Ok(())
}

/// `kubectl` until the server has taken the command.
fn insist(walk: &Walk, arguments: &[&str]) -> anyhow::Result<String> {
    eventually(&arguments.join(" "), LONG, || walk.cluster.kubectl(arguments))
}

fn insist_on_applying(walk: &Walk, file: std::path::PathBuf) -> anyhow::Result<()> {
    insist(walk, &["apply", "-f", file.to_str().context("path")?]).map(drop)
}

fn applied(walk: &Walk) -> anyhow::Result<()> {
    insist_on_applying(walk, example("deployment.yaml"))?;
    insist_on_applying(walk, example("service.yaml"))?;
    insist(walk, &["set", "image", "deployment/notepad", "notepad=coxswain.local/notepad:1"])?;
    runs(walk, "1")
}

fn served(walk: &Walk) -> anyhow::Result<()> {
    let get = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 5 notepad 80";
    eventually("an answer inside", LONG, || {
        let page = walk.in_reader(&["sh", "-c", get])?;
        anyhow::ensure!(page.contains("host: notepad-"), "{page}");
        Ok(())
    })?;
    eventually("answers outside, from every replica", LONG, || {
        let mut answers = Answers::default();
        (0..300).for_each(|_| answers.count(walk.cluster.http(walk.outside(), &Request::get("/"))));
        anyhow::ensure!(answers.failures.is_empty() && answers.by_host.len() == 3, "{answers:?}");
        Ok(())
    })
}

fn scaled(walk: &Walk) -> anyhow::Result<()> {
    for replicas in [10, 100, 3] {
        insist(walk, &["scale", "deployment/notepad", &format!("--replicas={replicas}")])?;
        let pods = wait_ready(&walk.api, "notepad", replicas, LONG)?;
        anyhow::ensure!(pods.values().all(|pod| restarts(pod) == 0), "{:?}", identities(&pods));
    }
    Ok(())
}

fn updated_and_undone(walk: &Walk) -> anyhow::Result<()> {
    insist(walk, &["set", "image", "deployment/notepad", "notepad=coxswain.local/notepad:2"])?;
    runs(walk, "2")?;
    undone_to(walk, "1")
}

fn paused_and_resumed(walk: &Walk) -> anyhow::Result<()> {
    set_paused(walk, true)?;
    insist(walk, &["set", "image", "deployment/notepad", "notepad=coxswain.local/notepad:2"])?;
    runs(walk, "1").context("while paused")?;
    set_paused(walk, false)?;
    runs(walk, "2").context("after resuming")
}

/// `kubectl rollout pause` refuses to pause twice, so its repetition is told from its failure by what is there.
fn set_paused(walk: &Walk, paused: bool) -> anyhow::Result<()> {
    eventually("pause and resume", LONG, || {
        if (walk.api.get(DEPLOYMENT)?["spec"]["paused"] == true) != paused {
            let verb = if paused { "pause" } else { "resume" };
            walk.cluster.kubectl(&["rollout", verb, "deployment/notepad"])?;
        }
        Ok(())
    })
}

fn stalled_and_undone(walk: &Walk) -> anyhow::Result<()> {
    insist(walk, &["set", "image", "deployment/notepad", "notepad=coxswain.local/notepad:missing"])?;
    waits_for_its_image(walk)?;
    undone_to(walk, "2")
}

/// Goes back to a version by the number of its revision, so that a second attempt does not go back once more.
fn undone_to(walk: &Walk, version: &str) -> anyhow::Result<()> {
    let image = format!("coxswain.local/notepad:{version}");
    eventually("undo", LONG, || {
        let sets = walk.api.get(REPLICA_SETS)?;
        let mut sets = sets["items"].as_array().into_iter().flatten();
        let set = sets.find(|set| set["spec"]["template"]["spec"]["containers"][0]["image"] == *image);
        let annotations = &set.context("no such revision")?["metadata"]["annotations"];
        let revision = annotations["deployment.kubernetes.io/revision"].as_str().context("no revision")?;
        let target = format!("--to-revision={revision}");
        walk.cluster.kubectl(&["rollout", "undo", "deployment/notepad", &target])
    })?;
    runs(walk, version)
}

fn deleted_and_killed(walk: &Walk) -> anyhow::Result<()> {
    let pods = wait_ready(&walk.api, "notepad", 3, LONG)?;
    let deleted = pods.keys().next().context("no pod")?.trim_start_matches("default/").to_owned();
    insist(walk, &["delete", "pod", &deleted, "--ignore-not-found"])?;
    let pods = wait_ready(&walk.api, "notepad", 3, LONG)?;
    anyhow::ensure!(!pods.contains_key(&format!("default/{deleted}")), "{deleted} is still there");
    let (name, pod) = pods.iter().next().context("no pod")?;
    let pid = healing::process_of(walk, &container_id(pod).context("no container")?)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    restarted_once(walk, "notepad", name)
}

fn restarted_once(walk: &Walk, app: &str, name: &str) -> anyhow::Result<()> {
    walk.api.wait("the container's restart", &labelled(app), LONG, |pods: &Watched| {
        pods.get(name).filter(|pod| restarts(pod) == 1 && is_ready(pod)).map(drop)
    })
}

fn probed(walk: &Walk) -> anyhow::Result<()> {
    insist(walk, &["delete", "pod", "probed", "--ignore-not-found"])?;
    insist_on_applying(walk, manifest("probed.yaml"))?;
    let pods = wait_ready(&walk.api, "probed", 1, LONG)?;
    let pid = healing::process_of(walk, &container_id(&pods["default/probed"]).context("no container")?)?;
    std::fs::remove_file(format!("/proc/{pid}/root/tmp/alive")).context("the file of the liveness probe")?;
    restarted_once(walk, "probed", "default/probed")?;
    insist(walk, &["exec", "probed", "--", "rm", "-f", "/tmp/ready"])?;
    healing::endpoints(walk, 0)?;
    insist(walk, &["exec", "probed", "--", "touch", "/tmp/ready"])?;
    healing::endpoints(walk, 1)
}

fn reconfigured(walk: &Walk) -> anyhow::Result<()> {
    for theme in ["blue", "light"] {
        let file = format!("{{\"theme\": \"{theme}\"}}\n");
        let change = json!({"data": {"settings.json": file}}).to_string();
        insist(walk, &["patch", "configmap", "notepad-settings", "--type=merge", "-p", &change])?;
        eventually("the change in the mounted file", LONG, || {
            let found = walk.in_reader(&["cat", "/etc/settings/settings.json"])?;
            anyhow::ensure!(found == file, "{found:?}");
            Ok(())
        })?;
    }
    Ok(())
}
