//! What the store promises, seen from outside: kills and a full disk lose nothing, watches resume without a gap, and what is
//! backed up while serving is a cluster again. `COX_TEST_KILLS` asks for more kills than CI has time for.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use coxswain_testkit::{Api, Cluster, Options, Request, eventually, is_root};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 4;
const LONG: Duration = Duration::from_secs(60);
/// All kills, also when a hundred are asked for.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between attempts at a server that is being restarted.
const RETRY: Duration = Duration::from_millis(10);

fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"d": data}})
}

fn revision(object: &Value) -> anyhow::Result<u64> {
    Ok(object["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.parse()?)
}

/// What the server said is written: a name, by the revision it was told.
type Acknowledged = BTreeMap<u64, String>;

/// Creates, changes and deletes, and goes on where the server is away; gives what was acknowledged to be there in the end.
fn write_on(api: &Api, writer: usize, over: &AtomicBool) -> anyhow::Result<(Acknowledged, Vec<String>)> {
    let (mut acknowledged, mut kept) = (Acknowledged::new(), Vec::new());
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{writer}-{number}");
        let Ok(created) = api.write("POST", CONFIG_MAPS, &config_map(&name, "1")) else {
            std::thread::sleep(RETRY);
            continue;
        };
        acknowledged.insert(revision(&created)?, name.clone());
        kept.push(name.clone());
        let path = format!("{CONFIG_MAPS}/{name}");
        if let Ok(changed) = api.write("PATCH", &path, &json!({"data": {"d": "2"}})) {
            acknowledged.insert(revision(&changed)?, name.clone());
        }
        if number % 3 == 0 {
            // Whether or not there is an answer, it may be gone.
            kept.pop();
            let _ = api.send(&Request::with_body("DELETE", &path, "application/json", "{}".to_owned()));
        }
    }
    Ok((acknowledged, kept))
}

/// Follows every event, over all restarts, until the revision that the end is told by.
fn watch_on(api: &Api, mut at: u64, last: &str) -> anyhow::Result<Acknowledged> {
    let mut seen = Acknowledged::new();
    let mut over = false;
    let end = Instant::now() + PATIENCE;
    while !over {
        anyhow::ensure!(Instant::now() < end, "{last} was not seen in {PATIENCE:?}; the newest was {at}");
        let from = at.to_string();
        let followed = api.watch(CONFIG_MAPS, &from, |event| {
            let object = &event["object"];
            anyhow::ensure!(event["type"] != "ERROR", "the watch did not resume: {event}");
            let now = revision(object)?;
            anyhow::ensure!(now > at, "revision {now} after {at}");
            at = now;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            seen.insert(now, name.to_owned());
            over = name == last;
            Ok(over)
        });
        match followed {
            Err(error) if error.to_string().contains("revision") || error.to_string().contains("resume") => {
                return Err(error);
            }
            _ => std::thread::sleep(RETRY),
        }
    }
    Ok(seen)
}

#[test]
fn kills_lose_nothing_and_watches_resume_without_a_gap() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let kills: usize = std::env::var("COX_TEST_KILLS").map_or(Ok(8), |kills| kills.parse())?;
    let seed: u64 =
        std::env::var("COX_TEST_SEED").map_or_else(|_| Ok(rand::random()), |seed| seed.parse())?;
    eprintln!("COX_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let arguments = vec!["--no-controllers".to_owned()];
    let cluster = Cluster::start(Options { no_node: true, arguments, ..Options::default() })?;
    let api = cluster.api()?;
    let from = revision(&api.get(CONFIG_MAPS)?)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watchers: Vec<_> = (0..2).map(|_| scope.spawn(|| watch_on(&api, from, "the-last"))).collect();
        let (api, over) = (&api, &over);
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write_on(api, writer, over))).collect();
        let killed = (0..kills).try_for_each(|_| {
            // The moment of a crash is what the seed says.
            std::thread::sleep(Duration::from_millis(random.random_range(0..250)));
            cluster.kill_server()?;
            cluster.start_server()?;
            cluster.wait_until_ready()
        });
        over.store(true, Ordering::Relaxed);
        let (mut acknowledged, mut kept) = (Acknowledged::new(), Vec::new());
        for writer in writers {
            let (more, names) = writer.join().unwrap_or_else(|_| panic!("a writer panicked"))?;
            acknowledged.extend(more);
            kept.extend(names);
        }
        killed?;
        api.write("POST", CONFIG_MAPS, &config_map("the-last", ""))?;
        for watcher in watchers {
            let seen = watcher.join().unwrap_or_else(|_| panic!("a watcher panicked"))?;
            for (revision, name) in &acknowledged {
                let around: Vec<_> = seen.range(revision.saturating_sub(3)..revision + 3).collect();
                anyhow::ensure!(
                    seen.get(revision) == Some(name),
                    "{name} at {revision} was not seen: {around:?}"
                );
            }
        }
        let list = api.get(CONFIG_MAPS)?;
        let names: Vec<&Value> = list["items"].as_array().context("no list")?.iter().collect();
        for name in &kept {
            anyhow::ensure!(
                names.iter().any(|object| object["metadata"]["name"] == **name),
                "{name} is lost"
            );
        }
        eprintln!("{kills} kills: {} acknowledged writes kept and seen once", acknowledged.len());
        Ok(())
    })
}

