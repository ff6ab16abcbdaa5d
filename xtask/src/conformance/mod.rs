//! `cargo xtask conformance`: upstream's conformance suite against a cluster made for the run, and what comes of it: the
//! table by group, `docs/conformance.md`, the list of what passes.

mod digest;
mod go;
mod images;
mod options;
mod outcome;
mod ratchet;
mod registry;
mod report;
mod suite;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use anyhow::Context;

use go::Programs;
use images::Images;
use options::Options;
pub use options::USAGE;
use outcome::{Outcome, State};
use suite::Suite;

/// Runs the task.
///
/// # Errors
/// Something could not be built or started; with `--slice`, a spec that used to pass failed twice.
pub fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let options = Options::parse(arguments)?;
    let root = root.canonicalize()?;
    let target = root.join("target/conformance");
    std::fs::create_dir_all(&target)?;
    let cache = cache()?;
    let programs = Programs::build(&root, &cache)?;
    let list = root.join("conformance/passing.txt");
    let specs = suite::specs(&programs)?;
    let chosen = choose(&options, &specs, &list, &target)?;
    if options.list {
        chosen.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    anyhow::ensure!(!chosen.is_empty(), "no spec was chosen");
    let images = Images::make(&programs, &cache)?;
    let scratch = tempfile::tempdir()?;
    let cox = scratch.path().join("cox");
    std::fs::copy(binary(&options)?, &cox)?;
    eprintln!("{} specs, {} at a time", chosen.len(), options.procs);
    let suite = Suite::start(cox, &programs, images, &target, &options)?;
    let begin = Instant::now();
    if options.slice_minutes.is_some() {
        return slice(&suite, &chosen, &target);
    }
    let mut worst: BTreeMap<String, Outcome> = BTreeMap::new();
    let mut new = 0;
    for _ in 0..options.rerun {
        let outcomes = suite.run((!options.whole()).then_some(&chosen[..]))?;
        new += ratchet::advance(&outcomes, &target.join("streaks.json"), &list)?;
        for outcome in outcomes {
            let before = worst.get(&outcome.name).map(|before| before.state);
            if before.is_none_or(|before| before == State::Passed) {
                worst.insert(outcome.name.clone(), outcome);
            }
        }
    }
    let outcomes: Vec<Outcome> = worst.into_values().collect();
    let took = begin.elapsed();
    leave(&suite, &outcomes, &target)?;
    for outcome in outcomes.iter().filter(|outcome| outcome.state != State::Passed) {
        println!("{}\n    {}", outcome.name, outcome.reason());
    }
    println!(
        "\n{}\n{} s; {new} specs are new in conformance/passing.txt",
        report::table(&outcomes),
        took.as_secs()
    );
    let known = merge(outcomes, &target.join("known.json"))?;
    if specs.iter().all(|name| known.contains_key(name)) {
        std::fs::create_dir_all(root.join("docs"))?;
        let known: Vec<Outcome> = specs.iter().filter_map(|name| known.get(name)).cloned().collect();
        let whole = options.whole().then_some((took, options.procs));
        std::fs::write(root.join("docs/conformance.md"), report::page(&known, whole))?;
    }
    Ok(())
}

/// Runs a part of what passes; a second time what failed.
fn slice(suite: &Suite, chosen: &[String], target: &Path) -> anyhow::Result<()> {
    let names = |outcomes: &[Outcome]| -> Vec<String> {
        let bad = outcomes.iter().filter(|outcome| outcome.state == State::Failed);
        bad.map(|outcome| outcome.name.clone()).collect()
    };
    let outcomes = suite.run(Some(chosen))?;
    println!("{}", report::table(&outcomes));
    let failed = names(&outcomes);
    if failed.is_empty() {
        return Ok(());
    }
    println!("again, after failing once:\n{}", failed.join("\n"));
    let outcomes = suite.run(Some(&failed))?;
    leave(suite, &outcomes, target)?;
    let failed = names(&outcomes);
    for outcome in outcomes.iter().filter(|outcome| outcome.state == State::Failed) {
        println!("{}\n    {}", outcome.name, outcome.reason());
    }
    anyhow::ensure!(failed.is_empty(), "{} specs that used to pass failed twice", failed.len());
    Ok(())
}

/// The last outcome of every spec that has run in this clone.
fn merge(outcomes: Vec<Outcome>, path: &Path) -> anyhow::Result<BTreeMap<String, Outcome>> {
    let mut known: BTreeMap<String, Outcome> = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => BTreeMap::new(),
    };
    for outcome in outcomes {
        // That a run ended before says nothing new.
        if outcome.state != State::NotRun || !known.contains_key(&outcome.name) {
            known.insert(outcome.name.clone(), outcome);
        }
    }
    std::fs::write(path, serde_json::to_vec(&known)?)?;
    Ok(known)
}

/// Keeps what helps to find out why a spec failed, and what `--failed` chooses.
fn leave(suite: &Suite, outcomes: &[Outcome], target: &Path) -> anyhow::Result<()> {
    let log = suite.server_log()?;
    std::fs::write(target.join("server.log"), &log)?;
    std::fs::write(target.join("last.json"), serde_json::to_vec_pretty(outcomes)?)?;
    report::failures(outcomes, &log, &target.join("failed")).context("keeping the logs")
}

fn choose(options: &Options, specs: &[String], list: &Path, target: &Path) -> anyhow::Result<Vec<String>> {
    if let Some(minutes) = options.slice_minutes {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let seed = options.seed.unwrap_or(now);
        println!("--slice {minutes} --seed {seed}");
        let known = ratchet::slice(&ratchet::read(list)?, minutes, options.procs, seed);
        let unknown: Vec<&String> = known.iter().filter(|name| !specs.contains(name)).collect();
        anyhow::ensure!(unknown.is_empty(), "conformance/passing.txt names what is no spec: {unknown:?}");
        return Ok(known);
    }
    let last: Vec<Outcome> = match options.failed {
        true => serde_json::from_slice(&std::fs::read(target.join("last.json")).context("no last run")?)?,
        false => Vec::new(),
    };
    let failed =
        |name: &str| last.iter().any(|outcome| outcome.name == name && outcome.state != State::Passed);
    let wanted = |name: &str| {
        let sig = outcome::sig(name).trim_start_matches("sig-");
        (options.sig.is_empty() || options.sig.iter().any(|wanted| wanted == sig))
            && (options.focus.is_empty() || options.focus.iter().any(|text| name.contains(text)))
            && (!options.failed || failed(name))
    };
    Ok(specs.iter().filter(|name| wanted(name)).cloned().collect())
}

/// Where programs and images are kept between runs and clones.
fn cache() -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cache = base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("coxswain/conformance");
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// The binary to test: `COX_BIN`, or built now.
fn binary(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("COX_BIN") {
        return Ok(PathBuf::from(binary));
    }
    let mut build = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    build.args(["build", "--quiet", "--workspace", "--bins"]).args(options.release.then_some("--release"));
    anyhow::ensure!(build.status().context("running cargo")?.success(), "cox does not build");
    let profile = if options.release { "release" } else { "debug" };
    let own = std::env::current_exe()?;
    let directory =
        own.parent().and_then(Path::parent).context("this program is not in a target directory")?;
    Ok(directory.join(profile).join("cox"))
}
