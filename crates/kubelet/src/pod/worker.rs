//! The worker of one pod: it gathers what happened, decides ([`super::plan`]), starts the work and publishes the status.
//!
//! Work runs beside the worker, so that neither a slow pull nor a long grace period keeps it from seeing the next event.

mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::containers::{self, Kind, spec};
use super::plan::{self, Action, Input, Plan, Work};
use super::publish::{self, Publisher};
use super::resize::Resize;
use super::start::{self, StartRequest};
use super::status::{self, View};
use super::table::Message;
use super::{EndReason, Ending, Health, HealthById, Waiting, kill, prepare};
use crate::admit::Rejection;
use crate::backoff::Backoff;
use crate::kubelet::Kubelet;
use crate::model::{ContainerRecord, PodId, PodRuntime, State};
use crate::probe::{ProbeKind, ProbeReport, Probes};
use crate::spec::resources::PodCgroup;
use crate::volumes::Mounted;

/// How long a pod may keep others from coming up.
const SLOT: SignedDuration = SignedDuration::from_millis(1500);

/// How a worker begins.
pub enum Start {
    /// The pod is to run.
    Run,
    /// The node does not admit the pod.
    Rejected(Rejection),
    /// The pod has ended before.
    Over,
    /// The pod's object is gone.
    Orphan,
}

/// A piece of work that failed.
#[derive(Debug)]
pub struct Failure {
    /// What the container waits for meanwhile.
    pub waiting: Option<Waiting>,
    /// When to try again, if the work says so; otherwise the worker's own back-off.
    pub retry_after: Option<SignedDuration>,
}

impl Failure {
    /// A failure after which the worker's own back-off decides.
    pub fn plain() -> Self {
        Self { waiting: None, retry_after: None }
    }
}

enum Done {
    Work(Work, Result<(), Failure>),
    Prepared(Result<Mounted, Failure>),
    Sandbox(Option<OwnedSemaphorePermit>, Result<(), Failure>),
    Resized(PodCgroup, Vec<String>, Result<(), String>),
    Published(bool),
    TornDown(bool),
    Deleted(bool),
}

/// How far the end of the pod has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Processes may run.
    Alive,
    /// Volumes and cgroup are being given back.
    TearingDown,
    /// Nothing is left but the dead containers and their logs.
    Bare,
    /// The object is being deleted.
    Deleting,
    /// The object was deleted, as far as we are concerned.
    Deleted,
}

struct Failed {
    waiting: Option<Waiting>,
    since: Timestamp,
    told: bool,
}

#[derive(Clone, Debug, Default)]
struct Verdicts {
    startup: bool,
    readiness: bool,
    failed: Option<(String, Option<i64>)>,
}

/// The state of one pod on this node.
pub struct Worker {
    kubelet: Arc<Kubelet>,
    id: PodId,
    pod: Arc<Pod>,
    /// The pod with the resources that were granted.
    granted: Arc<Pod>,
    resize: Resize,
    gone: bool,
    inbox: mpsc::UnboundedReceiver<Message>,
    sender: mpsc::UnboundedSender<Message>,
    runtime: PodRuntime,
    stale: bool,
    seeded: bool,
    mounted: Option<Arc<Mounted>>,
    remount: bool,
    ending: Option<Ending>,
    stage: Stage,
    busy: BTreeSet<Work>,
    kills: BTreeMap<String, Timestamp>,
    stopped: BTreeSet<String>,
    retries: BTreeMap<Work, Timestamp>,
    attempts: BTreeMap<Work, u32>,
    failed: BTreeMap<String, Failed>,
    crashes: Backoff,
    crash_told: BTreeSet<String>,
    verdicts: BTreeMap<String, Verdicts>,
    probes: Probes,
    publisher: Publisher,
    tasks: JoinSet<Done>,
    starts: CancellationToken,
    wake_at: Option<Timestamp>,
    end_again_at: Option<Timestamp>,
    end_failures: u32,
    slot: Option<(OwnedSemaphorePermit, Timestamp)>,
}

