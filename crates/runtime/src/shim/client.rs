//! The server's side of the shim protocol: starting shims, and requests to them as async calls.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::protocol::{self, ExecRequest, Reply, Request, ShimConfig, StartRequest};

/// File in a bundle where the shim keeps a container's [`super::protocol::ProcessStatus`].
pub(crate) const STATUS_FILE: &str = "status.json";

/// File in a sandbox's directory with the pid whose `/proc/<pid>/ns` are the pod's namespaces.
pub(crate) const HOLDER_FILE: &str = "holder";

/// How long a shim's containers may take to die.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// A shim could not be started or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// Starting the process failed.
    #[error("starting the sandbox process: {0}")]
    Spawn(#[source] io::Error),
    /// The process ended while making the sandbox.
    #[error("making the sandbox: {0}")]
    Setup(String),
    /// The connection failed: the shim is gone.
    #[error("the sandbox process does not answer: {0}")]
    Gone(#[from] io::Error),
    /// The shim refused; its words reach the user.
    #[error("{0}")]
    Refused(String),
}

/// A running shim.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    socket: PathBuf,
}

/// A process exec'd into a container, until it ends.
pub(crate) struct ExecHandle {
    stream: tokio::net::UnixStream,
    /// The terminal's master, if one was asked for.
    pub terminal: Option<OwnedFd>,
}

impl Shim {
    /// The shim that listens on `socket`.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts a shim and waits until the sandbox stands.
    pub async fn spawn(command: &[OsString], config: &ShimConfig) -> Result<Self, ShimError> {
        let file = config.dir.join("shim.json");
        crate::files::write_json(&file, config).map_err(ShimError::Spawn)?;
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| ShimError::Setup("no shim command is configured".to_owned()))?;
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .arg("run")
            .arg(&file)
            // The server's environment may hold secrets, and a shim outlives it.
            .env_clear()
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .map_err(ShimError::Spawn)?;
        if !output.status.success() {
            return Err(ShimError::Setup(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(Self::at(config.socket.clone()))
    }

    /// Sends a request and takes its first answer; the stream stays usable for what follows.
    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>, UnixStream), ShimError> {
        let socket = self.socket.clone();
        let exchange = move || -> io::Result<_> {
            let stream = connect(&socket)?;
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            protocol::send(&stream, &request, &borrowed)?;
            drop(borrowed);
            // Our copies would keep the pipes open.
            drop(fds);
            let answer = protocol::receive::<Reply>(&stream)?;
            let (reply, fds) = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok((reply, fds, stream))
        };
        let answer = tokio::task::spawn_blocking(exchange).await.map_err(io::Error::other)??;
        match answer {
            (Reply::Error { message }, ..) => Err(ShimError::Refused(message)),
            answer => Ok(answer),
        }
    }

    /// Creates and starts a container; returns its pid.
    pub async fn start(&self, request: StartRequest) -> Result<i32, ShimError> {
        match self.call(Request::Start(request), Vec::new()).await?.0 {
            Reply::Started { pid } => Ok(pid),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a process in a container. `stdio` is stdin, stdout and stderr, or nothing with a terminal.
    pub async fn exec(&self, request: ExecRequest, stdio: Vec<OwnedFd>) -> Result<ExecHandle, ShimError> {
        let (_, mut fds, stream) = self.call(Request::Exec(request), stdio).await?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        Ok(ExecHandle { stream, terminal: fds.pop() })
    }

    /// Signals a container's init (`exec` unset), one exec'd process, or `all` of its processes.
    pub async fn kill(
        &self,
        container: &str,
        exec: Option<String>,
        signal: i32,
        all: bool,
    ) -> Result<(), ShimError> {
        let request = Request::Kill { container: container.to_owned(), exec, signal, all };
        self.call(request, Vec::new()).await.map(drop)
    }

    /// Resizes a container's terminal.
    pub async fn resize(&self, container: &str, width: u16, height: u16) -> Result<(), ShimError> {
        let request = Request::Resize { container: container.to_owned(), width, height };
        self.call(request, Vec::new()).await.map(drop)
    }

    /// Connects pipes to a container's stdio.
    pub async fn attach(&self, container: &str, stdio: [Option<OwnedFd>; 3]) -> Result<(), ShimError> {
        let [stdin, stdout, stderr] = stdio.each_ref().map(Option::is_some);
        let request = Request::Attach { container: container.to_owned(), stdin, stdout, stderr };
        self.call(request, stdio.into_iter().flatten().collect()).await.map(drop)
    }

    /// Makes the shim open a rotated log anew.
    pub async fn reopen_log(&self, container: &str) -> Result<(), ShimError> {
        self.call(Request::ReopenLog { container: container.to_owned() }, Vec::new()).await.map(drop)
    }

    /// Opens the stream of changes.
    pub async fn watch(&self) -> Result<Watch, ShimError> {
        let (_, _, stream) = self.call(Request::Watch, Vec::new()).await?;
        stream.set_nonblocking(true)?;
        Ok(Watch(tokio::net::UnixStream::from_std(stream)?))
    }

    /// Ends the shim, and with it the pod's namespaces.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        let (.., stream) = self.call(Request::Shutdown, Vec::new()).await?;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        // The end of the stream is the end of the process.
        match tokio::time::timeout(END_PATIENCE, stream.read(&mut [0u8; 1])).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ShimError::Refused("the sandbox process does not end".to_owned())),
        }
    }
}

/// Changes, as they happen.
pub(crate) struct Watch(tokio::net::UnixStream);

impl Watch {
    /// The id of the next container whose status on disk changed; `None` when the shim itself is gone.
    pub async fn next(&mut self) -> Option<String> {
        match read_reply(&mut self.0).await {
            Ok(Reply::Changed { id }) => Some(id),
            _ => None,
        }
    }
}

impl ExecHandle {
    /// Waits for the process; an error means that the shim is gone.
    pub async fn wait(&mut self) -> Result<i32, ShimError> {
        match read_reply(&mut self.stream).await? {
            Reply::Exited { exit_code, .. } => Ok(exit_code),
            other => Err(unexpected(&other)),
        }
    }
}

async fn read_reply(stream: &mut tokio::net::UnixStream) -> io::Result<Reply> {
    let length = stream.read_u32().await?;
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    stream.flush().await?;
    Ok(serde_json::from_slice(&body)?)
}

fn unexpected(reply: &Reply) -> ShimError {
    ShimError::Gone(io::Error::other(format!("unexpected answer {reply:?}")))
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(socket)
}
