//! The decision: from a pod, what the runtime has of it, its probes and the work in progress to the next actions. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::containers::{self, Kind, spec};
use super::resize::{Resize, Step};
use super::{Ending, HealthById, Waiting};
use crate::backoff::Backoff;
use crate::model::{ContainerRecord, PodId, PodRuntime, State};
use crate::spec::resources::PodCgroup;

/// Containers get at least this long between their stop signal and SIGKILL.
pub const LEAST_GRACE_SECONDS: i64 = 2;

/// A piece of work that is done at most once at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Cgroup, directories and volumes.
    Prepare,
    /// Making a sandbox.
    Sandbox,
    /// Changing cgroups of the pod and its running containers.
    Resize,
    /// Stopping the sandbox with this id.
    StopSandbox(String),
    /// Pulling for, making and starting the container with this name.
    Container(String),
    /// Stopping the container with this id.
    Kill(String),
    /// Removing the container or sandbox with this id.
    Remove(String),
}

/// Something to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make cgroup, directories and volumes.
    Prepare,
    /// Make a sandbox.
    CreateSandbox {
        /// How many there were before.
        attempt: u32,
    },
    /// Give the pod's cgroup and running containers what was granted.
    Resize {
        /// The values of the pod's cgroup.
        cgroup: PodCgroup,
        /// Names and ids of the containers.
        containers: Vec<(String, String)>,
    },
    /// Stop a sandbox and give up its network.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Start a new instance of a container.
    StartContainer {
        /// Name in the spec.
        name: String,
        /// Restarts before this instance.
        restart_count: u32,
        /// When the last instance ended, and the key of its back-off.
        crashed: Option<(Timestamp, String)>,
    },
    /// Stop a container: preStop hook, stop signal, SIGKILL.
    KillContainer {
        /// Its id.
        id: String,
        /// Name in the spec.
        name: String,
        /// How long hook and process may take together.
        grace_seconds: i64,
        /// Text of the `Killing` event.
        message: String,
    },
    /// Remove a dead container and its log.
    RemoveContainer {
        /// Its id.
        id: String,
        /// Its log file.
        log_path: String,
    },
    /// Remove a dead sandbox that holds no container.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
}

impl Action {
    /// The work this action is.
    pub fn work(&self) -> Work {
        match self {
            Self::Prepare => Work::Prepare,
            Self::CreateSandbox { .. } => Work::Sandbox,
            Self::Resize { .. } => Work::Resize,
            Self::StopSandbox { id } => Work::StopSandbox(id.clone()),
            Self::StartContainer { name, .. } => Work::Container(name.clone()),
            Self::KillContainer { id, .. } => Work::Kill(id.clone()),
            Self::RemoveContainer { id, .. } | Self::RemoveSandbox { id } => Work::Remove(id.clone()),
        }
    }
}

/// What the decision is made from.
pub struct Input<'a> {
    /// The pod as the API server has it.
    pub pod: &'a Pod,
    /// The pod as the runtime has it.
    pub runtime: &'a PodRuntime,
    /// Whether cgroup, directories and volumes are there.
    pub prepared: bool,
    /// What the containers are granted and given.
    pub resize: &'a Resize,
    /// Whether the pod is being ended.
    pub ending: Option<&'a Ending>,
    /// What hooks and probes say, by container id.
    pub health: &'a HealthById,
    /// Back-off of crashed containers.
    pub crashes: &'a Backoff,
    /// Failed work, and when it may be tried again.
    pub retries: &'a BTreeMap<Work, Timestamp>,
    /// Work in progress.
    pub busy: &'a BTreeSet<Work>,
    /// Containers being stopped, and when they will have been killed.
    pub kills: &'a BTreeMap<String, Timestamp>,
    /// Sandboxes already stopped.
    pub stopped: &'a BTreeSet<String>,
    /// Now.
    pub now: Timestamp,
}

