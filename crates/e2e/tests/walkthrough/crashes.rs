//! Step 7: the server is killed again and again while pods come and go, objects are written and requests are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coxswain_e2e::load::Load;
use coxswain_e2e::pods::{identities, labelled, restarts, wait_ready};
use coxswain_testkit::{Api, Request};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::{LONG, Walk, manifest};

const KILLS: usize = 20;
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CHURN: &str = "/apis/apps/v1/namespaces/default/deployments/churn";
/// Between attempts at a server that is being restarted.
const RETRY: Duration = Duration::from_millis(20);

pub fn nothing_is_lost(walk: &mut Walk) -> anyhow::Result<String> {
    let seed = match std::env::var("COX_TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random::<u64>(),
    };
    eprintln!("    COX_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    walk.apply(manifest("churn.yaml"))?;
    wait_ready(&walk.api, "churn", 2, LONG)?;
    let settled = ["notepad", "titled", "reader", "probed"];
    let before = settled.map(|app| walk.api.get(&labelled(app)).map(|list| identities(&watched(&list))));
    let load = Load::start(&walk.cluster, walk.outside(), 1);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn(write_without_end(walk.api.clone(), stop.clone()));
    let churner = std::thread::spawn(scale_without_end(walk.api.clone(), stop.clone(), random.random()));
    let killed = kill_often(walk, &mut random);
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap_or_else(|_| panic!("the writer panicked"));
    let scaled = churner.join().unwrap_or_else(|_| panic!("the scaler panicked"));
    let answers = load.stop();
    killed?;
    walk.cluster.wait_for_node()?;
    everything_converges(walk)?;
    let after = settled.map(|app| walk.api.get(&labelled(app)).map(|list| identities(&watched(&list))));
    for (before, after) in before.into_iter().zip(after) {
        let (before, after) = (before?, after?);
        anyhow::ensure!(before == after, "containers changed:\n{before:?}\n{after:?}");
    }
    let found = watched(&walk.api.get(CONFIG_MAPS)?);
    let lost: Vec<&String> =
        acknowledged.iter().filter(|name| !found.contains_key(&format!("default/{name}"))).collect();
    anyhow::ensure!(lost.is_empty(), "{} of {} objects lost: {lost:?}", lost.len(), acknowledged.len());
    let failed = answers.failures.len();
    anyhow::ensure!(
        failed == 0,
        "{failed} of {} requests failed: {:?}",
        answers.total(),
        answers.failures.first()
    );
    Ok(format!(
        "{KILLS} kills; {} acknowledged objects and {scaled} acknowledged scalings kept, {} requests served",
        acknowledged.len(),
        answers.total()
    ))
}

pub fn pods_survive_a_clean_stop(walk: &mut Walk) -> anyhow::Result<String> {
    let before = identities(&wait_ready(&walk.api, "notepad", 3, LONG)?);
    walk.cluster.stop_server()?;
    let served = walk.cluster.http(walk.outside(), &Request::get("/healthz"))?;
    anyhow::ensure!(served.code == 200, "the service answers without the server: {}", served.code);
    walk.cluster.start_server()?;
    walk.cluster.wait_until_ready()?;
    walk.cluster.wait_for_node()?;
    let after = identities(&wait_ready(&walk.api, "notepad", 3, LONG)?);
    anyhow::ensure!(before == after, "{before:?}\n{after:?}");
    Ok("SIGTERM ended it with success; the service answered meanwhile; the same containers run".to_owned())
}

/// Kills and starts; waits for readiness only now and then, so that starting is interrupted too.
fn kill_often(walk: &mut Walk, random: &mut StdRng) -> anyhow::Result<()> {
    for _ in 0..KILLS {
        // The moment of a crash is what the seed says.
        std::thread::sleep(Duration::from_millis(random.random_range(0..2500)));
        walk.cluster.kill_server()?;
        walk.cluster.start_server()?;
        if random.random_bool(0.7) {
            walk.cluster.wait_until_ready()?;
        }
    }
    walk.cluster.wait_until_ready()
}

fn everything_converges(walk: &Walk) -> anyhow::Result<()> {
    walk.api.write("PATCH", CHURN, &json!({"spec": {"replicas": 4}}))?;
    let pods = wait_ready(&walk.api, "churn", 4, LONG)?;
    for (name, pod) in &pods {
        anyhow::ensure!(restarts(pod) == 0, "{name} restarted: {}", pod["status"]["containerStatuses"]);
    }
    walk.cluster.kubectl(&["delete", "deployment", "churn"])?;
    walk.api.wait("the end of the last pod", &labelled("churn"), LONG, |pods| pods.is_empty().then_some(()))
}

/// Creates objects one after the other; gives the names of those that were acknowledged.
fn write_without_end(api: Api, stop: Arc<AtomicBool>) -> impl FnOnce() -> Vec<String> {
    move || {
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let name = format!("crash-{number}");
            number += 1;
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
            match api.write("POST", CONFIG_MAPS, &object) {
                Ok(_) => acknowledged.push(name),
                Err(_) => std::thread::sleep(RETRY),
            }
        }
        acknowledged
    }
}

/// Scales a deployment up and down; gives how often that was acknowledged.
fn scale_without_end(api: Api, stop: Arc<AtomicBool>, seed: u64) -> impl FnOnce() -> usize {
    move || {
        let mut random = StdRng::seed_from_u64(seed);
        let mut acknowledged = 0;
        while !stop.load(Ordering::Relaxed) {
            let replicas = random.random_range(1..6);
            if api.write("PATCH", CHURN, &json!({"spec": {"replicas": replicas}})).is_ok() {
                acknowledged += 1;
                // What follows from it takes about as long.
                std::thread::sleep(Duration::from_millis(random.random_range(100..1500)));
            } else {
                std::thread::sleep(RETRY);
            }
        }
        acknowledged
    }
}

fn watched(list: &serde_json::Value) -> coxswain_testkit::Watched {
    let named = |object: &serde_json::Value| {
        let metadata = &object["metadata"];
        let text = |field: &str| metadata[field].as_str().unwrap_or_default();
        (format!("{}/{}", text("namespace"), text("name")), object.clone())
    };
    list["items"].as_array().into_iter().flatten().map(named).collect()
}
