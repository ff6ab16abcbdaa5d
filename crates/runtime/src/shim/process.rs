//! A running container as the shim sees it: its output streams with the log and attached readers, and
//! its input with attached writers. All descriptors are non-blocking; nothing here waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::logs::{LineSplitter, LogFile, StreamKind};
use super::protocol::{ProcessStatus, StartRequest};

const CHUNK_BYTES: usize = 8 << 10;

/// One container.
pub(super) struct Container {
    pub start: StartRequest,
    pub status: ProcessStatus,
    pub outputs: Vec<Output>,
    pub input: Input,
    pub log: Option<LogFile>,
    /// The terminal, for resizing.
    pub terminal: Option<OwnedFd>,
}

impl Container {
    /// Whether its first process still runs.
    pub fn is_running(&self) -> bool {
        self.status.exit.is_none()
    }

    /// Moves what output is there to the log and the attached readers.
    pub fn pump_output(&mut self, index: usize) {
        let Some(output) = self.outputs.get_mut(index) else { return };
        let mut entries = Vec::new();
        output.pump(&mut entries);
        if let Some(log) = self.log.as_mut().filter(|_| !entries.is_empty()) {
            log.append(&entries);
        }
    }

    /// Takes all output that is still in the pipes; the writers are dead, so this ends.
    pub fn drain(&mut self) {
        for index in 0..self.outputs.len() {
            // A pipe holds at most 1 MiB, so this bound is never the reason to stop.
            for _ in 0..256 {
                let output = &mut self.outputs[index];
                output.release_sinks();
                if output.source.is_none() || !output.readable_now() {
                    break;
                }
                self.pump_output(index);
            }
            let mut entries = Vec::new();
            self.outputs[index].splitter.finish(SystemTime::now(), &mut entries);
            if let Some(log) = self.log.as_mut().filter(|_| !entries.is_empty()) {
                log.append(&entries);
            }
        }
    }
}

/// One output stream.
pub(super) struct Output {
    pub kind: StreamKind,
    /// `None` once the stream ended.
    pub source: Option<File>,
    pub sinks: Vec<Sink>,
    splitter: LineSplitter,
}

/// An attached reader. While it lags, its container's stream is not read: output is never dropped.
pub(super) struct Sink {
    pub file: File,
    pub backlog: Vec<u8>,
}

impl Sink {
    /// Writes what it can; `false` when the reader is gone.
    pub fn flush(&mut self) -> bool {
        while !self.backlog.is_empty() {
            match self.file.write(&self.backlog) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Output {
    pub fn new(kind: StreamKind, source: OwnedFd) -> Self {
        Self { kind, source: Some(File::from(source)), sinks: Vec::new(), splitter: LineSplitter::new(kind) }
    }

    /// The descriptor to wait on, unless a reader has to catch up first.
    pub fn poll_fd(&self) -> Option<RawFd> {
        let lagging = self.sinks.iter().any(|sink| !sink.backlog.is_empty());
        self.source.as_ref().filter(|_| !lagging).map(AsRawFd::as_raw_fd)
    }

    fn pump(&mut self, entries: &mut Vec<u8>) {
        let Some(source) = &mut self.source else { return };
        let mut chunk = [0u8; CHUNK_BYTES];
        match source.read(&mut chunk) {
            // A terminal whose last user is gone reads as EIO.
            Ok(0) => self.close(entries),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => self.close(entries),
            Err(_) => {}
            Ok(count) => {
                self.splitter.push(&chunk[..count], SystemTime::now(), entries);
                self.sinks.retain_mut(|sink| {
                    sink.backlog.extend_from_slice(&chunk[..count]);
                    sink.flush()
                });
            }
        }
    }

    fn close(&mut self, entries: &mut Vec<u8>) {
        self.splitter.finish(SystemTime::now(), entries);
        self.source = None;
        self.sinks.retain(|sink| !sink.backlog.is_empty());
    }

    fn readable_now(&self) -> bool {
        let Some(source) = &self.source else { return false };
        let mut waiting = [nix::poll::PollFd::new(source.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut waiting, nix::poll::PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Lets readers that lag behind a dead container go with what their pipes could take.
    fn release_sinks(&mut self) {
        self.sinks.retain_mut(|sink| sink.flush() && sink.backlog.is_empty());
    }
}

/// A container's stdin.
#[derive(Default)]
pub(super) struct Input {
    /// The container's end: a pipe or the terminal.
    pub target: Option<File>,
    pub writers: Vec<File>,
    pub backlog: Vec<u8>,
    /// The last writer is gone and the container shall see the end once it has read the rest.
    closing: bool,
}

impl Input {
    /// An input that feeds `target`.
    pub fn new(target: Option<File>) -> Self {
        Self { target, ..Self::default() }
    }

    /// Reads from one attached writer; a writer at its end is let go.
    pub fn pump(&mut self, index: usize, close_after: bool) {
        let mut chunk = [0u8; CHUNK_BYTES];
        match self.writers[index].read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(count) if count > 0 => self.backlog.extend_from_slice(&chunk[..count]),
            _ => {
                self.writers.remove(index);
                self.closing = close_after && self.writers.is_empty();
            }
        }
        self.flush();
    }

    /// Writes what the container takes.
    pub fn flush(&mut self) {
        let Some(target) = &mut self.target else {
            self.backlog.clear();
            return;
        };
        let written = if self.backlog.is_empty() { Ok(0) } else { target.write(&self.backlog) };
        match written {
            Ok(count) => drop(self.backlog.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.closing = true;
                self.backlog.clear();
            }
        }
        if self.closing && self.backlog.is_empty() {
            self.target = None;
        }
    }
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sets a terminal's size.
pub(crate) fn resize(terminal: &impl AsRawFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    nix::errno::Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
    Ok(())
}
