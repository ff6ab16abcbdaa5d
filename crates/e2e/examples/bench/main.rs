//! Load for an API server: the same bounded work on any cluster, so that a peer runs beside us.
//!
//! `cargo run --release -p coxswain-e2e --example bench -- --kubeconfig FILE [--pods 10000 --clients 64 --seconds 5
//! --watchers 200 --writes 40 --namespace bench --pids A,B --only create,get]` prints a figure a line. `--pids` names the
//! processes of the server on this machine (kube-apiserver and etcd, or `cox`): their CPU time an operation and their memory
//! are figures that hold on a busy machine, rates hardly do. An answer that is not 2xx ends the run.
//!
//! `--serve embedded` or `--serve etcd` instead of a kubeconfig measures an API server of the bench's own on that engine
//! (`COX_BIN` names another binary), and how long it takes to start with what is stored: `--pods 100000 --only create,start`.
#![allow(missing_docs)]

mod client;
mod load;
mod own;
mod process;
mod watches;

use std::sync::Arc;

use anyhow::{Context, bail};

use client::Target;
use load::Load;
use own::Own;
use process::Processes;

/// What the command line says.
pub struct Arguments {
    kubeconfig: String,
    namespace: String,
    pods: usize,
    clients: usize,
    seconds: u64,
    watchers: usize,
    writes: u64,
    processes: Processes,
    only: Vec<String>,
    serve: Option<String>,
}

impl Arguments {
    fn parse() -> anyhow::Result<Self> {
        let mut out = Self {
            kubeconfig: std::env::var("KUBECONFIG").unwrap_or_default(),
            namespace: "bench".into(),
            pods: 10_000,
            clients: 64,
            seconds: 5,
            watchers: 200,
            writes: 40,
            processes: Processes::default(),
            only: Vec::new(),
            serve: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--kubeconfig" => out.kubeconfig = value,
                "--namespace" => out.namespace = value,
                "--pods" => out.pods = value.parse()?,
                "--clients" => out.clients = value.parse()?,
                "--seconds" => out.seconds = value.parse()?,
                "--watchers" => out.watchers = value.parse()?,
                "--writes" => out.writes = value.parse()?,
                "--pids" => out.processes.set(process::pids(&value)?),
                "--serve" => out.serve = Some(value),
                "--only" => out.only = value.split(',').map(str::to_owned).collect(),
                _ => bail!("{flag} is no flag of this command"),
            }
        }
        Ok(out)
    }

    /// Whether a phase is to run.
    fn runs(&self, phase: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == phase)
    }
}

/// Prints a figure.
pub fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name:<32} {value}");
}

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse()?;
    // Before there are threads of the runtime: the server's start waits.
    let own = match &arguments.serve {
        None => None,
        Some(engine) => {
            let Some(own) = Own::start(engine)? else { return Ok(()) };
            arguments.kubeconfig = own.kubeconfig().display().to_string();
            arguments.processes.set(own.processes()?);
            Some(own)
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(arguments, own))
}

async fn run(arguments: Arguments, own: Option<Own>) -> anyhow::Result<()> {
    let arguments = Arc::new(arguments);
    let target = Target::read(&arguments.kubeconfig, own.as_ref().map(Own::isolation))?;
    let target = Arc::new(target);
    let load = Load::new(arguments.clone(), target.clone());
    arguments.processes.resident("resident_before");
    load.prepare().await?;
    for phase in load::PHASES {
        if arguments.runs(phase.name) {
            load.run(phase).await?;
        }
        if phase.name == "patch" {
            if arguments.runs("watch") {
                watches::run(&arguments, &target, &watches::Fan::of_pods(&arguments)).await?;
            }
            if arguments.runs("fanout") {
                load.fill_small(watches::SMALL).await?;
                watches::run(&arguments, &target, &watches::Fan::wide(&arguments)).await?;
            }
            arguments.processes.resident("resident_with_pods");
            if let Some(own) = own.as_ref().filter(|_| arguments.runs("start")) {
                own.restart()?;
                arguments.processes.set(own.processes()?);
            }
        }
    }
    arguments.processes.resident("resident_after");
    Ok(())
}
