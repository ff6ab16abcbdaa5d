//! Clients that controllers and deployments are written with, unchanged, against `cox server --no-node`: client-go,
//! controller-runtime, Helm, the Python client and kube-rs.
//!
//! Those of other languages are skipped, in words, where their toolchain is missing, unless `CI` is set.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use coxswain_testkit::{Cluster, Options, is_root};

type Client = fn(&Cluster) -> anyhow::Result<()>;

const CLIENTS: [(&str, &str, Client); 4] = [
    ("client-go", "go", |cluster| program(cluster, "informers")),
    ("controller-runtime", "go", |cluster| program(cluster, "operator")),
    ("Helm", "go", helm),
    ("the Python client", "python3", python),
];

#[test]
fn clients_run_unchanged() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    if has("go") {
        build()?;
    }
    let cluster = Cluster::start(Options { no_node: true, ..Options::default() })?;
    for (name, needs, client) in CLIENTS {
        if has(needs) {
            client(&cluster).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            eprintln!("ok: {name}");
        } else {
            assert!(std::env::var_os("CI").is_none(), "{name} needs {needs}");
            eprintln!("skipped: {name} needs {needs}");
        }
    }
    kube_rs(&cluster).unwrap_or_else(|error| panic!("kube-rs: {error:#}"));
    Ok(())
}

fn has(program: &str) -> bool {
    let version = if program == "go" { "version" } else { "--version" };
    Command::new(program).arg(version).output().is_ok_and(|output| output.status.success())
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients")
}

/// Where what is built is kept: beside cargo's own.
fn built() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients")
}

/// Builds the Go programs.
fn build() -> anyhow::Result<()> {
    std::fs::create_dir_all(built())?;
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(built()).args([
        "./informers",
        "./operator",
        "tool",
    ]);
    let status = go.env("CGO_ENABLED", "0").current_dir(source()).status()?;
    anyhow::ensure!(status.success(), "the clients do not build");
    Ok(())
}

/// Runs a client of the cluster, and gives what it printed.
fn run(cluster: &Cluster, program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = cluster.isolation().network_command("timeout");
    command.args(["--kill-after=5", "300"]).arg(program).args(arguments).current_dir(source());
    let output = command.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", cluster.directory()).output()?;
    let (said, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{} {arguments:?}: {said}{stderr}", program.display());
    Ok(said.into_owned())
}

fn program(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let said = run(cluster, &built().join(name), &[])?;
    anyhow::ensure!(said.trim() == "ok", "{said}");
    Ok(())
}

fn helm(cluster: &Cluster) -> anyhow::Result<()> {
    let helm = |arguments: &[&str]| run(cluster, &built().join("helm"), arguments);
    let greeting =
        || cluster.kubectl(&["get", "configmap", "notes-settings", "-o", "jsonpath={.data.greeting}"]);
    helm(&["install", "notes", "chart", "--wait"])?;
    anyhow::ensure!(greeting()? == "hello");
    let version =
        cluster.kubectl(&["get", "configmap", "notes-settings", "-o", "jsonpath={.data.kubernetes}"])?;
    anyhow::ensure!(version.starts_with("v1.37"), "the chart was told {version}");
    helm(&["upgrade", "notes", "chart", "--set", "greeting=goodbye", "--wait"])?;
    anyhow::ensure!(greeting()? == "goodbye");
    helm(&["rollback", "notes", "1", "--wait"])?;
    anyhow::ensure!(greeting()? == "hello");
    let history = helm(&["history", "notes", "--output=json"])?;
    anyhow::ensure!(history.contains("Rollback to 1"), "{history}");
    helm(&["uninstall", "notes", "--wait"])?;
    let left = cluster.kubectl(&["get", "configmaps,deployments,secrets", "-o", "name"])?;
    anyhow::ensure!(!left.contains("notes"), "{left}");
    Ok(())
}

fn python(cluster: &Cluster) -> anyhow::Result<()> {
    let environment = built().join("python");
    let python = environment.join("bin/python");
    if !python.exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&environment).status()?;
        anyhow::ensure!(made.success(), "python3 makes no virtual environment");
    }
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
    let installed = install.arg(source().join("python/requirements.txt")).status().context("pip")?;
    anyhow::ensure!(installed.success(), "the Python client is not installed");
    let said = run(cluster, &python, &["python/check.py"])?;
    anyhow::ensure!(said.trim() == "ok", "{said}");
    Ok(())
}

fn kube_rs(cluster: &Cluster) -> anyhow::Result<()> {
    let said = run(cluster, Path::new(env!("CARGO_BIN_EXE_kube_rs")), &[])?;
    anyhow::ensure!(said.trim() == "ok", "{said}");
    Ok(())
}
