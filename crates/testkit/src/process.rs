//! A `cox` that runs inside an isolation, and its end.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;
use crate::isolation::Isolation;

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

struct Running {
    nsenter: Child,
    pid: i32,
}

/// One process, or none at the moment. It is shared: one thread may kill it while others use the cluster.
#[derive(Default)]
pub struct Process(Mutex<Option<Running>>);

impl Process {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        // A test that panicked with the lock is being cleaned up after.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `command`, a command of `isolation`, with its output going to the end of a file.
    ///
    /// # Errors
    /// It runs already or cannot run.
    pub fn start(&self, isolation: &Isolation, mut command: Command, log: &Path) -> anyhow::Result<()> {
        let mut running = self.running();
        anyhow::ensure!(running.is_none(), "it runs already");
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        let mut nsenter = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        let started = eventually("the process", START, || {
            anyhow::ensure!(nsenter.try_wait()?.is_none(), "it ended at once, see {}", log.display());
            isolation.inner(nsenter.id())
        });
        *running = Some(Running { pid: started?, nsenter });
        Ok(())
    }

    /// Fails where it has ended by itself.
    ///
    /// # Errors
    /// It has.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut running = self.running();
        if let Some(status) = running.as_mut().context("it does not run")?.nsenter.try_wait()? {
            *running = None;
            anyhow::bail!("it ended ({status})");
        }
        Ok(())
    }

    /// Kills it as a power cut would: with SIGKILL. What it started goes on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        let mut running = self.running().take().context("it does not run")?;
        kill(Pid::from_raw(running.pid), Signal::SIGKILL)?;
        running.nsenter.wait()?;
        Ok(())
    }

    /// Stops it with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It does not run, does not end, or says it failed.
    pub fn stop(&self) -> anyhow::Result<()> {
        let mut running = self.running().take().context("it does not run")?;
        kill(Pid::from_raw(running.pid), Signal::SIGTERM)?;
        let status = eventually("its end", STOP, || running.nsenter.try_wait()?.context("it still runs"));
        match status {
            Ok(status) => anyhow::ensure!(status.success(), "it ended with {status}"),
            Err(error) => {
                let _ = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The host's id of the process.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> anyhow::Result<i32> {
        Ok(self.running().as_ref().context("it does not run")?.pid)
    }
}
