//! `cox demo`: shows a URL that answers, and leaves nothing behind when it is interrupted.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use coxswain_e2e::load::Answers;
use coxswain_testkit::{Cluster, NODE_IP, Options, Request, eventually, is_root};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_demo_answers_and_leaves_nothing_behind() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let cluster = Cluster::new(Options::default())?;
    let data_dir = cluster.directory().join("demo");
    let binary = cluster.binary().to_str().context("the binary's path")?;
    let mut command = cluster.isolation().command(binary);
    command.arg("demo").arg("--data-dir").arg(&data_dir).args(["--node-ip", NODE_IP]);
    let mut demo = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let ended = show_and_interrupt(&cluster, &mut demo, &mut said);
    let (status, cgroups) = ended.map_err(|error| error.context(format!("the demo said:\n{said}")))?;
    anyhow::ensure!(status.success(), "the demo ended with {status}:\n{said}");
    eprintln!("{said}");
    nothing_is_left(&cluster, &data_dir, &cgroups)
}

type Ended = (std::process::ExitStatus, Vec<String>);

/// Waits for the URL, uses it, interrupts the demo and waits for its end; gives the cgroups it had.
fn show_and_interrupt(cluster: &Cluster, demo: &mut Child, said: &mut String) -> anyhow::Result<Ended> {
    let mut lines = BufReader::new(demo.stdout.take().context("no output")?).lines();
    let address: SocketAddr = loop {
        let line = lines.next().context("the demo ended")??;
        said.push_str(&format!("{line}\n"));
        if let Some(url) = line.trim().strip_prefix("URL:") {
            break url.trim().trim_start_matches("http://").parse()?;
        }
    };
    let mut answers = Answers::default();
    for _ in 0..100 {
        answers.count(cluster.http(address, &Request::get("/")));
    }
    anyhow::ensure!(answers.by_host.len() == 3 && answers.failures.is_empty(), "{answers:?}");
    let cgroups = cluster.cgroups();
    anyhow::ensure!(!cgroups.is_empty(), "pods run in cgroups");
    kill(Pid::from_raw(cluster.isolation().inner(demo.id())?), Signal::SIGINT)?;
    said.extend(lines.map_while(Result::ok).map(|line| line + "\n"));
    let status = eventually("the demo's end", LONG, || demo.try_wait()?.context("it still runs"))?;
    Ok((status, cgroups))
}

fn nothing_is_left(cluster: &Cluster, data_dir: &Path, cgroups: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(!data_dir.exists(), "files are left");
    let run = |program: &str, arguments: &[&str]| -> anyhow::Result<String> {
        let output = cluster.isolation().command(program).args(arguments).output()?;
        anyhow::ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let links = run("ip", &["-brief", "link"])?;
    let ours =
        links.lines().filter(|line| !["lo", "node0", "uplink0"].iter().any(|known| line.starts_with(known)));
    anyhow::ensure!(ours.count() == 0, "network devices are left:\n{links}");
    let mounts = run("cat", &["/proc/self/mountinfo"])?;
    anyhow::ensure!(!mounts.contains(data_dir.to_str().context("path")?), "mounts are left:\n{mounts}");
    if let Ok(tables) = run("nft", &["list", "tables"]) {
        anyhow::ensure!(tables.trim().is_empty(), "nftables tables are left: {tables}");
    }
    // The namespaces' own: process 1, and what it waits for.
    let processes = cluster.processes();
    anyhow::ensure!(processes.len() <= 2, "{} processes are left", processes.len());
    for entry in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        for cgroup in cgroups {
            let left = entry.path().join(cgroup);
            anyhow::ensure!(!left.exists(), "{} is left", left.display());
        }
    }
    Ok(())
}