/// The decision.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// To do at once, all of it concurrently.
    pub actions: Vec<Action>,
    /// Why containers wait for a later time.
    pub waiting: BTreeMap<String, Waiting>,
    /// When to decide again even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// No container will run again: the pod is to be ended.
    pub finished: bool,
    /// The end is reached: no process, no sandbox.
    pub ended: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    fn push(&mut self, input: &Input<'_>, action: Action) {
        let work = action.work();
        if input.busy.contains(&work) {
            return;
        }
        match input.retries.get(&work) {
            Some(at) if *at > input.now => self.wake(*at),
            _ => self.actions.push(action),
        }
    }
}

/// What to do next.
pub fn decide(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    match input.ending {
        Some(ending) => end(input, ending, &mut plan),
        None => keep(input, &mut plan),
    }
    collect_garbage(input, &mut plan);
    plan
}

fn keep(input: &Input<'_>, plan: &mut Plan) {
    if finished(input.pod, input.runtime) {
        plan.finished = true;
        return;
    }
    if !input.prepared {
        plan.push(input, Action::Prepare);
        return;
    }
    let Some(sandbox_id) = sandbox(input, plan) else { return };
    resize(input, plan);
    if initialize(input, &sandbox_id, plan) {
        for container in &spec(input.pod).containers {
            run_app(input, container, plan);
        }
    }
    for container in spec(input.pod).ephemeral_containers.iter().flatten() {
        if input.runtime.latest(&container.name).is_none() {
            start(input, &container.name, None, plan);
        }
    }
}

/// Gives running containers what was granted. The pod's cgroup has room for both meanwhile, and shrinks at the end.
fn resize(input: &Input<'_>, plan: &mut Plan) {
    let steps = input.resize.steps(input.pod, input.runtime);
    let cgroup = input.resize.cgroup(input.pod, input.runtime);
    let updates = steps.iter().filter(|(_, step)| **step == Step::Update);
    let containers: Vec<(String, String)> = updates
        .filter_map(|(name, _)| Some((name.clone(), input.runtime.latest(name)?.id.clone())))
        .collect();
    if input.resize.cgroup_differs(&cgroup) || !containers.is_empty() {
        plan.push(input, Action::Resize { cgroup, containers });
        return;
    }
    for (name, _) in steps {
        let Some(record) = input.runtime.latest(&name) else { continue };
        let message = format!("Container {name} resize requires restart");
        let grace_seconds = containers::grace_seconds(input.pod).max(LEAST_GRACE_SECONDS);
        plan.push(input, Action::KillContainer { id: record.id.clone(), name, grace_seconds, message });
    }
}

/// The id of the sandbox to run containers in; without one, a step towards it.
fn sandbox(input: &Input<'_>, plan: &mut Plan) -> Option<String> {
    let usable = |s: &&crate::model::SandboxRecord| !s.ips.is_empty() || containers::host_network(input.pod);
    if let Some(sandbox) = input.runtime.ready_sandbox().filter(usable) {
        return Some(sandbox.id.clone());
    }
    let mut stopping = false;
    for old in input.runtime.sandboxes.iter().filter(|s| !input.stopped.contains(&s.id)) {
        stopping = true;
        plan.push(input, Action::StopSandbox { id: old.id.clone() });
    }
    let runs_once = containers::restart_policy(input.pod) == "Never" && !input.runtime.containers.is_empty();
    if !stopping && !runs_once {
        let attempt = input.runtime.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
        plan.push(input, Action::CreateSandbox { attempt });
    }
    None
}

