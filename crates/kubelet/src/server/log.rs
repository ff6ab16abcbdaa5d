//! `containerLogs`: a container's log, whole or in part, and as it grows.

use std::io::{self, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use coxswain_cri::v1;
use http::{Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Query, Refusal, find};
use crate::kubelet::Kubelet;
use crate::model::{self, CONTAINER_NAME, PodId, RESTART_COUNT};
use crate::pod::containers;

/// What of the log is wanted.
#[derive(Clone, Debug, Default)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<usize>,
    stream: Option<String>,
}

fn options(query: &Query) -> Result<Options, Refusal> {
    let number = |key: &str| -> Result<Option<i64>, Refusal> {
        let parse = |text: &str| text.parse().map_err(|_| Refusal::bad(format!("invalid {key}: {text}")));
        query.get(key).filter(|text| !text.is_empty() && *text != "all").map(parse).transpose()
    };
    let seconds = number("sinceSeconds")?.map(|s| Timestamp::now() - SignedDuration::from_secs(s.max(0)));
    let time = query.get("sinceTime").filter(|text| !text.is_empty());
    let time = time.map(|text| text.parse().map_err(|_| Refusal::bad(format!("invalid sinceTime: {text}"))));
    let count = |n: i64| usize::try_from(n).ok();
    Ok(Options {
        follow: query.on(&["follow"]),
        previous: query.on(&["previous"]),
        timestamps: query.on(&["timestamps"]),
        tail: number("tailLines")?.and_then(count),
        since: seconds.or(time.transpose()?),
        limit: number("limitBytes")?.and_then(count),
        stream: query.get("stream").filter(|s| !s.is_empty() && *s != "All").map(str::to_lowercase),
    })
}

/// Serves the log of a container.
pub async fn serve(
    kubelet: Arc<Kubelet>,
    query: &Query,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Response<Body>, Refusal> {
    let options = options(query)?;
    // Listen before looking, so that an end in between is not missed.
    let ends = kubelet.stopped.subscribe();
    let status = instance(&kubelet, namespace, pod, container, options.previous).await?;
    let path = PathBuf::from(&status.log_path);
    let live = options.follow && status.state() != v1::ContainerState::ContainerExited;
    let (sender, receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(16);
    // Whoever does not follow is not sent what is written meanwhile.
    let lines = options.tail.filter(|_| !options.follow);
    let reader =
        Reader { path, left: options.limit, lines, options, sender, container_id: status.id, kubelet };
    // Ends with the file, with the container, or when the caller hangs up.
    tokio::spawn(async move {
        if let Err(error) = reader.run(live, ends).await {
            tracing::debug!(%error, "log not read to its end");
        }
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))));
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Ok(response)
}

/// The status of the instance whose log is wanted.
async fn instance(
    kubelet: &Kubelet,
    namespace: &str,
    pod_name: &str,
    container: &str,
    previous: bool,
) -> Result<v1::ContainerStatus, Refusal> {
    let pod = find(kubelet, namespace, pod_name)?;
    if containers::find(&pod, container).is_none() {
        return Err(Refusal::bad(format!("container {container} is not valid for pod {pod_name}")));
    }
    let listed = kubelet.cri.containers(Some(&PodId::of(&pod).uid)).await;
    let mut listed = listed.map_err(|error| Refusal::internal(crate::cri::text(&error)))?;
    listed.retain(|c| c.labels.get(CONTAINER_NAME).is_some_and(|name| name == container));
    let attempt = |c: &v1::Container| c.annotations.get(RESTART_COUNT).and_then(|n| n.parse::<u32>().ok());
    listed.sort_by_key(|c| std::cmp::Reverse((attempt(c), model::time(c.created_at))));
    let chosen = if previous {
        let missing =
            format!("previous terminated container \"{container}\" in pod \"{pod_name}\" not found");
        listed.get(1).ok_or_else(|| Refusal::bad(missing))?
    } else {
        listed.first().ok_or_else(|| waiting(&pod, pod_name, container))?
    };
    let status = kubelet.cri.container_status(&chosen.id).await;
    let status = status.map_err(|error| Refusal::internal(crate::cri::text(&error)))?;
    status.ok_or_else(|| waiting(&pod, pod_name, container))
}

fn waiting(pod: &k8s_openapi::api::core::v1::Pod, pod_name: &str, container: &str) -> Refusal {
    let statuses = pod.status.as_ref();
    let lists = [
        statuses.and_then(|s| s.container_statuses.as_ref()),
        statuses.and_then(|s| s.init_container_statuses.as_ref()),
    ];
    let status = lists.into_iter().flatten().flatten().find(|s| s.name == container);
    let reason = status.and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let reason = reason.unwrap_or_else(|| "ContainerCreating".to_owned());
    let text = format!("container \"{container}\" in pod \"{pod_name}\" is waiting to start: {reason}");
    Refusal::bad(text)
}

/// One line of a CRI log: time, stream, whether the line goes on, content.
fn parse(line: &[u8]) -> Option<(&str, &str, bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(parts.next()?).ok();
    let (time, stream, tags) = (word()?, word()?, word()?);
    Some((time, stream, tags.split(':').next() == Some("P"), parts.next().unwrap_or_default()))
}

