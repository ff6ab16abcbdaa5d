//! The differential test: the same questions to `cox server --no-node` and to upstream's kube-apiserver.
//!
//! `cargo run -p coxswain-e2e --example differential [-- --seed N --mutations N --only KIND --manifests DIR --report FILE --surface true]` prints
//! the share of equal answers and every difference by kind. Known differences and their reasons are in `known.txt`. It needs root
//! and Go; without either it says so and ends well. `COX_BIN` names the binary, `COX_ORACLE_DIR` ready-made oracle binaries.
#![allow(missing_docs)]

mod compare;
mod corpus;
mod mutate;
mod oracle;
mod questions;
mod surface;

use std::path::PathBuf;

use coxswain_testkit::{Cluster, Options, is_root};

use compare::Report;

/// What the command line says.
pub struct Arguments {
    seed: u64,
    mutations: usize,
    only: Option<String>,
    manifests: PathBuf,
    report: Option<PathBuf>,
    /// Whether to ask about every path of every kind too.
    surface: bool,
}

impl Arguments {
    fn parse() -> anyhow::Result<Self> {
        let manifests =
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/differential/manifests"));
        let mut out = Self { seed: 1, mutations: 12, only: None, manifests, report: None, surface: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let value = arguments.next().ok_or_else(|| anyhow::anyhow!("{flag} wants a value"))?;
            match flag.as_str() {
                "--seed" => out.seed = value.parse()?,
                "--mutations" => out.mutations = value.parse()?,
                "--only" => out.only = Some(value),
                "--manifests" => out.manifests = value.into(),
                "--surface" => out.surface = value.parse()?,
                "--report" => out.report = Some(value.into()),
                other => anyhow::bail!("unknown flag {other}"),
            }
        }
        Ok(out)
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse()?;
    if !is_root() {
        return Ok(());
    }
    let Some(binaries) = oracle::build()? else {
        eprintln!("SKIPPED: the oracle is built with Go, which is not here");
        return Ok(());
    };
    let documents = corpus::load(&arguments.manifests)?;
    let options = Options {
        no_node: true,
        alongside: true,
        arguments: vec!["--no-controllers".into()],
        ..Options::default()
    };
    let cluster = Cluster::start(options)?;
    let scratch = cluster.directory().join("oracle");
    std::fs::create_dir_all(&scratch)?;
    let oracle = oracle::Oracle::start(&binaries, &cluster.isolation(), &scratch, &cluster.data_dir())?;
    let mut report = Report::default();
    let sides = questions::Sides { ours: cluster.api()?, theirs: oracle.api.clone() };
    eprintln!("seed {}, {} manifests", arguments.seed, documents.len());
    questions::ask(&sides, &documents, &arguments, &mut report)?;
    report.print(arguments.report.as_deref())?;
    Ok(())
}