/// Runs init containers and sidecars in order; says whether the app containers' turn has come.
fn initialize(input: &Input<'_>, sandbox_id: &str, plan: &mut Plan) -> bool {
    let active = |name: &str| input.runtime.latest(name).filter(|c| c.sandbox_id == sandbox_id);
    let initialized = spec(input.pod).containers.iter().any(|c| active(&c.name).is_some());
    // A later init container that exists proves that the earlier ones were done.
    let reached = containers::init_containers(input.pod)
        .enumerate()
        .filter(|(_, (_, c))| active(&c.name).is_some())
        .map(|(index, _)| index)
        .last();
    for (index, (kind, container)) in containers::init_containers(input.pod).enumerate() {
        let record = active(&container.name);
        let passed = initialized || reached.is_some_and(|last| index < last);
        match kind {
            Kind::Init => {
                if passed || record.is_some_and(|c| c.state == State::Exited && c.exit_code == 0) {
                    continue;
                }
                if !record.is_some_and(ContainerRecord::alive) {
                    start(input, &container.name, input.runtime.latest(&container.name), plan);
                }
                return false;
            }
            _ => {
                let up = keep_running(input, container, record, plan);
                if !up && !passed {
                    return false;
                }
            }
        }
    }
    true
}

/// Keeps a sidecar running; says whether it has started.
fn keep_running(
    input: &Input<'_>,
    container: &Container,
    record: Option<&ContainerRecord>,
    plan: &mut Plan,
) -> bool {
    match record.filter(|c| c.alive()) {
        Some(record) => {
            kill_if_unfit(input, container, record, plan);
            input.health.get(&record.id).is_some_and(|health| health.started)
        }
        None => {
            start(input, &container.name, input.runtime.latest(&container.name), plan);
            false
        }
    }
}

fn run_app(input: &Input<'_>, container: &Container, plan: &mut Plan) {
    match input.runtime.latest(&container.name) {
        Some(record) if record.alive() => kill_if_unfit(input, container, record, plan),
        Some(record)
            if record.state == State::Exited
                && !containers::restarts(input.pod, Kind::App, container, record.exit_code) => {}
        record => start(input, &container.name, record, plan),
    }
}

fn kill_if_unfit(input: &Input<'_>, container: &Container, record: &ContainerRecord, plan: &mut Plan) {
    let name = &container.name;
    let failed = input.health.get(&record.id).and_then(|health| health.failed.clone());
    let (message, grace) = if record.hash != containers::hash(container) {
        (format!("Container {name} definition changed, will be restarted"), None)
    } else if let Some((message, grace)) = failed {
        (message, grace)
    } else if record.state == State::Unknown {
        (format!("Container {name} is in unknown state, try killing it before restart"), None)
    } else {
        return;
    };
    let grace_seconds =
        grace.unwrap_or_else(|| containers::grace_seconds(input.pod)).max(LEAST_GRACE_SECONDS);
    plan.push(
        input,
        Action::KillContainer { id: record.id.clone(), name: name.clone(), grace_seconds, message },
    );
}

