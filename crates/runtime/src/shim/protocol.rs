//! What the server and a pod's shim say to each other, and how it travels: a unix stream of frames, each
//! a length (u32, big endian) and a JSON document, with file descriptors riding on the frame's first byte.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest frame either side accepts; an exec's process description is by far the largest.
const MAX_FRAME_BYTES: usize = 4 << 20;

/// Bytes of one read.
const CHUNK_BYTES: usize = 2048;

/// Most descriptors one frame may carry (stdin, stdout, stderr).
const MAX_FRAME_FDS: usize = 3;

/// How a shim is started: written to a file by the server, read once by the shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    /// Where the shim listens.
    pub socket: PathBuf,
    /// The sandbox's directory: libcontainer's state and the shim's own log live here.
    pub dir: PathBuf,
    /// Host name of the pod's UTS namespace; `None` leaves the host's namespace in place.
    pub hostname: Option<String>,
    /// Whether the pod gets a network namespace of its own.
    pub private_network: bool,
    /// Whether the pod gets an IPC namespace of its own.
    pub private_ipc: bool,
    /// Whether the pod's containers share one PID namespace.
    pub shared_pid: bool,
    /// Mapping of the pod's user namespace; `None` stays in the host's.
    pub user_namespace: Option<UserMapping>,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Cgroup that shims share, outside every pod's limits.
    pub cgroup: String,
    /// How many files containers may have open, unless the server's own limit is theirs.
    pub open_files: Option<u64>,
}

/// The contents of `uid_map` and `gid_map`, one line a range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UserMapping {
    pub uids: String,
    pub gids: String,
}

/// A request to a shim. A connection carries one request, except after [`Request::Watch`] and
/// [`Request::Exec`], whose connections stay open for what follows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Create and start a container from an OCI bundle. Answer: `Started`.
    Start(StartRequest),
    /// Run a process in a container. Descriptors: stdin, stdout, stderr; none with a terminal, whose
    /// master rides on the answer. Answer: `Started`, later `Exited`.
    Exec(ExecRequest),
    /// Signal a container's init, one of its exec'd processes, or everything in its cgroup.
    Kill { container: String, exec: Option<String>, signal: i32, all: bool },
    /// Resize a container's terminal.
    Resize { container: String, width: u16, height: u16 },
    /// Connect pipes to a container's stdio. Descriptors: those asked for, in this order.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Open the log file anew after it was rotated.
    ReopenLog { container: String },
    /// Stay connected and hear of containers whose status on disk changes (`Changed`).
    Watch,
    /// Answer `Ok`, kill what runs and end; the namespaces end with the shim.
    Shutdown,
}

/// See [`Request::Start`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub id: String,
    /// Bundle directory; the shim keeps `status.json` in it.
    pub bundle: PathBuf,
    /// CRI log file; `None` discards output.
    pub log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Cgroup of the container, relative to the hierarchy's root.
    pub cgroup: String,
}

/// See [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub container: String,
    pub exec: String,
    /// An OCI `process` object.
    pub process: serde_json::Value,
    pub tty: bool,
}

/// A shim's (or helper's) answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok,
    Started { pid: i32 },
    Exited { id: String, exit_code: i32 },
    Changed { id: String },
    Error { message: String },
}

/// A container's fate as the shim keeps it on disk; times are nanoseconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessStatus {
    pub pid: i32,
    pub started_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitStatus {
    pub exit_code: i32,
    pub finished_at: i64,
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// Sends one frame on a blocking stream.
pub(crate) fn send(stream: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let frame = [&length.to_be_bytes()[..], &body].concat();
    let raw: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let iov = [IoSlice::new(&frame)];
    let mut sent = loop {
        match socket::sendmsg::<UnixAddr>(stream.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => break other?,
        }
    };
    while sent < frame.len() {
        sent += io::Write::write(&mut &*stream, &frame[sent..])?;
    }
    Ok(())
}

/// Receives one frame from a blocking stream; `None` when the peer is gone.
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut reader = FrameReader::default();
    loop {
        if let Some(frame) = reader.next()? {
            return Ok(Some(frame));
        }
        // What comes behind this frame is for whoever reads the stream next.
        if reader.fill_up_to(stream, reader.missing())? == 0 {
            return Ok(None);
        }
    }
}

/// Gathers a stream's bytes and descriptors into frames.
#[derive(Default)]
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl FrameReader {
    /// Reads once; returns how many bytes came, 0 at the end.
    pub fn fill(&mut self, stream: &UnixStream) -> io::Result<usize> {
        self.fill_up_to(stream, CHUNK_BYTES)
    }

    /// How many bytes the frame that has begun still lacks, as far as is known.
    fn missing(&self) -> usize {
        match self.buffer.first_chunk::<4>() {
            None => 4 - self.buffer.len(),
            Some(head) => 4 + u32::from_be_bytes(*head) as usize - self.buffer.len(),
        }
    }

    fn fill_up_to(&mut self, stream: &UnixStream, limit: usize) -> io::Result<usize> {
        let mut chunk = [0u8; CHUNK_BYTES];
        let chunk = &mut chunk[..limit.min(CHUNK_BYTES)];
        let mut control = nix::cmsg_space!([i32; MAX_FRAME_FDS]);
        let mut iov = [IoSliceMut::new(chunk)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match socket::recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => break other?,
            }
        };
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel just installed these descriptors for us; nobody else owns them.
                self.fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let count = message.bytes;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    /// Takes a descriptor that came without a frame (a terminal from libcontainer).
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// Takes a whole frame out, with the descriptors that came so far.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too long"));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.buffer[4..4 + length])?;
        self.buffer.drain(..4 + length);
        self.buffer.shrink_to(4096);
        Ok(Some((message, std::mem::take(&mut self.fds))))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_frame_brings_its_descriptors_and_leaves_what_follows() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        send(&near, &Reply::Started { pid: 7 }, &[std::os::fd::AsFd::as_fd(&writer)]).unwrap();
        drop(writer);
        send(&near, &Reply::Exited { id: "x".into(), exit_code: 3 }, &[]).unwrap();
        drop(near);
        let (first, fds) = receive::<Reply>(&far).unwrap().unwrap();
        assert!(matches!(first, Reply::Started { pid: 7 }));
        assert_eq!(fds.len(), 1);
        drop(fds);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the last copy of the writing end is gone");
        let (second, _) = receive::<Reply>(&far).unwrap().unwrap();
        assert!(matches!(second, Reply::Exited { exit_code: 3, .. }));
        assert!(receive::<Reply>(&far).unwrap().is_none());
    }
}
