//! A server under test with its data, its namespaces and its `kubectl`. Dropping it removes all of them, also when the
//! test panics; then the server's log is shown first.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::api::Api;
use crate::http::{HttpError, Request, Response};
use crate::isolation::Isolation;
use crate::process::Process;
use crate::{busybox_archive, eventually};

/// The name of the server's node.
pub const NODE_NAME: &str = "node-1";
/// The address of the server's node.
pub const NODE_IP: &str = "192.168.77.1";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);
/// Any one `kubectl` ends within this time.
const KUBECTL_SECONDS: &str = "300";
/// The cgroup that the shims of all clusters share.
const SHIMS: &str = "coxswain-shims";
const LOG_LINES_SHOWN: usize = 120;

/// What a cluster is made of.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave the node out.
    pub no_node: bool,
    /// The log filter of the server; `info` by default.
    pub log: Option<String>,
    /// More arguments of the server.
    pub arguments: Vec<String>,
    /// The binary; by default `COX_BIN`, or the one cargo builds for the profile of this test.
    pub binary: Option<PathBuf>,
    /// Do not wait for other clusters on this machine to end.
    pub alongside: bool,
    /// Nodes besides the server's own, each an agent that joins by a token.
    pub agents: u8,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Whether it said it succeeded.
    pub ok: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A node besides the server's: `node-2` and so on.
pub struct Agent {
    /// The name of the node.
    pub name: String,
    /// The machine it runs on.
    pub isolation: Arc<Isolation>,
    /// The `cox agent`.
    pub process: Process,
    data: PathBuf,
    log: PathBuf,
    ip: String,
}

/// A cluster of one server, and agents. It is shared: one thread may kill the server while others use the cluster.
pub struct Cluster {
    isolation: Arc<Isolation>,
    directory: TempDir,
    binary: PathBuf,
    options: Options,
    server: Process,
    agents: Vec<Agent>,
    // Connects the machines; gone with it.
    _switch: Option<Isolation>,
    // Last: others wait until everything else is gone.
    _one_at_a_time: File,
}