fn start(input: &Input<'_>, name: &str, last: Option<&ContainerRecord>, plan: &mut Plan) {
    if input.busy.contains(&Work::Container(name.to_owned())) {
        return;
    }
    let crashed =
        last.filter(|c| c.state == State::Exited).map(|c| (c.finished_at, format!("{name}/{}", c.hash)));
    if let Some((since, key)) = &crashed
        && let Some((until, delay)) = input.crashes.wait(key, *since, input.now)
    {
        let id = PodId::of(input.pod);
        let message = format!("back-off {} restarting failed container={name} pod={id}", go_duration(delay));
        plan.waiting.insert(name.to_owned(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
        plan.wake(until);
        return;
    }
    if let Some(unstarted) = last.filter(|c| c.state == State::Created) {
        // It never ran: the next instance takes its place and its number.
        let (id, log_path) = (unstarted.id.clone(), unstarted.log_path.clone());
        plan.push(input, Action::RemoveContainer { id, log_path });
        return;
    }
    let restart_count = last.map_or(0, |c| c.restart_count + 1);
    plan.push(input, Action::StartContainer { name: name.to_owned(), restart_count, crashed });
}

/// A duration of whole seconds as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(delay: SignedDuration) -> String {
    match (delay.as_secs() / 60, delay.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// Whether nothing of the pod will ever run again.
pub fn finished(pod: &Pod, runtime: &PodRuntime) -> bool {
    let ended = |name: &str| runtime.latest(name).filter(|c| c.state == State::Exited);
    let failed_init = containers::init_containers(pod).any(|(kind, c)| {
        kind == Kind::Init
            && ended(&c.name)
                .is_some_and(|r| r.exit_code != 0 && !containers::restarts(pod, kind, c, r.exit_code))
    });
    failed_init
        || spec(pod)
            .containers
            .iter()
            .all(|c| ended(&c.name).is_some_and(|r| !containers::restarts(pod, Kind::App, c, r.exit_code)))
}

fn end(input: &Input<'_>, ending: &Ending, plan: &mut Plan) {
    let alive: Vec<&ContainerRecord> = input.runtime.containers.iter().filter(|c| c.alive()).collect();
    let is_sidecar = |c: &&&ContainerRecord| containers::kind(input.pod, &c.name) == Kind::Sidecar;
    let deadline = ending.since + SignedDuration::from_secs(ending.grace_seconds.max(LEAST_GRACE_SECONDS));
    if alive.iter().all(|c| is_sidecar(&c)) && input.now < deadline {
        // Sidecars stop in reverse order, each when those after it have stopped (KEP-753).
        let last = containers::init_containers(input.pod)
            .rev()
            .find_map(|(_, spec)| alive.iter().find(|c| c.name == spec.name));
        last.or(alive.first()).into_iter().for_each(|c| stop(input, c, deadline, plan));
        if alive.len() > 1 {
            plan.wake(deadline);
        }
    } else {
        let overdue = input.now >= deadline;
        alive.iter().filter(|c| overdue || !is_sidecar(c)).for_each(|c| stop(input, c, deadline, plan));
        if !overdue {
            plan.wake(deadline);
        }
    }
    let starting = input.busy.iter().any(|w| matches!(w, Work::Prepare | Work::Sandbox | Work::Container(_)));
    if alive.is_empty() && !starting {
        let mut standing = false;
        for sandbox in input.runtime.sandboxes.iter().filter(|s| !input.stopped.contains(&s.id)) {
            standing = true;
            plan.push(input, Action::StopSandbox { id: sandbox.id.clone() });
        }
        plan.ended = !standing;
        plan.wake_at = plan.wake_at.filter(|_| standing);
    }
}

fn stop(input: &Input<'_>, record: &ContainerRecord, deadline: Timestamp, plan: &mut Plan) {
    let left = deadline.duration_since(input.now).as_secs().max(LEAST_GRACE_SECONDS);
    let action = Action::KillContainer {
        id: record.id.clone(),
        name: record.name.clone(),
        grace_seconds: left,
        message: format!("Stopping container {}", record.name),
    };
    let until = input.now + SignedDuration::from_secs(left);
    match input.kills.get(&record.id) {
        // A shorter grace period overrides the one a stop in progress was begun with.
        Some(at) if *at > until + SignedDuration::from_secs(1) => plan.actions.push(action),
        Some(_) => {}
        None => plan.push(input, action),
    }
}

/// Keeps the newest instance of each container and one dead one besides; sandboxes go when they are empty.
fn collect_garbage(input: &Input<'_>, plan: &mut Plan) {
    let mut kept: BTreeMap<&str, u32> = BTreeMap::new();
    let mut held: BTreeSet<&str> = BTreeSet::new();
    for container in &input.runtime.containers {
        let seen = kept.entry(&container.name).or_default();
        let dead = !container.alive();
        // The newest is never garbage; of the others one dead instance is kept for its log.
        if *seen >= 2 && dead || (*seen >= 1 && container.state == State::Created) {
            let (id, log_path) = (container.id.clone(), container.log_path.clone());
            plan.push(input, Action::RemoveContainer { id, log_path });
        } else {
            held.insert(&container.sandbox_id);
            *seen += 1;
        }
    }
    for sandbox in input.runtime.sandboxes.iter().skip(1) {
        if !sandbox.ready && !held.contains(sandbox.id.as_str()) && input.stopped.contains(&sandbox.id) {
            plan.push(input, Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
