//! Network, process and mount namespaces of a cluster's own. When their first process is killed, the kernel ends every
//! process in them, and mounts and interfaces go with the namespaces: nothing has to be remembered to be cleaned up.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;
use crate::http::{self, HttpError, Request, Response};

/// Collects orphans, as process 1 has to: a shell does while it waits for its own children.
const INIT: &str = "while :; do sleep 1; done";

/// A set of namespaces: a machine of its own, as far as a cluster can tell.
pub struct Isolation {
    init: Child,
    pid: i32,
    network: File,
}

impl Isolation {
    /// Makes the namespaces and the interface `node0` with an address, which leads nowhere.
    ///
    /// # Errors
    /// They cannot be made; it takes root.
    pub fn new(address: &str) -> anyhow::Result<Self> {
        let this = Self::bare()?;
        this.ip("link add node0 type veth peer name uplink0")?;
        this.ip("link set uplink0 up")?;
        this.address(address)?;
        Ok(this)
    }

    /// Makes namespaces that only connect others: a bridge without an address.
    ///
    /// # Errors
    /// They cannot be made; it takes root.
    pub fn switch() -> anyhow::Result<Self> {
        let this = Self::bare()?;
        this.ip("link add switch0 type bridge")?;
        this.ip("link set switch0 up")?;
        Ok(this)
    }

    /// Makes the namespaces and the interface `node0` with an address, connected to a switch. No two have the same port.
    ///
    /// # Errors
    /// They cannot be made; it takes root.
    pub fn connected(address: &str, switch: &Self, port: u8) -> anyhow::Result<Self> {
        let this = Self::bare()?;
        this.ip(&format!("link add node0 type veth peer name port{port} netns {}", switch.pid))?;
        switch.ip(&format!("link set port{port} master switch0 up"))?;
        this.address(address)?;
        Ok(this)
    }

    /// Makes the namespaces and the interface `node0` with an address, connected to others: they have an address there too, at
    /// a port of this number.
    ///
    /// # Errors
    /// They cannot be made; it takes root.
    pub fn beside(address: &str, other: &Self, others_address: &str, port: u8) -> anyhow::Result<Self> {
        let this = Self::bare()?;
        this.ip(&format!("link add node0 type veth peer name port{port} netns {}", other.pid))?;
        other.ip(&format!("address add {others_address}/24 dev port{port}"))?;
        other.set_port(port, true)?;
        this.address(address)?;
        Ok(this)
    }

    fn address(&self, address: &str) -> anyhow::Result<()> {
        self.ip(&format!("address add {address}/24 dev node0"))?;
        self.ip("link set node0 up")?;
        self.ip("route add default dev node0")
    }

    fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let status = self.network_command("ip").args(arguments.split(' ')).status();
        anyhow::ensure!(status.context("running ip")?.success(), "ip {arguments} failed");
        Ok(())
    }

    fn bare() -> anyhow::Result<Self> {
        let mut init = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork"])
            .args(["--kill-child", "sh", "-c", INIT])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("running unshare")?;
        match Self::prepare(init.id()) {
            Ok((pid, network)) => {
                let this = Self { init, pid, network };
                this.ip("link set lo up")?;
                Ok(this)
            }
            Err(error) => {
                let _ = init.kill();
                let _ = init.wait();
                Err(error)
            }
        }
    }

    fn prepare(unshare: u32) -> anyhow::Result<(i32, File)> {
        let pid = eventually("the namespaces", Duration::from_secs(10), || {
            let pid = child_of(unshare)?;
            let own = std::fs::read_link("/proc/self/ns/net")?;
            anyhow::ensure!(std::fs::read_link(format!("/proc/{pid}/ns/net"))? != own, "not there yet");
            anyhow::ensure!(
                std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "sh",
                "not there yet"
            );
            Ok(pid)
        })?;
        Ok((pid, File::open(format!("/proc/{pid}/ns/net"))?))
    }

    /// A command that runs inside: `command` in the network, process and mount namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--net", "--pid", "--mount", "--", program]);
        command
    }

    /// A command that runs in the network namespace only.
    pub fn network_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/proc/{}/ns/net", self.pid), "--", program]);
        command
    }

    /// A connection from inside.
    ///
    /// # Errors
    /// Nobody answers, or within five seconds nothing comes back.
    pub fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.inside(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    }

    /// Many connections from inside.
    ///
    /// # Errors
    /// Nobody answers one of them.
    pub fn connect_many(&self, address: SocketAddr, count: usize) -> std::io::Result<Vec<TcpStream>> {
        self.inside(move || (0..count).map(|_| TcpStream::connect(address)).collect())
    }

    /// A listener inside.
    ///
    /// # Errors
    /// The address is taken.
    pub fn listen(&self, address: SocketAddr) -> std::io::Result<TcpListener> {
        self.inside(move || TcpListener::bind(address))
    }

    /// Cuts a port off, or connects it again.
    ///
    /// # Errors
    /// There is no such port.
    pub fn set_port(&self, port: u8, connected: bool) -> anyhow::Result<()> {
        self.ip(&format!("link set port{port} {}", if connected { "up" } else { "down" }))
    }

    /// Something made, or done, inside. A thread of its own enters the namespace and ends there; its sockets stay in it, and so do
    /// those of threads that it starts.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what is done fails.
    pub fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let network = self.network.try_clone()?;
        let enter = move || {
            setns(network, CloneFlags::CLONE_NEWNET)?;
            make()
        };
        std::thread::spawn(enter).join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    }

    /// Sends a plain HTTP request from inside.
    ///
    /// # Errors
    /// There is no answer within ten seconds.
    pub fn http(&self, address: SocketAddr, request: &Request) -> Result<Response, HttpError> {
        let stream = self.connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        http::exchange(stream, &address.to_string(), request)
    }

    /// The host's id of the process that `nsenter`, with this id, started inside.
    ///
    /// # Errors
    /// It has not yet.
    pub fn inner(&self, nsenter: u32) -> anyhow::Result<i32> {
        child_of(nsenter)
    }

    /// Ends everything inside: with `unshare` ends its child, process 1, and with that all others.
    pub fn end(&self) {
        let _ = kill(Pid::from_raw(self.init.id().cast_signed()), Signal::SIGKILL);
    }

    /// The host's ids of the processes inside, those of pods too: process 1 and all that descend from it.
    pub fn processes(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let parents: BTreeMap<i32, i32> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
        let descends = |pid: &i32| {
            std::iter::successors(Some(*pid), |pid| parents.get(pid).copied())
                .any(|ancestor| ancestor == self.pid)
        };
        parents.keys().copied().filter(descends).collect()
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; behind it come state and parent.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn child_of(parent: u32) -> anyhow::Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children.split_whitespace().next().context("no child yet")?.parse().context("children")
}

impl Drop for Isolation {
    fn drop(&mut self) {
        self.end();
        let _ = self.init.wait();
    }
}
