//! An etcd of one or more members for tests, built by Go from `oracle/`, with TLS and client certificates. Dropping it ends
//! the members; what they wrote stays in the directory that the test gave.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// How an etcd is started.
pub struct EtcdOptions<'a> {
    /// Where its data, logs and certificates go.
    pub directory: &'a Path,
    /// How many members it has.
    pub members: usize,
    /// The address that each listens on; of one, all do.
    pub addresses: &'a [&'a str],
    /// More arguments of each.
    pub arguments: &'a [&'a str],
    /// Makes a command that runs a program where a member is to run.
    pub command: CommandOf,
}

/// Makes a command that runs a program for a member.
pub type CommandOf = Box<dyn Fn(&str, usize) -> Command + Send + Sync>;

struct Member {
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A running etcd.
pub struct Etcd {
    binary: PathBuf,
    command: CommandOf,
    directory: PathBuf,
    endpoints: Vec<String>,
    members: Mutex<Vec<Member>>,
}

impl<'a> EtcdOptions<'a> {
    /// Members on loopback.
    pub fn on_loopback(directory: &'a Path, members: usize) -> Self {
        let command = |program: &str, _| {
            // The members end with the test.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", program]);
            command
        };
        Self { directory, members, addresses: &["127.0.0.1"], arguments: &[], command: Box::new(command) }
    }
}

/// The program, built if need be; none without Go, and said so. `COX_ETCD` names another one.
///
/// # Errors
/// It does not build.
pub fn etcd_binary() -> anyhow::Result<Option<PathBuf>> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_some() {
        return Ok(built.clone());
    }
    if let Some(other) = std::env::var_os("COX_ETCD") {
        return Ok(Some(other.into()));
    }
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no Go on this machine to build etcd with");
        return Ok(None);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::create_dir_all(root.join("target/oracle"))?;
    let binary = root.join("target/oracle/etcd");
    let status = Command::new("go")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .args([&binary, Path::new("go.etcd.io/etcd/server/v3")])
        .env("CGO_ENABLED", "0")
        .current_dir(root.join("oracle"))
        .status()?;
    anyhow::ensure!(status.success(), "etcd does not build");
    *built = Some(binary.canonicalize()?);
    Ok(built.clone())
}

impl Etcd {
    /// Starts all members; none without Go.
    ///
    /// # Errors
    /// They do not start.
    pub fn start(options: EtcdOptions<'_>) -> anyhow::Result<Option<Self>> {
        let Some(binary) = etcd_binary()? else { return Ok(None) };
        let EtcdOptions { directory, members: count, addresses, arguments, command } = options;
        std::fs::create_dir_all(directory)?;
        certificates(directory, addresses)?;
        let address = |member: usize| addresses[member % addresses.len()];
        let ports = free_ports(2 * count)?;
        let peer = |member: usize| format!("http://{}:{}", address(member), ports[count + member]);
        let peers: Vec<String> = (0..count).map(|member| format!("m{member}={}", peer(member))).collect();
        let mut endpoints = Vec::new();
        let mut members = Vec::new();
        for (member, port) in ports.iter().take(count).enumerate() {
            let client = format!("https://{}:{port}", address(member));
            let data = directory.join(format!("m{member}"));
            let file = |name: &str| directory.join(name).display().to_string();
            let mut all = vec![
                format!("--name=m{member}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={}", peer(member)),
                format!("--initial-advertise-peer-urls={}", peer(member)),
                format!("--initial-cluster={}", peers.join(",")),
                format!("--cert-file={}", file("etcd.crt")),
                format!("--key-file={}", file("etcd.key")),
                format!("--trusted-ca-file={}", file("ca.crt")),
                "--client-cert-auth=true".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            all.extend(arguments.iter().map(|&argument| argument.to_owned()));
            members.push(Member {
                arguments: all,
                log: directory.join(format!("m{member}.log")),
                child: None,
            });
            endpoints.push(client);
        }
        let directory = directory.to_owned();
        let etcd = Self { binary, command, directory, endpoints, members: Mutex::new(members) };
        (0..count).try_for_each(|member| etcd.start_member(member))?;
        Ok(Some(etcd))
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a member that does not run.
    ///
    /// # Errors
    /// It cannot run.
    pub fn start_member(&self, member: usize) -> anyhow::Result<()> {
        let number = member;
        let member = &mut self.members()[member];
        anyhow::ensure!(member.child.is_none(), "the member runs");
        let log = File::options().create(true).append(true).open(&member.log)?;
        let mut command = (self.command)(self.binary.to_str().context("the binary's name")?, number);
        command.args(&member.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        member.child = Some(command.spawn().context("etcd does not start")?);
        Ok(())
    }

    /// Kills a member as a power cut would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_member(&self, member: usize) -> anyhow::Result<()> {
        let mut child = self.members()[member].child.take().context("the member does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The process of a member that runs on this machine without a wrapper.
    pub fn pid(&self, member: usize) -> Option<u32> {
        self.members()[member].child.as_ref().map(Child::id)
    }

    /// Where clients reach the members.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The authority's certificate, a certificate for clients, and its key: PEM files.
    pub fn certificates(&self) -> [PathBuf; 3] {
        ["ca.crt", "etcd.crt", "etcd.key"].map(|name| self.directory.join(name))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members().iter_mut() {
            if let Some(mut child) = member.child.take() {
                drop((child.kill(), child.wait()));
            }
        }
    }
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(listeners
        .iter()
        .map(TcpListener::local_addr)
        .map(|at| Ok(at?.port()))
        .collect::<std::io::Result<_>>()?)
}

fn certificates(directory: &Path, addresses: &[&str]) -> anyhow::Result<()> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "test-ca");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let key = KeyPair::generate()?;
    std::fs::write(directory.join("ca.crt"), authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    let leaf =
        CertificateParams::new(addresses.iter().map(|&address| address.to_owned()).collect::<Vec<_>>())?
            .signed_by(&key, &issuer)?;
    std::fs::write(directory.join("etcd.crt"), leaf.pem())?;
    std::fs::write(directory.join("etcd.key"), key.serialize_pem())?;
    Ok(())
}
