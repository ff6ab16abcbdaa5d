//! Exec and attach: a session's streams meet a process's.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coxswain_cri::v1::{AttachRequest, ExecRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::session::{Outcome, Session};
use super::terminal::Terminal;
use crate::error::{RuntimeError, during};
use crate::exec::{self, Running, output_pipe};
use crate::runtime::Runtime;

const CHUNK_BYTES: usize = 16 << 10;

/// How long a process that has ended may leave others holding its output open.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Runs an exec to its end.
pub(super) async fn exec(runtime: Arc<Runtime>, request: ExecRequest, session: Session) {
    let gone = session.gone.clone();
    let Session { stdin, stdout, stderr, resize, outcome, .. } = session;
    let stdio = Streams { stdin, stdout, stderr, resize };
    let result = tokio::select! {
        result = run_exec(&runtime, &request, stdio) => result,
        // A terminal hangs up when we let go of it; another process goes on, as with containerd.
        () = gone.cancelled() => return,
    };
    // The client may just have gone.
    let _ = outcome.send(match result {
        Ok(code) => Outcome::Exited(code),
        Err(error) => Outcome::Failed(error.to_string()),
    });
}

/// Connects to a container's stdio until it ends or the client goes.
pub(super) async fn attach(runtime: Arc<Runtime>, request: AttachRequest, session: Session) {
    let gone = session.gone.clone();
    let Session { stdin, stdout, stderr, resize, outcome, .. } = session;
    let stdio = Streams { stdin, stdout, stderr, resize };
    let result = tokio::select! {
        result = run_attach(&runtime, &request, stdio) => result,
        () = gone.cancelled() => return,
    };
    let _ = outcome.send(match result {
        Ok(()) => Outcome::Exited(0),
        Err(error) => Outcome::Failed(error.to_string()),
    });
}

struct Streams {
    stdin: mpsc::Receiver<Bytes>,
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
    resize: mpsc::Receiver<super::session::Size>,
}

async fn run_exec(runtime: &Runtime, request: &ExecRequest, streams: Streams) -> Result<i32, RuntimeError> {
    let container = runtime.container(&request.container_id)?;
    let sandbox = runtime.sandbox(&container.record.sandbox)?;
    if request.tty {
        let running = exec::start(&container, &sandbox, &request.cmd, true, Vec::new()).await?;
        return run_in_terminal(running, request.stdin, streams).await;
    }
    let (stdin, input) = input_pipe(request.stdin)?;
    let (stdout, stdout_writer) = output_pipe()?;
    let (stderr, stderr_writer) = output_pipe()?;
    let stdio = vec![stdin, stdout_writer, stderr_writer];
    let mut running = exec::start(&container, &sandbox, &request.cmd, false, stdio).await?;
    let outputs = async {
        tokio::join!(copy_out(stdout, streams.stdout), copy_out(stderr, streams.stderr));
    };
    tokio::pin!(outputs);
    let input = copy_in(streams.stdin, input);
    tokio::pin!(input);
    let (mut output_open, mut input_open) = (true, true);
    let code = loop {
        tokio::select! {
            code = running.handle.wait() => break code?,
            () = &mut outputs, if output_open => output_open = false,
            () = &mut input, if input_open => input_open = false,
        }
    };
    if output_open {
        // Somebody else may hold the output open; what there is has come by then.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, outputs).await;
    }
    Ok(code)
}

async fn run_in_terminal(mut running: Running, stdin: bool, streams: Streams) -> Result<i32, RuntimeError> {
    let step = "using the terminal";
    let master = running.handle.terminal.take();
    let master = master.ok_or_else(|| RuntimeError::Invalid("no terminal came".to_owned()))?;
    let terminal = Terminal::new(master).map_err(during(step))?;
    let Streams { stdin: mut input, stdout, stderr, mut resize } = streams;
    // A terminal has one output.
    drop(stderr);
    let output = copy_terminal(&terminal, stdout);
    tokio::pin!(output);
    let mut output_open = true;
    let code = loop {
        tokio::select! {
            code = running.handle.wait() => break code?,
            () = &mut output, if output_open => output_open = false,
            Some(bytes) = input.recv(), if stdin => terminal.write_all(&bytes).await.map_err(during(step))?,
            Some(size) = resize.recv() => terminal.resize(size).map_err(during(step))?,
        }
    };
    if output_open {
        let _ = tokio::time::timeout(DRAIN_PATIENCE, output).await;
    }
    Ok(code)
}

async fn run_attach(
    runtime: &Runtime,
    request: &AttachRequest,
    streams: Streams,
) -> Result<(), RuntimeError> {
    let container = runtime.container(&request.container_id)?;
    let sandbox = runtime.sandbox(&container.record.sandbox)?;
    let tty = container.config.tty;
    let (stdin, input) = input_pipe(request.stdin)?;
    let (stdout, stdout_writer) = output_pipe()?;
    let (stderr, stderr_writer) = output_pipe()?;
    let wanted = |wanted: bool, fd: OwnedFd| wanted.then_some(fd);
    let stdio = [
        wanted(request.stdin, stdin),
        // With a terminal everything is stdout.
        wanted(request.stdout || tty, stdout_writer),
        wanted(request.stderr && !tty, stderr_writer),
    ];
    sandbox.shim.attach(&container.id, stdio).await?;
    let Streams { stdin, stdout: to_stdout, stderr: to_stderr, mut resize } = streams;
    let outputs = async {
        tokio::join!(copy_out(stdout, to_stdout), copy_out(stderr, to_stderr));
    };
    tokio::pin!(outputs);
    let input = copy_in(stdin, input);
    tokio::pin!(input);
    let mut input_open = true;
    loop {
        tokio::select! {
            // The shim lets go of the pipes when the container ends.
            () = &mut outputs => return Ok(()),
            () = &mut input, if input_open => input_open = false,
            Some(size) = resize.recv() => sandbox.shim.resize(&container.id, size.width, size.height).await?,
        }
    }
}

/// The process's end of its stdin, and ours; `/dev/null` when it has none.
fn input_pipe(wanted: bool) -> Result<(OwnedFd, Option<OwnedFd>), RuntimeError> {
    if wanted {
        let (reader, writer) = output_pipe()?;
        return Ok((reader, Some(writer)));
    }
    let null = std::fs::File::open("/dev/null").map_err(during("opening /dev/null"))?;
    Ok((null.into(), None))
}

/// Ends with the client's input, which closes the process's.
async fn copy_in(mut from: mpsc::Receiver<Bytes>, to: Option<OwnedFd>) {
    let Some(Ok(mut to)) = to.map(pipe::Sender::from_owned_fd) else { return };
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Ends with the process's output, or with the client's interest.
async fn copy_out(from: OwnedFd, to: mpsc::Sender<Bytes>) {
    let Ok(mut from) = pipe::Receiver::from_owned_fd(from) else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut chunk).await {
        if count == 0 || to.send(Bytes::copy_from_slice(&chunk[..count])).await.is_err() {
            return;
        }
    }
}

async fn copy_terminal(from: &Terminal, to: mpsc::Sender<Bytes>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count) = from.read(&mut chunk).await {
        if count == 0 || to.send(Bytes::copy_from_slice(&chunk[..count])).await.is_err() {
            return;
        }
    }
}