/// Mounts a memory file system of a size for the store, in the mount namespace of the cluster; or changes its size.
fn mount(cluster: &Cluster, options: &str) -> anyhow::Result<()> {
    let directory = cluster.data_dir().join("server/db");
    std::fs::create_dir_all(&directory)?;
    let mut command = cluster.isolation().command("mount");
    let status = command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&directory).status()?;
    anyhow::ensure!(status.success(), "mount {options}");
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let arguments = vec!["--no-controllers".to_owned()];
    let cluster = Cluster::new(Options { no_node: true, arguments, ..Options::default() })?;
    mount(&cluster, "size=16m")?;
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    let api = cluster.api()?;
    let data = "x".repeat(200_000);
    let create = |name: &str| {
        let body = config_map(name, &data).to_string();
        api.send(&Request::with_body("POST", CONFIG_MAPS, "application/json", body))
    };
    let mut written = Vec::new();
    let refused = loop {
        let name = format!("n{}", written.len());
        let response = create(&name)?;
        if response.code != 201 {
            break response;
        }
        anyhow::ensure!(written.len() < 200, "the disk does not become full");
        written.push(name);
    };
    let status: Value = serde_json::from_slice(&refused.body)?;
    anyhow::ensure!(refused.code == 503 && status["reason"] == "ServiceUnavailable", "{status}");
    anyhow::ensure!(status["message"].as_str().is_some_and(|text| text.contains("full")), "{status}");
    anyhow::ensure!(api.send(&Request::get("/livez"))?.code == 200, "a restart makes no room");
    anyhow::ensure!(api.send(&Request::get("/readyz"))?.code == 500, "readiness tells");
    let all_there = || {
        let list = api.get(CONFIG_MAPS)?;
        let items = list["items"].as_array().context("no list")?;
        for name in &written {
            let there = items.iter().find(|object| object["metadata"]["name"] == **name);
            anyhow::ensure!(there.is_some_and(|object| object["data"]["d"] == data), "{name} is not whole");
        }
        anyhow::Ok(items.len())
    };
    let before = all_there()?;
    // As it is, it can be started: what is there is served.
    cluster.kill_server()?;
    cluster.start_server()?;
    eventually("the list of a server on a full disk", LONG, all_there)?;
    mount(&cluster, "remount,size=64m")?;
    eventually("a write where there is room again", LONG, || {
        let response = create("after")?;
        anyhow::ensure!(response.code == 201, "{}", response.text());
        Ok(())
    })?;
    cluster.kill_server()?;
    cluster.start_server()?;
    cluster.wait_until_ready()?;
    anyhow::ensure!(all_there()? == before + 1, "neither more nor less is there");
    eprintln!("full after {} objects of 200 kB; all are whole", written.len());
    Ok(())
}

#[test]
fn a_backup_of_a_serving_cluster_is_a_cluster() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::start(Options { no_node: true, ..Options::default() })?;
    let api = cluster.api()?;
    cluster.kubectl(&["create", "secret", "generic", "password", "--from-literal=p=hunter2"])?;
    let secret = api.get("/api/v1/namespaces/default/secrets/password")?;
    let file = cluster.directory().join("backup");
    let [data, file] = [cluster.data_dir(), file].map(|path| path.display().to_string());
    let said = cluster.cox(&["backup", &file, "--data-dir", &data])?;
    anyhow::ensure!(said.contains("Keep it as safe as the cluster's keys"), "{said}");
    let later = revision(&api.write("POST", CONFIG_MAPS, &config_map("later", ""))?)?;
    let refused = cluster.cox(&["restore", &file, "--data-dir", &data]).unwrap_err().to_string();
    anyhow::ensure!(refused.contains("exists already"), "{refused}");
    cluster.stop_server()?;
    std::fs::rename(&data, format!("{data}.old"))?;
    cluster.cox(&["restore", &file, "--data-dir", &data])?;
    cluster.start_server()?;
    // The clients of the cluster are still its clients.
    eventually("the restored cluster", LONG, || api.get("/readyz").or_else(|_| api.get("/version")))?;
    anyhow::ensure!(
        api.get("/api/v1/namespaces/default/secrets/password")? == secret,
        "the secret is the same"
    );
    let list = api.get(CONFIG_MAPS)?;
    anyhow::ensure!(revision(&list)? > later, "revisions went backwards");
    anyhow::ensure!(!list.to_string().contains("\"later\""), "what came after the backup is not in it");
    let mut told = false;
    api.watch(CONFIG_MAPS, &later.to_string(), |event| {
        told = event["object"]["code"] == 410;
        Ok(true)
    })?;
    anyhow::ensure!(told, "who resumes a watch is told to list anew");
    Ok(())
}
