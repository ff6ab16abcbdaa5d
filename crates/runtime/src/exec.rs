//! Running a process in a container, with its output collected (`ExecSync`) or streamed.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::container::Container;
use crate::error::{RuntimeError, during};
use crate::sandbox::Sandbox;
use crate::shim::client::ExecHandle;
use crate::shim::protocol::ExecRequest;

/// Most output `ExecSync` keeps of either stream, as containerd; the rest is read and dropped.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// How long a process that has ended may leave others holding its output open.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// A process running in a container.
pub(crate) struct Running {
    pub id: String,
    pub handle: ExecHandle,
}

/// Both ends of a pipe, ours first.
pub(crate) fn output_pipe() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let (reader, writer) = std::io::pipe().map_err(during("making a pipe"))?;
    Ok((reader.into(), writer.into()))
}

/// Starts `command`; `stdio` is stdin, stdout and stderr, or nothing with a terminal.
pub(crate) async fn start(
    container: &Container,
    sandbox: &Sandbox,
    command: &[String],
    tty: bool,
    stdio: Vec<OwnedFd>,
) -> Result<Running, RuntimeError> {
    let Some(_) = container.pid() else {
        let state = container.state().as_str_name();
        return Err(RuntimeError::Precondition(format!("container is in {state} state")));
    };
    let id = hex::encode(rand::random::<[u8; 8]>());
    let process = describe(container.process_spec()?, command, tty);
    let request = ExecRequest { container: container.id.clone(), exec: id.clone(), process, tty };
    let handle = sandbox.shim.exec(request, stdio).await?;
    Ok(Running { id, handle })
}

/// The container's own process with another command.
fn describe(mut process: Value, command: &[String], tty: bool) -> Value {
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    if tty && let Some(env) = process["env"].as_array_mut() {
        let has_term = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")));
        if !has_term {
            env.push(json!("TERM=xterm"));
        }
    }
    process
}

/// What `ExecSync` answers.
pub(crate) struct Collected {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// Runs `command` to its end. `timeout_seconds` 0 is no limit; a process that exceeds it is killed.
pub(crate) async fn run(
    container: &Container,
    sandbox: &Sandbox,
    command: &[String],
    timeout_seconds: i64,
) -> Result<Collected, RuntimeError> {
    let (stdout, stdout_writer) = output_pipe()?;
    let (stderr, stderr_writer) = output_pipe()?;
    let stdin = std::fs::File::open("/dev/null").map_err(during("opening /dev/null"))?;
    let stdio = vec![stdin.into(), stdout_writer, stderr_writer];
    let mut running = start(container, sandbox, command, false, stdio).await?;
    let (stdout, stderr) = (tokio::spawn(collect(stdout)), tokio::spawn(collect(stderr)));
    let exit_code = match u64::try_from(timeout_seconds).unwrap_or(0) {
        0 => running.handle.wait().await?,
        seconds => match tokio::time::timeout(Duration::from_secs(seconds), running.handle.wait()).await {
            Ok(exit) => exit?,
            Err(_) => {
                sandbox.shim.kill(&container.id, Some(running.id), libc::SIGKILL, false).await?;
                stdout.abort();
                stderr.abort();
                return Err(RuntimeError::TimedOut(format!(
                    "failed to exec in container: timeout {seconds}s exceeded: context deadline exceeded"
                )));
            }
        },
    };
    Ok(Collected { stdout: drained(stdout).await?, stderr: drained(stderr).await?, exit_code })
}

async fn drained(task: tokio::task::JoinHandle<std::io::Result<Vec<u8>>>) -> Result<Vec<u8>, RuntimeError> {
    let aborter = task.abort_handle();
    match tokio::time::timeout(DRAIN_PATIENCE, task).await {
        Ok(Ok(output)) => output.map_err(during("reading a command's output")),
        Ok(Err(failed)) => {
            Err(RuntimeError::Io { step: "reading a command's output", source: failed.into() })
        }
        Err(_) => {
            aborter.abort();
            Err(RuntimeError::TimedOut("the command's output stays open after its end".to_owned()))
        }
    }
}

async fn collect(pipe: OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut pipe = Receiver::from_owned_fd(pipe)?;
    let mut kept = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    loop {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            return Ok(kept);
        }
        let room = MAX_OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
}
