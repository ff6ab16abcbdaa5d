//! The shim's event loop: one poll over the request socket, its connections, helpers at work, child
//! signals and the containers' streams. Nothing in it blocks but a helper's last words.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::client::STATUS_FILE;
use super::helper::{BuildRequest, What};
use super::logs::{LogFile, StreamKind};
use super::process::{Container, Input, Output, Sink, resize, set_nonblocking};
use super::protocol::{
    self, ExecRequest, ExitStatus, FrameReader, ProcessStatus, Reply, Request, ShimConfig, StartRequest,
};
use super::run::trim_memory;
use crate::cgroup;
use crate::files;

type ConnectionId = u64;

/// A connection of the server.
struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    watching: bool,
}

/// A helper at work.
struct Build {
    control: UnixStream,
    client: ConnectionId,
    console: Option<(UnixListener, PathBuf)>,
    goal: Goal,
}

enum Goal {
    Init { container: Box<Container>, stdio: Vec<OwnedFd> },
    Exec { container: String, exec: String, process: PathBuf },
}

/// A process exec'd into a container.
struct Exec {
    container: String,
    pid: i32,
    client: ConnectionId,
}

/// What a poll entry stands for.
#[derive(Clone, Copy)]
enum Token<'a> {
    Listener,
    Signals,
    Connection(ConnectionId),
    Build(u64),
    Output(&'a str, usize),
    Sink(&'a str, usize),
    Writer(&'a str, usize),
    Input(&'a str),
}

/// [`Token`] without its borrow, to act on.
enum Ready {
    Listener,
    Signals,
    Connection(ConnectionId),
    Build(u64),
    Output(String, usize),
    Sink(String, usize),
    Writer(String, usize),
    Input(String),
}

/// The shim.
pub(super) struct Daemon {
    state: PathBuf,
    socket: PathBuf,
    cgroup: String,
    /// The process that holds the namespaces, where it is not the shim itself.
    pause: Option<Pid>,
    reexec: Vec<OsString>,
    listener: UnixListener,
    signals: SignalFd,
    connections: BTreeMap<ConnectionId, Connection>,
    builds: BTreeMap<u64, Build>,
    containers: BTreeMap<String, Container>,
    execs: HashMap<String, Exec>,
    /// Exits of processes nobody has claimed yet: a container can end before its helper has answered.
    unclaimed: HashMap<i32, i32>,
    next_id: u64,
    /// Containers were started or processes run since memory was last given back.
    worked: bool,
    ending: bool,
}

impl Daemon {
    pub fn new(
        config: &ShimConfig,
        listener: UnixListener,
        holder: Pid,
        reexec: Vec<OsString>,
    ) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        listener.set_nonblocking(true)?;
        let state = config.dir.join("libcontainer");
        std::fs::create_dir_all(&state)?;
        Ok(Self {
            state,
            socket: config.socket.clone(),
            cgroup: config.cgroup.clone(),
            pause: Some(holder).filter(|&pid| pid != nix::unistd::getpid()),
            reexec,
            listener,
            signals,
            connections: BTreeMap::new(),
            builds: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            unclaimed: HashMap::new(),
            next_id: 0,
            worked: true,
            ending: false,
        })
    }

    /// Serves until told to end.
    pub fn run(&mut self) -> io::Result<()> {
        // The end waits for what is being started: it would outlive us.
        while !(self.ending && self.builds.is_empty() && self.containers.is_empty()) {
            for ready in self.wait()? {
                self.handle(ready);
            }
            // Helpers first, so that an exit finds the container it belongs to.
            self.reap();
            if std::mem::take(&mut self.worked) && self.builds.is_empty() {
                trim_memory();
            }
        }
        if let Some(pause) = self.pause {
            kill(pause, Signal::SIGKILL)?;
            waitpid(pause, None)?;
        }
        cgroup::leave(&self.cgroup);
        let _ = std::fs::remove_file(&self.socket);
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut tokens = Vec::new();
        let mut polled = Vec::new();
        self.interests(|token, fd, events| {
            tokens.push(token);
            polled.push(libc::pollfd { fd, events, revents: 0 });
        });
        // SAFETY: the slice is valid for the call, and its descriptors are owned by `self`.
        let outcome = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
        if outcome < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
        }
        let ready = tokens.into_iter().zip(polled).filter(|(_, entry)| entry.revents != 0);
        Ok(ready.map(|(token, _)| Ready::from(token)).collect())
    }

    fn interests<'a>(&'a self, mut add: impl FnMut(Token<'a>, RawFd, i16)) {
        add(Token::Listener, self.listener.as_raw_fd(), libc::POLLIN);
        add(Token::Signals, self.signals.as_fd().as_raw_fd(), libc::POLLIN);
        for (&id, connection) in &self.connections {
            add(Token::Connection(id), connection.stream.as_raw_fd(), libc::POLLIN);
        }
        for (&id, build) in &self.builds {
            add(Token::Build(id), build.control.as_raw_fd(), libc::POLLIN);
        }
        for (id, container) in &self.containers {
            for (index, output) in container.outputs.iter().enumerate() {
                if let Some(fd) = output.poll_fd() {
                    add(Token::Output(id, index), fd, libc::POLLIN);
                }
                for sink in output.sinks.iter().filter(|sink| !sink.backlog.is_empty()) {
                    add(Token::Sink(id, index), sink.file.as_raw_fd(), libc::POLLOUT);
                }
            }
            let Some(target) = &container.input.target else { continue };
            if container.input.backlog.is_empty() {
                for (index, writer) in container.input.writers.iter().enumerate() {
                    add(Token::Writer(id, index), writer.as_raw_fd(), libc::POLLIN);
                }
            } else {
                add(Token::Input(id), target.as_raw_fd(), libc::POLLOUT);
            }
        }
    }

    fn handle(&mut self, ready: Ready) {
        match ready {
            Ready::Listener => self.accept(),
            // The wake-up is the message; `reap` runs each round.
            Ready::Signals => while let Ok(Some(_)) = self.signals.read_signal() {},
            Ready::Connection(id) => self.read_connection(id),
            Ready::Build(id) => self.finish_build(id),
            Ready::Output(id, index) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.pump_output(index);
                }
            }
            Ready::Sink(id, index) => {
                let output = self.containers.get_mut(&id).and_then(|c| c.outputs.get_mut(index));
                if let Some(output) = output {
                    let ended = output.source.is_none();
                    output.sinks.retain_mut(|sink| sink.flush() && !(ended && sink.backlog.is_empty()));
                }
            }
            Ready::Writer(id, index) => {
                if let Some(container) = self.containers.get_mut(&id)
                    && index < container.input.writers.len()
                {
                    container.input.pump(index, container.start.stdin_once);
                }
            }
            Ready::Input(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.input.flush();
                }
            }
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn accept(&mut self) {
        if let Ok((stream, _)) = self.listener.accept() {
            let id = self.fresh_id();
            let connection = Connection { stream, reader: FrameReader::default(), watching: false };
            self.connections.insert(id, connection);
        }
    }

    fn read_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let alive = matches!(connection.reader.fill(&connection.stream), Ok(count) if count > 0);
        match connection.reader.next::<Request>() {
            Ok(Some((request, fds))) => self.serve(id, request, fds),
            Ok(None) if alive => {}
            _ => drop(self.connections.remove(&id)),
        }
    }

    fn serve(&mut self, client: ConnectionId, request: Request, fds: Vec<OwnedFd>) {
        let outcome = match request {
            Request::Start(start) => return self.start(client, start),
            Request::Exec(exec) => return self.exec(client, exec, fds),
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&client) {
                    connection.watching = true;
                }
                Ok(())
            }
            Request::Kill { container, exec, signal, all } => self.kill(&container, exec, signal, all),
            Request::Resize { container, width, height } => self.resize(&container, width, height),
            Request::Attach { container, stdin, stdout, stderr } => {
                self.attach(&container, [stdin, stdout, stderr], fds)
            }
            Request::ReopenLog { container } => self.reopen_log(&container),
            Request::Shutdown => {
                self.end();
                Ok(())
            }
        };
        self.answer(client, outcome.map(|()| Reply::Ok), &[]);
    }

    /// Answers without waiting: a client that does not read loses its connection.
    fn answer(&mut self, client: ConnectionId, outcome: io::Result<Reply>, fds: &[BorrowedFd<'_>]) {
        let reply = outcome.unwrap_or_else(|error| Reply::Error { message: error.to_string() });
        if let Some(connection) = self.connections.get(&client)
            && protocol::send(&connection.stream, &reply, fds).is_err()
        {
            self.connections.remove(&client);
        }
    }

    fn container(&mut self, id: &str) -> io::Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| io::Error::other(format!("container {id} is not running")))
    }

    fn start(&mut self, client: ConnectionId, start: StartRequest) {
        if let Err(error) = self.try_start(client, start) {
            self.answer(client, Err(error), &[]);
        }
    }

    fn try_start(&mut self, client: ConnectionId, start: StartRequest) -> io::Result<()> {
        if self.ending {
            return Err(io::Error::other("the sandbox is being stopped"));
        }
        let log = start.log_path.as_deref().map(LogFile::open).transpose()?;
        let mut container = Container {
            status: ProcessStatus::default(),
            outputs: Vec::new(),
            input: Input::default(),
            log,
            terminal: None,
            start,
        };
        let stdio = if container.start.tty { Vec::new() } else { make_stdio(&mut container)? };
        let request = BuildRequest {
            id: container.start.id.clone(),
            state: self.state.clone(),
            console: None,
            what: What::Init { bundle: container.start.bundle.clone() },
        };
        let tty = container.start.tty;
        self.build(client, request, tty, Goal::Init { container: Box::new(container), stdio })
    }

    fn exec(&mut self, client: ConnectionId, exec: ExecRequest, fds: Vec<OwnedFd>) {
        if let Err(error) = self.try_exec(client, exec, fds) {
            self.answer(client, Err(error), &[]);
        }
    }

    fn try_exec(&mut self, client: ConnectionId, request: ExecRequest, fds: Vec<OwnedFd>) -> io::Result<()> {
        if !self.container(&request.container)?.is_running() {
            return Err(io::Error::other("container is not running"));
        }
        let process = self.state.join(format!("{}.exec.json", request.exec));
        files::write_json(&process, &request.process)?;
        let build = BuildRequest {
            id: request.container.clone(),
            state: self.state.clone(),
            console: None,
            what: What::Exec { process: process.clone() },
        };
        let goal = Goal::Exec { container: request.container, exec: request.exec, process };
        self.build_with(client, build, request.tty, goal, &fds)
    }

    fn build(
        &mut self,
        client: ConnectionId,
        request: BuildRequest,
        tty: bool,
        goal: Goal,
    ) -> io::Result<()> {
        let stdio: Vec<OwnedFd> = match &goal {
            Goal::Init { stdio, .. } => stdio.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?,
            Goal::Exec { .. } => Vec::new(),
        };
        self.build_with(client, request, tty, goal, &stdio)
    }

    fn build_with(
        &mut self,
        client: ConnectionId,
        mut request: BuildRequest,
        tty: bool,
        goal: Goal,
        stdio: &[OwnedFd],
    ) -> io::Result<()> {
        let id = self.fresh_id();
        let console = if tty {
            let path = self.socket.with_extension(format!("tty{id}"));
            request.console = Some(path.clone());
            Some((UnixListener::bind(&path)?, path))
        } else {
            None
        };
        let (control, theirs) = UnixStream::pair()?;
        let null = File::options().write(true).open("/dev/null")?;
        Command::new(&self.reexec[0])
            .args(&self.reexec[1..])
            .arg("helper")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(null))
            .stderr(Stdio::inherit())
            .spawn()?;
        let fds: Vec<BorrowedFd<'_>> = stdio.iter().map(AsFd::as_fd).collect();
        protocol::send(&control, &request, &fds)?;
        self.builds.insert(id, Build { control, client, console, goal });
        Ok(())
    }

    fn finish_build(&mut self, id: u64) {
        let Some(build) = self.builds.remove(&id) else { return };
        self.worked = true;
        let reply = match protocol::receive::<Reply>(&build.control) {
            Ok(Some((reply, _))) => reply,
            _ => Reply::Error { message: "the process that starts containers died".to_owned() },
        };
        let terminal = build.console.and_then(|(listener, path)| {
            let master = matches!(reply, Reply::Started { .. }).then(|| receive_terminal(&listener).ok());
            let _ = std::fs::remove_file(path);
            master.flatten()
        });
        match (build.goal, reply) {
            (Goal::Init { container, .. }, Reply::Started { pid }) => {
                self.started(build.client, *container, pid, terminal);
            }
            (Goal::Exec { container, exec, process }, Reply::Started { pid }) => {
                let _ = std::fs::remove_file(process);
                let fds: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
                self.answer(build.client, Ok(Reply::Started { pid }), &fds);
                self.execs.insert(exec, Exec { container, pid, client: build.client });
                if let Some(code) = self.unclaimed.remove(&pid) {
                    self.exited(pid, code);
                }
            }
            (goal, reply) => {
                if let Goal::Exec { process, .. } = goal {
                    let _ = std::fs::remove_file(process);
                }
                self.answer(build.client, Ok(reply), &[]);
            }
        }
    }

    fn started(
        &mut self,
        client: ConnectionId,
        mut container: Container,
        pid: i32,
        terminal: Option<OwnedFd>,
    ) {
        container.status = ProcessStatus { pid, started_at: files::now_nanos(), exit: None };
        if let Some(terminal) = terminal {
            let _ = set_nonblocking(&terminal);
            container.outputs.extend(terminal.try_clone().map(|fd| Output::new(StreamKind::Stdout, fd)));
            if container.start.stdin {
                container.input = Input::new(terminal.try_clone().ok().map(File::from));
            }
            container.terminal = Some(terminal);
        }
        save_status(&container);
        if self.ending {
            kill_container(&container);
        }
        let id = container.start.id.clone();
        self.containers.insert(id.clone(), container);
        self.answer(client, Ok(Reply::Started { pid }), &[]);
        // Whoever asked may be gone, and another server be listening.
        self.tell_watchers(&id);
        if let Some(code) = self.unclaimed.remove(&pid) {
            self.exited(pid, code);
        }
    }

    /// Kills what runs; the loop ends when all of it is gone.
    fn end(&mut self) {
        self.ending = true;
        for container in self.containers.values() {
            kill_container(container);
        }
    }

    fn reap(&mut self) {
        // Bounded by the number of dead children.
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => continue,
            };
            self.exited(pid, code);
        }
        if self.builds.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn exited(&mut self, pid: i32, code: i32) {
        if self.pause.is_some_and(|pause| pause.as_raw() == pid) {
            // Without its namespaces there is no sandbox.
            self.pause = None;
            self.end();
            return;
        }
        if let Some(name) = self.execs.iter().find(|(_, exec)| exec.pid == pid).map(|(name, _)| name.clone())
        {
            if let Some(exec) = self.execs.remove(&name) {
                self.answer(exec.client, Ok(Reply::Exited { id: name, exit_code: code }), &[]);
            }
            return;
        }
        let container = self.containers.values_mut().find(|c| c.is_running() && c.status.pid == pid);
        let Some(container) = container else {
            if !self.builds.is_empty() {
                self.unclaimed.insert(pid, code);
            }
            return;
        };
        let id = container.start.id.clone();
        end_container(container, code);
        let _ = std::fs::remove_dir_all(self.state.join(&id));
        self.containers.remove(&id);
        self.tell_watchers(&id);
    }

    /// Says that a container's status on disk has changed.
    fn tell_watchers(&mut self, id: &str) {
        let watching = self.connections.iter().filter(|(_, connection)| connection.watching);
        let watchers: Vec<ConnectionId> = watching.map(|(&id, _)| id).collect();
        for watcher in watchers {
            self.answer(watcher, Ok(Reply::Changed { id: id.to_owned() }), &[]);
        }
    }

    fn kill(&mut self, id: &str, exec: Option<String>, signal: i32, all: bool) -> io::Result<()> {
        let signal = Signal::try_from(signal)?;
        let pid = match exec {
            // An exec that is over needs no signal.
            Some(exec) => match self.execs.get(&exec).filter(|exec| exec.container == id) {
                Some(exec) => exec.pid,
                None => return Ok(()),
            },
            None => {
                let container = self.container(id)?;
                if all {
                    cgroup::signal_all(&container.start.cgroup, signal);
                }
                container.status.pid
            }
        };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn resize(&mut self, id: &str, width: u16, height: u16) -> io::Result<()> {
        match &self.container(id)?.terminal {
            Some(terminal) => resize(terminal, width, height),
            None => Err(io::Error::other("container has no terminal")),
        }
    }

    fn attach(&mut self, id: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> io::Result<()> {
        let container = self.container(id)?;
        let mut fds = fds.into_iter();
        for (slot, _) in wanted.into_iter().enumerate().filter(|(_, wanted)| *wanted) {
            let fd = fds.next().ok_or_else(|| io::Error::other("a descriptor is missing"))?;
            set_nonblocking(&fd)?;
            let file = File::from(fd);
            let kind = match slot {
                0 => {
                    container.input.writers.push(file);
                    continue;
                }
                1 => StreamKind::Stdout,
                _ => StreamKind::Stderr,
            };
            if let Some(output) = container.outputs.iter_mut().find(|output| output.kind == kind) {
                output.sinks.push(Sink { file, backlog: Vec::new() });
            }
        }
        Ok(())
    }

    fn reopen_log(&mut self, id: &str) -> io::Result<()> {
        self.container(id)?.log.as_mut().map_or(Ok(()), LogFile::reopen)
    }
}

impl From<Token<'_>> for Ready {
    fn from(token: Token<'_>) -> Self {
        match token {
            Token::Listener => Self::Listener,
            Token::Signals => Self::Signals,
            Token::Connection(id) => Self::Connection(id),
            Token::Build(id) => Self::Build(id),
            Token::Output(id, index) => Self::Output(id.to_owned(), index),
            Token::Sink(id, index) => Self::Sink(id.to_owned(), index),
            Token::Writer(id, index) => Self::Writer(id.to_owned(), index),
            Token::Input(id) => Self::Input(id.to_owned()),
        }
    }
}

