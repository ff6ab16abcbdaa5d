//! The watch that tells what all servers append, and the queue in which it waits for the store's writer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{interval, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Position;
use super::history;
use super::keys::Keys;
use super::layout::{Appended, Assembly, Head, Layout};
use super::members::{Members, PAUSE};
use super::proto::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, event, watch_request,
};
use crate::{Arrival, LogError, Revision, Wake};

/// An idle watch is asked for its progress after this long, and given up when it has not answered after twice this.
const IDLE: Duration = Duration::from_secs(3);

enum Arrived {
    Appended(Appended),
    /// The history in between is gone; this is what there is now.
    Replaced(history::Snapshot),
}

impl Arrived {
    fn position(&self) -> Position {
        match self {
            Self::Appended(appended) => Position { revision: appended.head.revision, head: appended.etcd },
            Self::Replaced(snapshot) => snapshot.at,
        }
    }
}

struct Queue {
    arrived: VecDeque<Arrived>,
    /// What this process was acknowledged.
    own: Revision,
    wake: Option<Wake>,
}

/// What has arrived and is not yet applied.
pub struct Arrivals {
    queue: Mutex<Queue>,
    changed: Notify,
    writer: u64,
}

impl Arrivals {
    pub fn new(writer: u64, at: Position) -> Self {
        let queue = Queue { arrived: VecDeque::new(), own: at.revision, wake: None };
        Self { queue: Mutex::new(queue), changed: Notify::new(), writer }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().arrived.is_empty()
    }

    /// Calls this whenever something arrives from now on, and once for what is there.
    pub fn wake_with(&self, wake: Wake) {
        wake();
        self.lock().wake = Some(wake);
    }

    /// What this process appended itself needs not wait here.
    pub fn own_until(&self, revision: Revision) {
        let mut queue = self.lock();
        // A snapshot that waits may be older than this append, which then has to arrive behind it.
        if !queue.arrived.iter().any(|arrived| matches!(arrived, Arrived::Replaced(_))) {
            queue.own = revision;
        }
    }

    /// Drops appends up to a revision of etcd: they are applied.
    pub fn forget_until(&self, etcd: i64) {
        let mut queue = self.lock();
        while matches!(queue.arrived.front(), Some(Arrived::Appended(appended)) if appended.etcd <= etcd) {
            queue.arrived.pop_front();
        }
    }

    /// The head of the first append that waits, and etcd's revision of it; none where history is gone. Waits for one.
    pub async fn first(&self) -> Option<(Head, i64)> {
        loop {
            let changed = self.changed.notified();
            match self.lock().arrived.front() {
                Some(Arrived::Appended(appended)) => return Some((appended.head.clone(), appended.etcd)),
                Some(Arrived::Replaced(_)) => return None,
                None => {}
            }
            changed.await;
        }
    }

    /// Waits until everything up to a revision has arrived.
    pub async fn reached(&self, revision: Revision) {
        loop {
            let changed = self.changed.notified();
            if self.lock().arrived.back().is_some_and(|arrived| arrived.position().revision >= revision) {
                return;
            }
            changed.await;
        }
    }

    /// Everything that waits, and where one stands with it.
    pub fn take(&self, mut at: Position) -> (Vec<Arrival>, Position) {
        let arrived = std::mem::take(&mut self.lock().arrived);
        let arrivals = arrived.into_iter().map(|arrived| {
            at = arrived.position();
            match arrived {
                Arrived::Appended(appended) => Arrival::Appended(appended.records),
                Arrived::Replaced(snapshot) => Arrival::Replaced(snapshot.records, snapshot.at.revision),
            }
        });
        (arrivals.collect(), at)
    }

    fn push(&self, arrived: Arrived) {
        let mut queue = self.lock();
        let own = matches!(&arrived, Arrived::Appended(appended)
            if appended.head.writer == self.writer && appended.head.revision <= queue.own);
        if own {
            return;
        }
        queue.arrived.push_back(arrived);
        if let Some(wake) = &queue.wake {
            wake();
        }
        drop(queue);
        self.changed.notify_waiters();
    }
}