impl Cluster {
    /// Makes the namespaces and the data directory, with nothing running yet.
    ///
    /// # Errors
    /// They cannot be made, or there is no `cox` to test.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let lock = File::create(std::env::temp_dir().join("coxswain-test.lock"))?;
        if !options.alongside {
            lock.lock().context("waiting for other test clusters")?;
        }
        let directory = tempfile::Builder::new().prefix("cox").tempdir()?;
        let binary = options.binary.clone().map_or_else(binary, Ok)?;
        let switch = (options.agents > 0).then(Isolation::switch).transpose()?;
        let isolation = match &switch {
            Some(switch) => Isolation::connected(NODE_IP, switch, 1)?,
            None => Isolation::new(NODE_IP)?,
        };
        let mut agents = Vec::new();
        for number in 2..2 + options.agents {
            let Some(switch) = &switch else { break };
            let ip = format!("192.168.77.{number}");
            agents.push(Agent {
                name: format!("node-{number}"),
                isolation: Arc::new(Isolation::connected(&ip, switch, number)?),
                process: Process::default(),
                data: directory.path().join(format!("d{number}")),
                log: directory.path().join(format!("agent-{number}.log")),
                ip,
            });
        }
        Ok(Self {
            isolation: Arc::new(isolation),
            directory,
            binary,
            options,
            server: Process::default(),
            agents,
            _switch: switch,
            _one_at_a_time: lock,
        })
    }

    /// A cluster that is ready; with a node, the node is too, and it has the notepad's and the busybox images.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let cluster = Self::new(options)?;
        if !cluster.options.no_node {
            cluster.import_images()?;
        }
        cluster.start_server()?;
        cluster.wait_until_ready()?;
        for agent in &cluster.agents {
            cluster.start_agent(agent)?;
        }
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    /// Puts the images of the tests into the data directory.
    ///
    /// # Errors
    /// `cox image` fails.
    pub fn import_images(&self) -> anyhow::Result<()> {
        let archive = self.directory.path().join("busybox.tar");
        busybox_archive(&archive)?;
        let archive = path_text(&archive);
        for data in self.agents.iter().map(|agent| agent.data.clone()).chain([self.data_dir()]) {
            self.cox(&["image", "notepad", "--data-dir", path_text(&data)])?;
            self.cox(&["image", "import", "--data-dir", path_text(&data), archive])?;
        }
        Ok(())
    }

    /// Runs the binary under test to its end.
    ///
    /// # Errors
    /// It fails.
    pub fn cox(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.isolation.command(path_text(&self.binary)).args(arguments).output()?;
        finish(&format!("cox {}", arguments.join(" ")), output)
    }

    /// More arguments for the server's next start.
    pub fn add_arguments(&mut self, arguments: &[String]) {
        self.options.arguments.extend_from_slice(arguments);
    }

    /// Starts the server; does not wait for it.
    ///
    /// # Errors
    /// It runs already or cannot run.
    pub fn start_server(&self) -> anyhow::Result<()> {
        let mut command = self.isolation.command(path_text(&self.binary));
        command.arg("server").arg("--data-dir").arg(self.data_dir());
        command.args(["--bind-address", NODE_IP, "--node-ip", NODE_IP, "--node-name", NODE_NAME]);
        if self.options.no_node {
            command.arg("--no-node");
        }
        command.args(&self.options.arguments);
        self.start_process(&self.server, &self.isolation, command, &self.log_file()).context("the server")
    }

    fn start_process(
        &self,
        process: &Process,
        isolation: &Isolation,
        mut command: Command,
        log: &Path,
    ) -> anyhow::Result<()> {
        command.env("NO_COLOR", "1");
        if let Some(filter) = &self.options.log {
            command.env("COX_LOG", filter);
        }
        process.start(isolation, command, log)
    }

    /// Starts an agent with a token made for it; does not wait for it.
    ///
    /// # Errors
    /// There is no token, or the agent cannot run.
    pub fn start_agent(&self, agent: &Agent) -> anyhow::Result<()> {
        let kubeconfig = self.kubeconfig();
        let token = self.cox(&["token", "create", "--quiet", "--kubeconfig", path_text(&kubeconfig)])?;
        self.run_agent(agent, &["--token", token.trim()])
    }

    /// Starts an agent that has joined before.
    ///
    /// # Errors
    /// The agent cannot run.
    pub fn restart_agent(&self, agent: &Agent) -> anyhow::Result<()> {
        self.run_agent(agent, &[])
    }

    fn run_agent(&self, agent: &Agent, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = agent.isolation.command(path_text(&self.binary));
        command.arg("agent").arg("--data-dir").arg(&agent.data);
        command.args(["--server", &format!("https://{NODE_IP}:6443")]).args(arguments);
        command.args(["--node-ip", &agent.ip, "--node-name", &agent.name]);
        // What the server is told of registries concerns every node.
        let registries = self.options.arguments.windows(2).find(|words| words[0] == "--registry-config");
        command.args(registries.unwrap_or_default());
        self.start_process(&agent.process, &agent.isolation, command, &agent.log).context("the agent")
    }

    /// The nodes besides the server's.
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// Waits until `/readyz` says ok.
    ///
    /// # Errors
    /// It does not, or the server ends.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        eventually("the server's readiness", START, || {
            self.server.check().context("the server")?;
            let response = self.api()?.send(&Request::get("/readyz"))?;
            anyhow::ensure!(response.code == 200, "/readyz: {} {}", response.code, response.text());
            Ok(())
        })
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    /// They do not become so.
    pub fn wait_for_nodes(&self) -> anyhow::Result<()> {
        let own = (!self.options.no_node).then_some(NODE_NAME);
        let names: Vec<&str> = own.into_iter().chain(self.agents.iter().map(|agent| &*agent.name)).collect();
        self.api()?.wait("the nodes' readiness", "/api/v1/nodes", START, |nodes| {
            let ready =
                |name| nodes.get(&format!("/{name}")).is_some_and(|node| has_condition(node, "Ready"));
            names.iter().all(ready).then_some(())
        })
    }

    /// Kills the server as a power cut would: with SIGKILL. What it started goes on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_server(&self) -> anyhow::Result<()> {
        self.server.kill().context("the server")
    }

    /// Stops the server with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end, or says it failed.
    pub fn stop_server(&self) -> anyhow::Result<()> {
        self.server.stop().context("the server")
    }

    /// The host's id of the server's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn server_pid(&self) -> anyhow::Result<i32> {
        self.server.pid().context("the server")
    }

    /// The host's ids of all processes of the cluster: server, agents, shims, containers.
    pub fn processes(&self) -> Vec<i32> {
        self.machines().flat_map(Isolation::processes).collect()
    }

    fn machines(&self) -> impl Iterator<Item = &Isolation> {
        self.agents.iter().map(|agent| &*agent.isolation).chain([&*self.isolation])
    }

    /// The topmost cgroups that are this cluster's alone.
    pub fn cgroups(&self) -> Vec<String> {
        let mut cgroups = cgroups_of(&self.processes());
        cgroups.remove(SHIMS);
        cgroups.into_iter().collect()
    }

    /// A client of the API server.
    ///
    /// # Errors
    /// There is no `admin.kubeconfig`.
    pub fn api(&self) -> anyhow::Result<Api> {
        Api::from_kubeconfig(&self.kubeconfig(), self.isolation.clone())
    }

    /// Runs `kubectl`; gives its standard output.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let ran = self.try_kubectl(arguments)?;
        anyhow::ensure!(ran.ok, "kubectl {}: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
        Ok(ran.stdout)
    }

    /// Runs `kubectl`, which may fail.
    ///
    /// # Errors
    /// There is none.
    pub fn try_kubectl(&self, arguments: &[&str]) -> anyhow::Result<Ran> {
        ran(self.kubectl_command(arguments).stdin(Stdio::null()).output().context("running kubectl")?)
    }

    /// Runs `kubectl` with a standard input.
    ///
    /// # Errors
    /// There is none.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<Ran> {
        let mut command = self.kubectl_command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        ran(child.wait_with_output()?)
    }

    /// `kubectl` as a command, to be started by the caller.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.isolation.network_command("timeout");
        let program = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        command.args(["--kill-after=5", KUBECTL_SECONDS, &program]).args(arguments);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.directory.path());
        command.current_dir(self.directory.path());
        command
    }

    /// Sends a plain HTTP request from the node.
    ///
    /// # Errors
    /// There is no answer.
    pub fn http(&self, address: SocketAddr, request: &Request) -> Result<Response, HttpError> {
        self.isolation.http(address, request)
    }

    /// The namespaces, for clients of the caller's own.
    pub fn isolation(&self) -> Arc<Isolation> {
        self.isolation.clone()
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The data directory of the server.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("d")
    }

    /// A directory for the test's own files, removed with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("admin.kubeconfig")
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        tail(&self.log_file())
    }

    /// The whole log of the server, over all its starts.
    pub fn log_file(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// Ends everything that runs, by force, and removes its cgroups.
    fn end(&mut self) {
        let _ = self.server.kill();
        for agent in &self.agents {
            let _ = agent.process.kill();
        }
        let processes = self.processes();
        let cgroups = cgroups_of(&processes);
        self.machines().for_each(Isolation::end);
        let _ = eventually("the end of the cluster's processes", STOP, || {
            let left =
                processes.iter().filter(|pid| Path::new(&format!("/proc/{pid}/root")).exists()).count();
            anyhow::ensure!(left == 0, "{left} processes are left");
            Ok(())
        });
        // The kernel lets go of a cgroup a moment after the end of its last process.
        let _ = eventually("the end of the cluster's cgroups", STOP, || {
            anyhow::ensure!(remove_cgroups(&cgroups), "some are in use");
            Ok(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log ---\n{}\n---", self.log_tail());
            for agent in &self.agents {
                eprintln!("--- the end of the log of {} ---\n{}\n---", agent.name, tail(&agent.log));
            }
            if let Some(kept) = std::env::var_os("COX_TEST_LOG") {
                let _ = std::fs::copy(self.log_file(), kept);
            }
        }
        self.end();
    }
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

/// Whether a condition of an object's status is `True`.
pub(crate) fn has_condition(object: &serde_json::Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// The topmost cgroups that hold pods and shims.
fn cgroups_of(processes: &[i32]) -> BTreeSet<String> {
    let files =
        processes.iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    let tops = files.flat_map(|file| {
        let top = |line: &str| Some(line.splitn(3, ':').nth(2)?.split('/').nth(1)?.to_owned());
        file.lines().filter_map(top).collect::<Vec<_>>()
    });
    tops.filter(|top| top.starts_with("coxswain-")).collect()
}

/// Removes these cgroups with all below them where nothing runs any more; says whether all but the shared one are gone.
fn remove_cgroups(tops: &BTreeSet<String>) -> bool {
    let mounts =
        std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut gone = true;
    for mount in mounts.filter(|path| !path.is_symlink()).chain(["/sys/fs/cgroup".into()]) {
        for top in tops {
            remove_empty(&mount.join(top));
            gone &= top == SHIMS || !mount.join(top).exists();
        }
    }
    gone
}

fn remove_empty(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

fn ran(output: Output) -> anyhow::Result<Ran> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

fn finish(what: &str, output: Output) -> anyhow::Result<String> {
    let ran = ran(output)?;
    anyhow::ensure!(ran.ok, "{what}: {}{}", ran.stdout, ran.stderr);
    Ok(ran.stdout)
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// The binary under test: `COX_BIN`, or the one cargo builds for the profile of this test.
fn binary() -> anyhow::Result<PathBuf> {
    if let Some(binary) = std::env::var_os("COX_BIN") {
        return std::fs::canonicalize(binary).context("COX_BIN");
    }
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("this test is not in a target directory")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = Command::new(cargo);
    // All of the workspace: its dependencies then have the features that the tests were built with, and are built once.
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    anyhow::ensure!(build.status().context("running cargo")?.success(), "cox does not build");
    Ok(profile.join("cox"))
}