/// Makes a container's pipes: ours go into `container`, the container's are returned.
fn make_stdio(container: &mut Container) -> io::Result<Vec<OwnedFd>> {
    let stdin = if container.start.stdin {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&writer)?;
        container.input = Input::new(Some(File::from(writer)));
        reader
    } else {
        File::open("/dev/null")?.into()
    };
    let mut theirs = vec![stdin];
    for kind in [StreamKind::Stdout, StreamKind::Stderr] {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&reader)?;
        container.outputs.push(Output::new(kind, reader));
        theirs.push(writer);
    }
    Ok(theirs)
}

/// The helper's child has connected and sent the master before the helper said it was ready.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut reader = FrameReader::default();
    reader.fill(&stream)?;
    reader.take_fd().ok_or_else(|| io::Error::other("no terminal came"))
}

fn kill_container(container: &Container) {
    cgroup::kill_all(&container.start.cgroup);
    // Already gone is what we want.
    let _ = kill(Pid::from_raw(container.status.pid), Signal::SIGKILL);
}

/// Drains, counts, kills what is left, and writes down how it ended.
fn end_container(container: &mut Container, code: i32) {
    let cgroup = container.start.cgroup.clone();
    let out_of_memory = cgroup::oom_kills(&cgroup) > 0;
    cgroup::kill_all(&cgroup);
    container.drain();
    let reason = match (out_of_memory, code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    container.status.exit = Some(ExitStatus {
        exit_code: code,
        finished_at: files::now_nanos(),
        reason: reason.to_owned(),
        message: String::new(),
    });
    save_status(container);
    cgroup::remove(&cgroup);
}

fn save_status(container: &Container) {
    let path = container.start.bundle.join(STATUS_FILE);
    if let Err(error) = files::write_json(&path, &container.status) {
        eprintln!("cannot write {}: {error}", path.display());
    }
}