impl Worker {
    /// A worker that knows nothing yet of what the runtime has.
    pub fn new(
        kubelet: Arc<Kubelet>,
        pod: Arc<Pod>,
        start: Start,
        sender: mpsc::UnboundedSender<Message>,
        inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        let grace_seconds = containers::grace_seconds(&pod);
        let end = |why| Some(Ending { why, since: Timestamp::now(), grace_seconds });
        let gone = matches!(start, Start::Orphan);
        let ending = match start {
            Start::Run => None,
            Start::Rejected(Rejection { reason, message }) => {
                kubelet.events.warning(&pod, &reason, message.clone());
                end(EndReason::Failed(reason, format!("Pod was rejected: {message}")))
            }
            Start::Over => end(EndReason::Finished),
            Start::Orphan => end(EndReason::Deleted),
        };
        let mut worker = Self {
            id: PodId::of(&pod),
            publisher: Publisher::new(pod.status.clone().unwrap_or_default()),
            kubelet,
            granted: pod.clone(),
            resize: Resize::default(),
            pod,
            gone,
            inbox,
            sender,
            runtime: PodRuntime::default(),
            stale: true,
            seeded: false,
            mounted: None,
            remount: false,
            ending,
            stage: Stage::Alive,
            busy: BTreeSet::new(),
            kills: BTreeMap::new(),
            stopped: BTreeSet::new(),
            retries: BTreeMap::new(),
            attempts: BTreeMap::new(),
            failed: BTreeMap::new(),
            crashes: Backoff::new(10, 300),
            crash_told: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            probes: Probes::default(),
            tasks: JoinSet::new(),
            starts: CancellationToken::new(),
            wake_at: None,
            end_again_at: None,
            end_failures: 0,
            slot: None,
        };
        worker.note_deletion();
        worker
    }

    /// Works until the pod's object and everything of it on the node is gone.
    pub async fn run(mut self) {
        loop {
            if self.stale {
                self.refresh().await;
            }
            if !self.stale {
                self.step();
            }
            if self.gone && self.stage >= Stage::Bare && self.busy.is_empty() {
                break;
            }
            self.wait().await;
        }
        self.probes.stop();
        prepare::forget(&self.kubelet, &self.id, &self.runtime).await;
    }

    /// Waits for the next event or time, and takes all events that are there.
    async fn wait(&mut self) {
        let sleep = async |at: Option<Timestamp>| match at {
            Some(at) => {
                let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                tokio::time::sleep(left).await;
            }
            None => std::future::pending().await,
        };
        tokio::select! {
            biased;
            Some(message) = self.inbox.recv() => self.take(message),
            Some(Ok(done)) = self.tasks.join_next() => self.finish(done),
            () = sleep(self.wake_at) => {}
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        while let Some(Ok(done)) = self.tasks.try_join_next() {
            self.finish(done);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                self.retry_changed(&pod);
                // Volumes of the downward API tell them.
                let (old, new) = (&self.pod.metadata, &pod.metadata);
                self.remount |= old.labels != new.labels || old.annotations != new.annotations;
                self.pod = pod;
                self.note_deletion();
            }
            Message::Gone => {
                self.gone = true;
                self.end(EndReason::Deleted, containers::grace_seconds(&self.pod));
            }
            Message::Runtime => self.stale = true,
            Message::Room => {}
            Message::Objects => {
                self.remount = true;
                self.retries.retain(|work, _| !matches!(work, Work::Prepare | Work::Container(_)));
            }
            Message::Probe(report) => self.note_probe(report),
        }
    }

    /// A container whose image was corrected does not wait for the back-off of the wrong one.
    fn retry_changed(&mut self, new: &Pod) {
        for container in &spec(new).containers {
            let old = spec(&self.pod).containers.iter().find(|c| c.name == container.name);
            if old.is_some_and(|old| old.image != container.image) {
                self.retries.remove(&Work::Container(container.name.clone()));
                self.failed.remove(&container.name);
            }
        }
    }