/// Why a watch ended.
enum Ended {
    /// Try again, at another member.
    Broken(Status),
    /// What is asked for is compacted.
    Compacted,
    /// What arrives makes no sense.
    Damaged(LogError),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Broken(status)
    }
}

/// Follows etcd.
pub struct Follower {
    pub members: Arc<Members>,
    pub layout: Arc<Layout>,
    pub arrivals: Arc<Arrivals>,
    pub keys: Keys,
}

impl Follower {
    /// Delivers everything after a revision of etcd, whatever becomes of members and connections.
    pub async fn run(self, mut seen: i64) {
        loop {
            let (member, ended) = self.watch(&mut seen).await;
            match ended {
                Ended::Broken(status) => {
                    tracing::debug!(error = status.message(), "the watch of etcd broke");
                    self.members.turn_from(member);
                }
                Ended::Compacted => self.replace(&mut seen).await,
                Ended::Damaged(error) => {
                    tracing::error!(%error, "etcd holds what this server did not expect");
                    self.replace(&mut seen).await;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Begins anew with what there is now.
    async fn replace(&self, seen: &mut i64) {
        match history::current_snapshot(&self.members, &self.layout, &self.keys).await {
            Ok(snapshot) => {
                tracing::warn!("the history that this server needed is compacted: watches begin anew");
                *seen = snapshot.etcd;
                self.arrivals.push(Arrived::Replaced(snapshot));
            }
            Err(error) => tracing::warn!(%error, "etcd cannot be read"),
        }
    }

    async fn watch(&self, seen: &mut i64) -> (usize, Ended) {
        let (member, mut client) = self.members.watch();
        let (requests, outgoing) = mpsc::channel(2);
        let (key, range_end) = self.layout.everything();
        let create = WatchCreateRequest { key, range_end, start_revision: *seen + 1, progress_notify: true };
        let request = |union| WatchRequest { request_union: Some(union) };
        let create = request(watch_request::RequestUnion::CreateRequest(create));
        let ended = async {
            // The channel has room for two.
            let _ = requests.try_send(create);
            let opening = client.watch(ReceiverStream::new(outgoing));
            let opened = tokio::time::timeout(2 * IDLE, opening).await;
            let mut incoming = opened.map_err(|_| silent())??.into_inner();
            let mut assembly = Assembly::default();
            let mut silence = interval(IDLE);
            silence.reset();
            let mut asked = false;
            loop {
                tokio::select! {
                    message = incoming.message() => {
                        let response = message?.ok_or_else(|| Status::unavailable("the watch has ended"))?;
                        self.take(response, &mut assembly, seen).await?;
                        silence.reset();
                        asked = false;
                    }
                    _ = silence.tick() => {
                        if asked {
                            return Err(Ended::from(silent()));
                        }
                        let progress = watch_request::RequestUnion::ProgressRequest(WatchProgressRequest {});
                        let _ = requests.try_send(request(progress));
                        asked = true;
                    }
                }
            }
        };
        let ended: Result<std::convert::Infallible, Ended> = ended.await;
        let Err(ended) = ended;
        (member, ended)
    }

    async fn take(
        &self,
        response: WatchResponse,
        assembly: &mut Assembly,
        seen: &mut i64,
    ) -> Result<(), Ended> {
        if response.compact_revision > 0 {
            return Err(Ended::Compacted);
        }
        if response.canceled {
            return Err(Status::unavailable(response.cancel_reason).into());
        }
        for event in response.events {
            let deleted = event.r#type() == event::EventType::Delete;
            let Some(kv) = event.kv else { continue };
            let etcd = kv.mod_revision;
            if !deleted && self.keys.are(&kv.key) {
                // Before the head that comes with it: who has seen that one seals with the newest key.
                self.keys.learn(&self.layout, &kv.value).await.map_err(Ended::Damaged)?;
            }
            if let Some(appended) = assembly.take(&self.layout, deleted, kv).map_err(Ended::Damaged)? {
                self.arrivals.push(Arrived::Appended(appended));
            }
            // A revision of etcd comes whole, in one response.
            *seen = etcd;
        }
        Ok(())
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("the watch is silent")
}
