//! The short-lived process that runs libcontainer. It gets one [`BuildRequest`] on stdin (a socket) with
//! the container's stdio as descriptors, answers with the pid, and ends; the shim inherits the child.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};

use super::protocol::{self, Reply};

/// What to build.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BuildRequest {
    pub id: String,
    /// libcontainer's state directory.
    pub state: PathBuf,
    /// Where to send the terminal's master; `None` without a terminal.
    pub console: Option<PathBuf>,
    pub what: What,
}

/// A container's first process, or one more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Init {
        bundle: PathBuf,
    },
    /// File with the OCI `process` to run.
    Exec {
        process: PathBuf,
    },
}

pub(super) fn main() -> io::Result<()> {
    // Rust ignores SIGPIPE, and ignored signals stay ignored across exec: containers want the default.
    // SAFETY: no handler function is installed.
    unsafe { nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) }?;
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some((request, fds)) = protocol::receive::<BuildRequest>(&control)? else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let reply = match build(request, fds) {
        Ok(pid) => Reply::Started { pid },
        Err(error) => Reply::Error { message: innermost(&error) },
    };
    protocol::send(&control, &reply, &[])
}

fn build(request: BuildRequest, fds: Vec<OwnedFd>) -> Result<i32, LibcontainerError> {
    let mut builder =
        ContainerBuilder::new(request.id, SyscallType::default()).with_root_path(request.state)?;
    let terminal = request.console.is_some();
    if terminal {
        builder = builder.with_console_socket(request.console);
    } else if let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    match request.what {
        What::Init { bundle } => {
            let mut container = builder.as_init(bundle).with_systemd(false).build()?;
            container.start()?;
            Ok(container.pid().map_or(0, |pid| pid.as_raw()))
        }
        What::Exec { process } => {
            let tenant = builder.as_tenant().with_process(Some(process)).with_detach(terminal);
            Ok(tenant.build()?.as_raw())
        }
    }
}

/// The cause is what a user can act on; what wraps it repeats or hides it.
fn innermost(error: &dyn Error) -> String {
    let mut current = error;
    let mut message = error.to_string();
    while let Some(source) = current.source() {
        let text = source.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        current = source;
    }
    message
}
