//! The figures of a single node, on the machine this runs on:
//! `cargo run --release -p coxswain-e2e --example figures`. It measures and prints; it asserts nothing about time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use coxswain_e2e::pods::{is_ready, labelled, wait_ready};
use coxswain_testkit::{Api, BUSYBOX, Cluster, Options, Watched};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(30);
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn main() -> anyhow::Result<()> {
    let cluster = Cluster::new(Options { log: Some("warn".into()), ..Options::default() })?;
    cluster.import_images()?;
    figure(
        "release binary",
        format!("{:.1} MiB", std::fs::metadata(cluster.binary())?.len() as f64 / f64::from(1 << 20)),
    );
    start(&cluster)?;
    let api = cluster.api()?;
    wait_for_account(&api)?;
    twenty_pods(&api)?;
    memory(&cluster, &api)?;
    hundred_replicas(&api)?;
    Ok(())
}

fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name:<48} {value}");
}

fn start(cluster: &Cluster) -> anyhow::Result<()> {
    let began = Instant::now();
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    figure("start on an empty store → /readyz", format!("{:.2?}", began.elapsed()));
    cluster.wait_for_nodes()?;
    figure("start on an empty store → node Ready", format!("{:.2?}", began.elapsed()));
    Ok(())
}

/// Pods cannot be made before their account is.
fn wait_for_account(api: &Api) -> anyhow::Result<()> {
    api.wait("the default account", "/api/v1/namespaces/default/serviceaccounts", LONG, |accounts| {
        accounts.contains_key("default/default").then_some(())
    })
}

/// Twenty pods at once: from the answer to each one's creation to `Running` seen by a watch.
fn twenty_pods(api: &Api) -> anyhow::Result<()> {
    const COUNT: usize = 20;
    let watcher = api.clone();
    let began = Instant::now();
    let seen = std::thread::spawn(move || {
        let mut seen = BTreeMap::<String, Duration>::new();
        watcher.wait("twenty running pods", &labelled("burst"), LONG, |pods| {
            for (name, _) in pods.iter().filter(|(_, pod)| pod["status"]["phase"] == "Running") {
                seen.entry(name.clone()).or_insert_with(|| began.elapsed());
            }
            (seen.len() == COUNT).then(|| seen.clone())
        })
    });
    let mut created = BTreeMap::new();
    for number in 0..COUNT {
        let name = format!("burst-{number}");
        created.insert(format!("default/{name}"), began.elapsed());
        api.write("POST", PODS, &pod(&name, "burst"))?;
    }
    let running = seen.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    let mut took: Vec<Duration> = running.iter().map(|(name, at)| at.saturating_sub(created[name])).collect();
    took.sort();
    let percentile = |share: usize| took[(took.len() * share).div_ceil(100).max(1) - 1];
    figure(
        "20 pods at once, create → Running, p50 / p99",
        format!("{:.2?} / {:.2?}", percentile(50), percentile(99)),
    );
    remove(api, "burst")
}

fn memory(cluster: &Cluster, api: &Api) -> anyhow::Result<()> {
    for number in 0..10 {
        api.write("POST", PODS, &pod(&format!("resident-{number}"), "resident"))?;
    }
    wait_ready(api, "resident", 10, LONG)?;
    let before = cpu_time(cluster);
    // What is measured is time passing.
    std::thread::sleep(IDLE);
    let used: Duration = cpu_time(cluster)
        .iter()
        .map(|(thread, now)| now.saturating_sub(*before.get(thread).unwrap_or(&Duration::ZERO)))
        .sum();
    let used = used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let server = cluster.server_pid()?;
    figure("resident with 10 pods: server (RSS / PSS)", memory_of(server)?);
    let shims: Vec<i32> =
        cluster.processes().into_iter().filter(|pid| *pid != server && is_shim(*pid)).collect();
    let total: u64 = shims.iter().filter_map(|pid| kib(*pid, "smaps_rollup", "Pss:").ok()).sum();
    let shim = shims.first().context("no shim")?;
    figure("a pod's shim (RSS / PSS)", memory_of(*shim)?);
    figure("all shims of 10 pods (PSS)", format!("{:.1} MiB", total as f64 / 1024.0));
    figure("idle CPU of everything, 10 pods, 30 s", format!("{used:.2} % of a core"));
    remove(api, "resident")
}

fn hundred_replicas(api: &Api) -> anyhow::Result<()> {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
        "spec": {"replicas": 100, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": pod("", "many")["spec"].clone()}}});
    let began = Instant::now();
    api.write("POST", DEPLOYMENTS, &deployment)?;
    api.wait("a hundred ready pods", &labelled("many"), LONG, |pods: &Watched| {
        (pods.values().filter(|pod| is_ready(pod)).count() == 100).then_some(())
    })?;
    figure("Deployment of 100 replicas, all Ready", format!("{:.2?}", began.elapsed()));
    Ok(())
}

fn pod(name: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": BUSYBOX, "command": ["sleep", "1000000"]}]}})
}

fn remove(api: &Api, app: &str) -> anyhow::Result<()> {
    api.write("DELETE", &labelled(app), &json!({"apiVersion": "v1", "kind": "DeleteOptions"}))?;
    api.wait("the end of the pods", &labelled(app), LONG, |pods| pods.is_empty().then_some(()))
}

fn is_shim(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|argument| argument == b"shim")
}

fn memory_of(pid: i32) -> anyhow::Result<String> {
    let (resident, share) = (kib(pid, "status", "VmRSS:")?, kib(pid, "smaps_rollup", "Pss:")?);
    Ok(format!("{:.1} / {:.1} MiB", resident as f64 / 1024.0, share as f64 / 1024.0))
}

fn kib(pid: i32, file: &str, field: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The time each thread of the cluster has been on a processor.
fn cpu_time(cluster: &Cluster) -> BTreeMap<PathBuf, Duration> {
    let tasks =
        cluster.processes().into_iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok());
    let time = |task: PathBuf| -> Option<(PathBuf, Duration)> {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        Some((task, Duration::from_nanos(text.split(' ').next()?.parse().ok()?)))
    };
    tasks.flatten().flatten().filter_map(|entry| time(entry.path())).collect()
}