    fn note_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self.pod.metadata.deletion_grace_period_seconds;
            self.end(EndReason::Deleted, grace.unwrap_or_else(|| containers::grace_seconds(&self.pod)));
        }
    }

    fn end(&mut self, why: EndReason, grace_seconds: i64) {
        let now = Timestamp::now();
        match &mut self.ending {
            None => self.ending = Some(Ending { why, since: now, grace_seconds }),
            Some(ending) => {
                if ending.why == EndReason::Finished {
                    ending.why = why;
                }
                if grace_seconds < ending.grace_seconds {
                    (ending.since, ending.grace_seconds) = (now, grace_seconds);
                }
            }
        }
        self.starts.cancel();
    }

    fn note_probe(&mut self, report: ProbeReport) {
        let verdicts = self.verdicts.entry(report.container_id).or_default();
        match (report.kind, report.success) {
            (ProbeKind::Startup, true) => verdicts.startup = true,
            (ProbeKind::Readiness, success) => verdicts.readiness = success,
            (ProbeKind::Liveness, true) => verdicts.failed = None,
            (kind @ (ProbeKind::Liveness | ProbeKind::Startup), false) => {
                let word = kind.word().to_lowercase();
                let message =
                    format!("Container {} failed {word} probe, will be restarted", report.container_name);
                verdicts.failed = Some((message, report.grace_seconds));
            }
        }
    }

    /// Asks the runtime what it has of the pod.
    async fn refresh(&mut self) {
        self.stale = false;
        match self.kubelet.cri.pod(&self.id.uid, &self.runtime).await {
            Ok(mut runtime) => {
                for record in &mut runtime.containers {
                    let known =
                        self.runtime.containers.iter().any(|c| c.id == record.id && c.state == State::Exited);
                    if record.state == State::Exited && !known {
                        crate::logs::last_words(record).await;
                    }
                }
                self.runtime = runtime;
                self.seed();
            }
            Err(error) => {
                tracing::debug!(pod = %self.id, %error, "the runtime does not answer");
                self.stale = true;
                self.wake_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
            }
        }
    }

    /// Containers that were ready before our restart stay so until a probe says otherwise.
    fn seed(&mut self) {
        if std::mem::replace(&mut self.seeded, true) {
            return;
        }
        let status = self.publisher.latest();
        let lists = [&status.container_statuses, &status.init_container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
            if let Some(id) = id {
                let verdicts =
                    Verdicts { startup: status.started == Some(true), readiness: status.ready, failed: None };
                self.verdicts.insert(id.to_owned(), verdicts);
            }
        }
        if self.gone
            && let Some(ending) = &mut self.ending
        {
            ending.grace_seconds = self.runtime.containers.iter().find_map(|c| c.grace_seconds).unwrap_or(30);
        }
    }

    fn step(&mut self) {
        let now = Timestamp::now();
        self.watch_deadline(now);
        self.grant();
        let health = self.health();
        let mut plan = self.decide(&health, now);
        if plan.finished && self.ending.is_none() {
            self.end(EndReason::Finished, containers::grace_seconds(&self.pod));
            plan = self.decide(&health, now);
        }
        self.wake_at = plan.wake_at;
        self.tell_backoff(&plan, now);
        let ended = plan.ended;
        let waiting = self.waiting(&plan, now);
        for action in plan.actions {
            self.launch(action, now);
        }
        self.free_slot(now);
        self.remount(now);
        self.probe(&health);
        self.publish(&health, &waiting, now);
        if ended {
            self.wind_up();
        }
    }

    fn decide(&self, health: &HealthById, now: Timestamp) -> Plan {
        plan::decide(&Input {
            pod: &self.granted,
            resize: &self.resize,
            runtime: &self.runtime,
            prepared: self.mounted.is_some(),
            ending: self.ending.as_ref(),
            health,
            crashes: &self.crashes,
            retries: &self.retries,
            busy: &self.busy,
            kills: &self.kills,
            stopped: &self.stopped,
            now,
        })
    }

    /// Grants changed resources if the node has them.
    fn grant(&mut self) {
        let kubelet = &self.kubelet;
        let room = || kubelet.table.room(&self.pod, &kubelet.node.get());
        self.granted =
            if self.ending.is_none() { self.resize.grant(&self.pod, room) } else { self.pod.clone() };
        self.resize.note(&self.granted, &self.runtime, self.publisher.latest());
    }

    /// `activeDeadlineSeconds`.
    fn watch_deadline(&mut self, now: Timestamp) {
        let Some(limit) = spec(&self.pod).active_deadline_seconds else { return };
        let Some(start) = self.publisher.latest().start_time.as_ref().map(|t| t.0) else { return };
        if self.ending.is_some() {
            return;
        }
        if now >= start + SignedDuration::from_secs(limit) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.kubelet.events.normal(&self.pod, "DeadlineExceeded", message);
            let why = EndReason::Failed("DeadlineExceeded".to_owned(), message.to_owned());
            self.end(why, containers::grace_seconds(&self.pod));
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    /// What hooks and probes say of the running containers.
    fn health(&mut self) -> HealthById {
        let running: Vec<&ContainerRecord> = self.runtime.containers.iter().filter(|c| c.alive()).collect();
        self.verdicts.retain(|id, _| running.iter().any(|c| &c.id == id));
        let mut health = HealthById::new();
        for record in running {
            let Some((_, container)) = containers::find(&self.pod, &record.name) else { continue };
            let verdicts = self.verdicts.get(&record.id).cloned().unwrap_or_default();
            let hooked = !self.busy.contains(&Work::Container(record.name.clone()));
            let started = hooked && (container.startup_probe.is_none() || verdicts.startup);
            let ready = started && (container.readiness_probe.is_none() || verdicts.readiness);
            health.insert(record.id.clone(), Health { started, ready, failed: verdicts.failed });
        }
        health
    }

    fn launch(&mut self, action: Action, now: Timestamp) {
        let work = action.work();
        let (kubelet, pod, id) = (self.kubelet.clone(), self.granted.clone(), self.id.clone());
        match action {
            Action::Prepare => {
                let cgroup = self.resize.cgroup(&pod, &self.runtime);
                self.resize.applied(cgroup.clone());
                self.tasks
                    .spawn(async move { Done::Prepared(prepare::prepare(&kubelet, &pod, &cgroup).await) });
            }
            Action::Resize { cgroup, containers } => {
                self.tasks.spawn(async move {
                    let result = prepare::resize(&kubelet, &pod, &cgroup, &containers).await;
                    Done::Resized(cgroup, containers.into_iter().map(|(_, id)| id).collect(), result)
                });
            }
            Action::CreateSandbox { attempt } => {
                if attempt > 0 {
                    let text = "Pod sandbox changed, it will be killed and re-created.";
                    kubelet.events.normal(&pod, "SandboxChanged", text);
                }
                self.tasks.spawn(async move {
                    let slot = kubelet.slots.clone().acquire_owned().await.ok();
                    Done::Sandbox(slot, prepare::create_sandbox(&kubelet, &pod, attempt).await)
                });
            }
            Action::StopSandbox { id } => {
                self.spawn(work.clone(), async move {
                    kubelet.cri.stop_sandbox(&id).await.map_err(|error| {
                        let text = format!(
                            "error killing pod: failed to stop sandbox: {}",
                            crate::cri::text(&error)
                        );
                        kubelet.events.warning(&pod, "FailedKillPod", text);
                        Failure::plain()
                    })
                });
            }
            Action::StartContainer { name, restart_count, crashed } => {
                self.launch_start(name, restart_count, crashed, now);
            }
            Action::KillContainer { id, name, grace_seconds, message } => {
                self.kills.insert(id.clone(), now + SignedDuration::from_secs(grace_seconds));
                let order = kill::Kill { id, name, grace_seconds, message };
                self.spawn(work.clone(), async move { kill::kill(&kubelet, &pod, order).await });
            }
            Action::RemoveContainer { id, log_path } => {
                self.spawn(work.clone(), async move {
                    kubelet.cri.remove_container(&id).await.map_err(|_| Failure::plain())?;
                    crate::logs::remove(&log_path).await;
                    Ok(())
                });
            }
            Action::RemoveSandbox { id: sandbox } => {
                self.spawn(work.clone(), async move {
                    tracing::debug!(pod = %id, sandbox, "removing a dead sandbox");
                    kubelet.cri.remove_sandbox(&sandbox).await.map_err(|_| Failure::plain())
                });
            }
        }
        self.busy.insert(work);
    }

    fn spawn(&mut self, work: Work, job: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        self.tasks.spawn(async move { Done::Work(work, job.await) });
    }

    fn launch_start(
        &mut self,
        name: String,
        restart_count: u32,
        crashed: Option<(Timestamp, String)>,
        now: Timestamp,
    ) {
        let Some(sandbox) = self.runtime.ready_sandbox() else { return };
        if let Some((since, key)) = crashed {
            self.crashes.next(&key, since, now);
            self.crash_told.remove(&name);
        }
        self.resize.start(&self.granted, &name);
        let host = containers::host_network(&self.pod);
        let ips = if host { self.kubelet.host_ips.clone() } else { sandbox.ips.clone() };
        let request = StartRequest {
            pod: self.granted.clone(),
            name: name.clone(),
            restart_count,
            sandbox_id: sandbox.id.clone(),
            sandbox_attempt: sandbox.attempt,
            ips,
            target_id: self.target(&name),
            mounted: self.mounted.clone().unwrap_or_default(),
            cancel: self.starts.clone(),
            sender: self.sender.clone(),
        };
        let kubelet = self.kubelet.clone();
        self.spawn(Work::Container(name), async move { start::start(&kubelet, request).await });
    }

    /// The id of the container whose process namespace an ephemeral container joins.
    fn target(&self, name: &str) -> Option<String> {
        let ephemeral = spec(&self.pod).ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
        let target = ephemeral.target_container_name.as_ref().filter(|name| !name.is_empty())?;
        self.runtime.latest(target).map(|c| c.id.clone())
    }

    /// A few pods come up at a time, each to its end: the first are then up long before the last, instead of all
    /// of them late. A pod that waits for something else than the processor makes room for the next.
    fn free_slot(&mut self, now: Timestamp) {
        let Some((_, until)) = &self.slot else { return };
        let until = *until;
        if now >= until || !self.busy.iter().any(|work| matches!(work, Work::Container(_))) {
            self.slot = None;
        } else {
            self.wake(until);
        }
    }

    /// Writes volumes anew when something they are made of changed or is about to expire.
    fn remount(&mut self, now: Timestamp) {
        let Some(mounted) = &self.mounted else { return };
        let refresh_at = mounted.refresh_at;
        let due = self.remount || refresh_at.is_some_and(|at| at <= now);
        if due && self.ending.is_none() && !self.busy.contains(&Work::Prepare) {
            match self.retries.get(&Work::Prepare) {
                Some(at) if *at > now => {
                    let at = *at;
                    self.wake(at);
                }
                _ => {
                    self.remount = false;
                    self.launch(Action::Prepare, now);
                }
            }
        } else if let Some(at) = refresh_at.filter(|_| self.ending.is_none() && !due) {
            self.wake(at);
        }
    }

    fn probe(&mut self, health: &HealthById) {
        let mut wanted = Vec::new();
        for record in self.runtime.containers.iter().filter(|c| c.state == State::Running) {
            let Some((kind, container)) = containers::find(&self.pod, &record.name) else { continue };
            let hooked = !self.busy.contains(&Work::Container(record.name.clone()));
            if !matches!(kind, Kind::App | Kind::Sidecar) || !hooked {
                continue;
            }
            let started = health.get(&record.id).is_some_and(|h| h.started);
            let ready = health.get(&record.id).is_some_and(|h| h.ready);
            let failed = health.get(&record.id).is_some_and(|h| h.failed.is_some());
            let probes = [
                (ProbeKind::Startup, &container.startup_probe, !started && self.ending.is_none() && !failed),
                (ProbeKind::Liveness, &container.liveness_probe, started && self.ending.is_none() && !failed),
                (ProbeKind::Readiness, &container.readiness_probe, started),
            ];
            for (kind, probe, _) in probes.into_iter().filter(|(_, _, wanted)| *wanted) {
                if let Some(probe) = probe {
                    wanted.push((record.clone(), container.clone(), kind, probe.clone(), ready));
                }
            }
        }
        self.probes.sync(&self.kubelet, &self.pod, &self.runtime, wanted, &self.sender);
    }

    fn publish(&mut self, health: &HealthById, waiting: &BTreeMap<String, Waiting>, now: Timestamp) {
        if self.gone {
            return;
        }
        let starting = self.busy.iter().filter_map(|w| match w {
            Work::Container(name) => Some(name.clone()),
            _ => None,
        });
        let starting: BTreeSet<String> = starting.collect();
        let view = View {
            pod: &self.pod,
            base: self.publisher.latest(),
            runtime: &self.runtime,
            health,
            waiting,
            resize: &self.resize,
            resizing: self.resizing(),
            starting: &starting,
            ending: self.ending.as_ref(),
            runtime_name: self.kubelet.runtime_name(),
            host_ips: &self.kubelet.host_ips,
            now,
        };
        let (status, hold) = (status::generate(&view), status::replaced_until(&view));
        self.publisher.offer(status, hold, now);
        self.send(now);
    }

    fn resizing(&self) -> bool {
        self.busy.contains(&Work::Resize) || !self.resize.steps(&self.granted, &self.runtime).is_empty()
    }

    fn send(&mut self, now: Timestamp) {
        match self.publisher.due() {
            Some(at) if at <= now => {
                if let Some(body) = self.publisher.take(&self.id) {
                    let (client, id) = (self.kubelet.config.client.clone(), self.id.clone());
                    self.tasks.spawn(async move { Done::Published(publish::write(client, &id, body).await) });
                }
            }
            Some(at) => self.wake(at),
            None => {}
        }
    }

    /// After the last process: volumes and cgroup, the last status, and the object.
    fn wind_up(&mut self) {
        if let Some(at) = self.end_again_at.filter(|at| *at > Timestamp::now()) {
            return self.wake(at);
        }
        match self.stage {
            Stage::Alive => {
                self.stage = Stage::TearingDown;
                self.kubelet.table.set_over(&self.id.uid);
                self.publisher.hurry();
                self.send(Timestamp::now());
                let (kubelet, id) = (self.kubelet.clone(), self.id.clone());
                self.tasks.spawn(async move { Done::TornDown(prepare::tear_down(&kubelet, &id).await) });
            }
            Stage::Bare => {
                self.publisher.hurry();
                self.send(Timestamp::now());
                let deleted = self.pod.metadata.deletion_timestamp.is_some();
                if deleted && !self.gone && self.publisher.settled() {
                    self.stage = Stage::Deleting;
                    let (client, id) = (self.kubelet.config.client.clone(), self.id.clone());
                    self.tasks.spawn(async move { Done::Deleted(publish::delete(client, &id).await) });
                }
            }
            Stage::TearingDown | Stage::Deleting | Stage::Deleted => {}
        }
    }

    /// The last processes of a cgroup may take a moment to vanish.
    fn end_again(&mut self, now: Timestamp) {
        let delay = SignedDuration::from_millis(20 << self.end_failures.min(8));
        self.end_failures += 1;
        self.end_again_at = Some(now + delay);
    }

    fn finish(&mut self, done: Done) {
        let now = Timestamp::now();
        match done {
            Done::Published(written) => self.publisher.sent(written, now),
            Done::TornDown(true) => (self.stage, self.mounted) = (Stage::Bare, None),
            Done::TornDown(false) => {
                self.stage = Stage::Alive;
                self.end_again(now);
            }
            Done::Deleted(true) => self.stage = Stage::Deleted,
            Done::Deleted(false) => {
                self.stage = Stage::Bare;
                self.end_again(now);
            }
            Done::Prepared(result) => {
                self.busy.remove(&Work::Prepare);
                let result = result.map(|mounted| self.mounted = Some(Arc::new(mounted)));
                self.remount |= result.is_err() && self.mounted.is_some();
                self.settle(Work::Prepare, result, now);
            }
            Done::Resized(cgroup, ids, result) => {
                self.busy.remove(&Work::Resize);
                self.resize.tried(result.as_ref().err().cloned());
                if result.is_ok() {
                    self.resize.applied(cgroup);
                    self.resize.updated(&self.granted, &self.runtime, &ids);
                }
                self.settle(Work::Resize, result.map_err(|_| Failure::plain()), now);
            }
            Done::Sandbox(slot, result) => {
                self.busy.remove(&Work::Sandbox);
                self.stale = true;
                self.slot = slot.map(|slot| (slot, now + SLOT));
                self.settle(Work::Sandbox, result, now);
            }
            Done::Work(work, result) => {
                self.busy.remove(&work);
                self.stale = true;
                match &work {
                    Work::Kill(id) => {
                        self.kills.remove(id);
                    }
                    Work::StopSandbox(id) if result.is_ok() => {
                        self.stopped.insert(id.clone());
                    }
                    _ => {}
                }
                self.settle(work, result, now);
            }
        }
    }

    fn settle(&mut self, work: Work, result: Result<(), Failure>, now: Timestamp) {
        let container = if let Work::Container(name) = &work { Some(name.clone()) } else { None };
        match result {
            Ok(()) => {
                self.retries.remove(&work);
                self.attempts.remove(&work);
                container.map(|name| self.failed.remove(&name));
            }
            Err(failure) => {
                let attempts = self.attempts.entry(work.clone()).or_default();
                let own =
                    SignedDuration::from_secs(1 << (*attempts).min(4)).min(SignedDuration::from_secs(10));
                *attempts += 1;
                self.retries.insert(work, now + failure.retry_after.unwrap_or(own));
                if let Some(name) = container {
                    self.failed.insert(name, Failed { waiting: failure.waiting, since: now, told: false });
                }
            }
        }
    }
}

impl PartialOrd for Stage {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}