struct Reader {
    path: PathBuf,
    options: Options,
    left: Option<usize>,
    /// Lines that are still wanted.
    lines: Option<usize>,
    sender: mpsc::Sender<io::Result<Frame<Bytes>>>,
    container_id: String,
    kubelet: Arc<Kubelet>,
}

impl Reader {
    async fn run(mut self, live: bool, mut ends: broadcast::Receiver<String>) -> io::Result<()> {
        let watch = if live { Some(watch(&self.path)?) } else { None };
        let mut file = BufReader::new(File::open(&self.path).await?);
        if let Some(lines) = self.options.tail {
            let start = tail_start(file.get_mut(), lines).await?;
            file.seek(SeekFrom::Start(start)).await?;
        }
        let mut line = Vec::new();
        let mut ended = !live;
        loop {
            if !self.drain(&mut file, &mut line).await? {
                return Ok(());
            }
            if let Some(next) = self.rotated(&file).await {
                file = BufReader::new(next);
                continue;
            }
            if ended {
                return Ok(());
            }
            let Some(watch) = &watch else { return Ok(()) };
            tokio::select! {
                ready = watch.readable() => {
                    let mut ready = ready?;
                    let _ = watch.get_ref().0.read_events();
                    ready.clear_ready();
                }
                end = ends.recv() => ended = match end {
                    Ok(id) => id == self.container_id,
                    Err(_) => self.has_ended().await,
                },
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    async fn has_ended(&self) -> bool {
        match self.kubelet.cri.container_status(&self.container_id).await {
            Ok(Some(status)) => status.state() == v1::ContainerState::ContainerExited,
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Sends what is there; `false` when no more is wanted. Keeps a line that is not complete yet.
    async fn drain(&mut self, file: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<bool> {
        let mut chunk = Vec::new();
        loop {
            if self.lines == Some(0) {
                self.send(chunk).await;
                return Ok(false);
            }
            let read = file.read_until(b'\n', line).await?;
            if read == 0 || line.last() != Some(&b'\n') {
                return Ok(self.send(chunk).await);
            }
            self.lines = self.lines.map(|lines| lines - 1);
            line.pop();
            self.render(line, &mut chunk);
            line.clear();
            let full = self.left.is_some_and(|left| chunk.len() >= left);
            if (full || chunk.len() > 32 << 10) && !self.send(std::mem::take(&mut chunk)).await {
                return Ok(false);
            }
        }
    }

    fn render(&self, line: &[u8], chunk: &mut Vec<u8>) {
        let Some((time, stream, partial, content)) = parse(line) else { return };
        let early = |since: Timestamp| time.parse::<Timestamp>().is_ok_and(|time| time < since);
        if self.options.since.is_some_and(early)
            || self.options.stream.as_deref().is_some_and(|s| s != stream)
        {
            return;
        }
        if self.options.timestamps {
            chunk.extend_from_slice(time.as_bytes());
            chunk.push(b' ');
        }
        chunk.extend_from_slice(content);
        if !partial {
            chunk.push(b'\n');
        }
    }

    async fn send(&mut self, mut chunk: Vec<u8>) -> bool {
        if let Some(left) = &mut self.left {
            chunk.truncate(*left);
            *left -= chunk.len();
        }
        let heard = chunk.is_empty() || self.sender.send(Ok(Frame::data(Bytes::from(chunk)))).await.is_ok();
        heard && self.left != Some(0)
    }

    /// The new file, when the one being read was moved away.
    async fn rotated(&self, file: &BufReader<File>) -> Option<File> {
        use std::os::unix::fs::MetadataExt;
        let open = file.get_ref().metadata().await.ok()?;
        let there = tokio::fs::metadata(&self.path).await.ok()?;
        if open.ino() == there.ino() {
            return None;
        }
        File::open(&self.path).await.ok()
    }
}

/// An inotify instance that the reactor can wait for.
struct Changes(Inotify);

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells of every change in the log's directory.
fn watch(path: &Path) -> io::Result<AsyncFd<Changes>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(path.parent().unwrap_or(path), flags)?;
    // Its successor is unsafe for types that lie about their descriptor; `Changes` owns one and tells the truth.
    #[allow(deprecated)]
    AsyncFd::new(Changes(inotify))
}

/// Where the last `lines` lines of a file begin.
async fn tail_start(file: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 32 << 10;
    let end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    let (mut position, mut seen) = (end, 0);
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start)).await?;
        let mut block = Vec::new();
        (&mut *file).take(position - start).read_to_end(&mut block).await?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let at = start + index as u64 + 1;
            // The newline at the very end closes the last line, it does not begin one.
            if at < end {
                seen += 1;
            }
            if seen == lines {
                return Ok(at);
            }
        }
        position = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        assert_eq!(parse(b"t stdout F a b"), Some(("t", "stdout", false, &b"a b"[..])));
        assert_eq!(parse(b"t stderr P "), Some(("t", "stderr", true, &b""[..])));
        assert_eq!(parse(b"broken"), None);
    }

    #[tokio::test]
    async fn the_last_lines_are_found_across_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let line = "x".repeat(999);
        std::fs::write(&path, format!("{line}\n").repeat(100)).expect("a log");
        let mut file = File::open(&path).await.expect("the log");
        for (lines, expected) in [(0, 100_000), (1, 99_000), (50, 50_000), (100, 0), (1000, 0)] {
            assert_eq!(tail_start(&mut file, lines).await.expect("a position"), expected, "{lines}");
        }
    }
}
