//! The suite against a cluster of its own: the product in fresh namespaces, the registry beside it, ginkgo inside.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use coxswain_testkit::{Cluster, NODE_IP};
use serde_json::json;

use super::go::Programs;
use super::images::Images;
use super::options::Options;
use super::outcome::{self, Outcome};
use super::registry;

/// Where the registry listens: a port that no spec asks for.
const REGISTRY_PORT: u16 = 5959;
/// Nodes besides the server's: the suite wants two in all.
const AGENTS: u8 = 1;
/// What ginkgo leaves behind: its report, the same as JUnit, and what it printed.
const LEFT: [&str; 3] = ["report.json", "junit.xml", "ginkgo.log"];
const MARK: &str = "[Conformance]";

/// Names of all specs of the suite.
///
/// # Errors
/// The suite does not list them.
pub fn specs(programs: &Programs) -> anyhow::Result<Vec<String>> {
    let report = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(programs.suite());
    command.args([
        "--ginkgo.dry-run",
        "--ginkgo.focus",
        r"\[Conformance\]",
        "--provider=skeleton",
        "--ginkgo.json-report",
    ]);
    let output = command.arg(report.path()).output().context("running the suite")?;
    anyhow::ensure!(output.status.success(), "the suite: {}", String::from_utf8_lossy(&output.stderr));
    let outcomes = outcome::read(report.path(), |name| name.contains(MARK))?;
    Ok(outcomes.into_iter().map(|outcome| outcome.name).collect())
}

/// A cluster with everything the suite needs.
pub struct Suite<'a> {
    cluster: Cluster,
    programs: &'a Programs,
    directory: PathBuf,
    procs: u32,
    minutes: u32,
}

impl<'a> Suite<'a> {
    /// Starts a cluster of `cox`. What runs leave behind goes to `directory`.
    ///
    /// # Errors
    /// The cluster does not become ready.
    pub fn start(
        cox: PathBuf,
        programs: &'a Programs,
        images: Images,
        directory: &Path,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let config = scratch.path().join("registries.json");
        let mirror = format!("{NODE_IP}:{REGISTRY_PORT}");
        let registries = json!({"registries": {
            "registry.k8s.io": {"mirrors": [mirror]},
            mirror.as_str(): {"plainHttp": true},
        }});
        std::fs::write(&config, registries.to_string())?;
        let log = std::env::var("COX_LOG").unwrap_or_else(|_| "info".to_owned());
        let cluster = Cluster::new(coxswain_testkit::Options {
            log: Some(log),
            arguments: vec!["--registry-config".to_owned(), config.display().to_string()],
            binary: Some(cox),
            alongside: true,
            agents: AGENTS,
            ..coxswain_testkit::Options::default()
        })?;
        let address: SocketAddr = mirror.parse()?;
        registry::serve(cluster.isolation().listen(address)?, images);
        cluster.start_server()?;
        cluster.wait_until_ready()?;
        for agent in cluster.agents() {
            cluster.start_agent(agent)?;
        }
        cluster.wait_for_nodes()?;
        std::fs::create_dir_all(directory)?;
        Ok(Self {
            cluster,
            programs,
            directory: directory.to_owned(),
            procs: options.procs,
            minutes: options.slice_minutes.unwrap_or(options.minutes),
        })
    }

    /// Runs `specs`, or all of them.
    ///
    /// # Errors
    /// Ginkgo does not run or leaves no report.
    pub fn run(&self, specs: Option<&[String]>) -> anyhow::Result<Vec<Outcome>> {
        // Other runs in this clone may write at the same time: what is left behind is copied at the end.
        let left = tempfile::tempdir_in(self.cluster.directory())?;
        let left = left.path();
        let scratch = self.cluster.directory().join("scratch");
        std::fs::create_dir_all(&scratch)?;
        let text = |path: &Path| path.display().to_string();
        let isolation = self.cluster.isolation();
        let mut ginkgo = isolation.command(&text(&self.programs.path("ginkgo")));
        ginkgo.args([
            "--output-interceptor-mode=none",
            "--silence-skips",
            "--no-color",
            "--json-report=report.json",
        ]);
        ginkgo.arg(format!("--procs={}", self.procs)).arg(format!("--timeout={}m", self.minutes));
        ginkgo.args(["--junit-report=junit.xml", &format!("--output-dir={}", text(left))]);
        match specs {
            Some(specs) => ginkgo.args(specs.iter().map(|name| format!(r"--focus=\Q{name}\E$"))),
            None => ginkgo.arg(r"--focus=\[Conformance\]"),
        };
        ginkgo.arg(self.programs.suite()).arg("--").arg("--provider=skeleton");
        ginkgo.arg(format!("--kubeconfig={}", text(&self.cluster.kubeconfig())));
        ginkgo.arg(format!("--kubectl-path={}", text(&self.programs.path("kubectl"))));
        ginkgo.arg(format!("--report-dir={}", text(&scratch)));
        ginkgo.env("TZ", "UTC").env("HOME", &scratch).env("TMPDIR", &scratch).current_dir(&scratch);
        let printed = File::create(left.join(LEFT[2]))?;
        ginkgo.stdin(Stdio::null()).stdout(printed.try_clone()?).stderr(printed);
        // Its exit code only says that something failed; the report says what.
        ginkgo.status().context("running ginkgo")?;
        let chosen = |name: &str| {
            specs.map_or_else(|| name.contains(MARK), |specs| specs.iter().any(|chosen| chosen == name))
        };
        for name in LEFT.iter().filter(|name| left.join(name).exists()) {
            std::fs::copy(left.join(name), self.directory.join(name))?;
        }
        outcome::read(&left.join(LEFT[0]), chosen)
    }

    /// The server's log so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn server_log(&self) -> anyhow::Result<String> {
        let bytes = std::fs::read(self.cluster.log_file())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Suite<'_> {
    fn drop(&mut self) {
        // A server that is stopped clears up more than one that is killed, which comes next.
        if let Err(error) = self.cluster.stop_server() {
            eprintln!("the server did not stop: {error:#}");
        }
    }
}
