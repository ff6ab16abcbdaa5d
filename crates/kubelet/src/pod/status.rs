//! The status of a pod from what the runtime, the probes and the worker say. Pure; the API server's copy is the base.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::{self, Kind, spec};
use super::phase::phase;
use super::resize::Resize;
use super::{EndReason, Ending, HealthById, Waiting};
use crate::model::{ContainerRecord, PodRuntime, State, seconds};

/// What the status is made from.
pub struct View<'a> {
    /// The pod as the API server has it.
    pub pod: &'a Pod,
    /// The status as last written, or as found.
    pub base: &'a PodStatus,
    /// The pod as the runtime has it.
    pub runtime: &'a PodRuntime,
    /// Hooks and probes, by container id.
    pub health: &'a HealthById,
    /// Why containers wait.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// What containers are granted and given.
    pub resize: &'a Resize,
    /// Whether that is not the same yet.
    pub resizing: bool,
    /// Names of containers that are being started.
    pub starting: &'a BTreeSet<String>,
    /// Whether the pod is being ended.
    pub ending: Option<&'a Ending>,
    /// Name of the runtime, the scheme of container ids.
    pub runtime_name: &'a str,
    /// Addresses of the node.
    pub host_ips: &'a [String],
    /// Now.
    pub now: Timestamp,
}

/// The status the pod has now.
pub fn generate(view: &View<'_>) -> PodStatus {
    let pod = view.pod;
    let apps: Vec<ContainerStatus> =
        spec(pod).containers.iter().map(|c| container_status(view, Kind::App, c)).collect();
    let init: Vec<ContainerStatus> =
        containers::init_containers(pod).map(|(kind, c)| container_status(view, kind, c)).collect();
    let ephemeral: Vec<ContainerStatus> = spec(pod)
        .ephemeral_containers
        .iter()
        .flatten()
        .filter_map(|c| containers::find(pod, &c.name))
        .map(|(kind, c)| container_status(view, kind, &c))
        .collect();
    let mut status = PodStatus { observed_generation: pod.metadata.generation, ..view.base.clone() };
    let (phase, why) = pod_phase(view, &init, &apps);
    (status.phase, status.reason, status.message) = (Some(phase.to_owned()), why.0, why.1);
    status.start_time.get_or_insert(Time(seconds(view.now)));
    status.host_ip = view.host_ips.first().cloned();
    status.host_ips = Some(view.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let ips = pod_ips(view);
    if !ips.is_empty() {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
    status.conditions = Some(conditions(view, &init, &apps, phase));
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    status.container_statuses = some(apps);
    status.init_container_statuses = some(init);
    status.ephemeral_container_statuses = some(ephemeral);
    status
}

fn pod_ips(view: &View<'_>) -> Vec<String> {
    if containers::host_network(view.pod) {
        return view.host_ips.to_vec();
    }
    view.runtime.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
}

type Why = (Option<String>, Option<String>);

fn pod_phase(view: &View<'_>, init: &[ContainerStatus], apps: &[ContainerStatus]) -> (&'static str, Why) {
    let old = view.base.phase.as_deref();
    let kept = || (view.base.reason.clone(), view.base.message.clone());
    if old == Some("Failed") {
        return ("Failed", kept());
    }
    if old == Some("Succeeded") {
        return ("Succeeded", kept());
    }
    let alive = view.runtime.containers.iter().any(ContainerRecord::alive) || !view.starting.is_empty();
    let over = view.ending.is_some() && !alive;
    if let Some(Ending { why: EndReason::Failed(reason, message), .. }) = view.ending {
        let why = (Some(reason.clone()), Some(message.clone()));
        if over {
            return ("Failed", why);
        }
    }
    match phase(view.pod, init, apps, over) {
        "Succeeded" | "Failed" if alive => ("Running", (None, None)),
        // A restarted kubelet must not take back what was reached.
        "Pending" if old == Some("Running") => ("Running", (None, None)),
        phase => (phase, (None, None)),
    }
}

fn time(at: Timestamp) -> Option<Time> {
    (at > Timestamp::UNIX_EPOCH).then(|| Time(seconds(at)))
}

fn container_status(view: &View<'_>, kind: Kind, container: &Container) -> ContainerStatus {
    let name = &container.name;
    let Some(record) = view.runtime.latest(name) else { return unmade(view, kind, container) };
    let health = view.health.get(&record.id);
    let waiting = view.waiting.get(name);
    let running = record.state == State::Running;
    let mut last = view.runtime.previous(name).map(|previous| terminated(view, previous));
    let state = match (record.state, waiting) {
        (State::Running | State::Unknown, _) => running_state(record),
        (State::Exited, Some(waiting)) => {
            last = Some(terminated(view, record));
            waiting_state(waiting.clone())
        }
        (State::Exited, None) => terminated(view, record),
        (State::Created, waiting) => waiting_state(waiting.cloned().unwrap_or_else(|| first_wait(view))),
    };
    let completed = kind == Kind::Init && record.state == State::Exited && record.exit_code == 0;
    let serves = matches!(kind, Kind::App | Kind::Sidecar);
    let (granted, given) = if running { view.resize.shown(name, &record.id) } else { (None, None) };
    ContainerStatus {
        name: name.clone(),
        container_id: Some(format!("{}://{}", view.runtime_name, record.id)),
        image: if record.image.is_empty() {
            container.image.clone().unwrap_or_default()
        } else {
            record.image.clone()
        },
        image_id: record.image_ref.clone(),
        ready: completed || (running && serves && health.is_some_and(|h| h.ready)),
        started: Some(running && kind != Kind::Init && health.is_some_and(|h| h.started)),
        restart_count: i32::try_from(record.restart_count).unwrap_or(i32::MAX),
        allocated_resources: granted.and_then(|r| r.requests),
        resources: given,
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        user: record.user.clone().filter(|_| running).map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser { uid, gid, supplemental_groups: Some(groups) }),
        }),
        volume_mounts: mounts(container),
        ..ContainerStatus::default()
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty()).map(|mounts| {
        mounts
            .iter()
            .map(|mount| VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: mount.read_only,
                recursive_read_only: mount.read_only.filter(|ro| *ro).map(|_| "Disabled".to_owned()),
                ..VolumeMountStatus::default()
            })
            .collect()
    })
}

/// A container the runtime has no instance of.
fn unmade(view: &View<'_>, kind: Kind, container: &Container) -> ContainerStatus {
    let name = &container.name;
    let lists = [
        &view.base.container_statuses,
        &view.base.init_container_statuses,
        &view.base.ephemeral_container_statuses,
    ];
    let old = lists.into_iter().flatten().flatten().find(|s| &s.name == name);
    let ran = old.filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some()) && view.ending.is_some());
    let reached = old.filter(|s| s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
    if let Some(old) = reached.filter(|_| view.ending.is_some() || kind == Kind::Init) {
        return old.clone();
    }
    let state = match ran {
        Some(_) => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
        None => waiting_state(view.waiting.get(name).cloned().unwrap_or_else(|| first_wait(view))),
    };
    ContainerStatus {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: String::new(),
        ready: false,
        started: Some(false),
        restart_count: old.map_or(0, |s| s.restart_count),
        state: Some(state),
        last_state: Some(ContainerState::default()),
        volume_mounts: mounts(container),
        ..ContainerStatus::default()
    }
}

fn first_wait(view: &View<'_>) -> Waiting {
    let initializing = spec(view.pod).init_containers.iter().flatten().next().is_some();
    let reason = if initializing { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason: reason.to_owned(), message: String::new() }
}

fn waiting_state(waiting: Waiting) -> ContainerState {
    let message = (!waiting.message.is_empty()).then_some(waiting.message);
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(waiting.reason), message }),
        ..ContainerState::default()
    }
}

fn running_state(record: &ContainerRecord) -> ContainerState {
    ContainerState {
        running: Some(ContainerStateRunning { started_at: time(record.started_at) }),
        ..ContainerState::default()
    }
}

fn terminated(view: &View<'_>, record: &ContainerRecord) -> ContainerState {
    let word = if record.exit_code == 0 { "Completed" } else { "Error" };
    let reason = if record.reason.is_empty() { word.to_owned() } else { record.reason.clone() };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: record.exit_code,
            reason: Some(reason),
            message: (!record.message.is_empty()).then(|| record.message.clone()),
            started_at: time(record.started_at),
            finished_at: time(record.finished_at),
            container_id: Some(format!("{}://{}", view.runtime_name, record.id)),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// Status, reason and message of a condition.
struct Verdict(bool, &'static str, String);

fn conditions(
    view: &View<'_>,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let network = containers::host_network(view.pod);
    let sandbox = view.runtime.ready_sandbox().is_some_and(|s| network || !s.ips.is_empty());
    let sandbox = sandbox && view.ending.is_none_or(|_| view.runtime.containers.iter().any(|c| c.alive()));
    let ready_containers = containers_ready(view.pod, init, apps, phase);
    let ready = if ready_containers.0 { gates(view.pod) } else { clone(&ready_containers) };
    let own = [
        ("PodReadyToStartContainers", Verdict(sandbox, "", String::new())),
        ("Initialized", initialized(init, apps, view, phase)),
        ("Ready", ready),
        ("ContainersReady", ready_containers),
        ("PodScheduled", Verdict(true, "", String::new())),
    ];
    let found = view.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let base = view.base.conditions.as_deref().unwrap_or_default();
    let ours = |type_: &str| type_.starts_with("PodResize") || own.iter().any(|(own, _)| *own == type_);
    let mut conditions: Vec<PodCondition> = found.iter().filter(|c| !ours(&c.type_)).cloned().collect();
    for (type_, reason, message) in view.resize.conditions(view.resizing) {
        let old = base.iter().find(|c| c.type_ == type_);
        conditions.push(condition(view, type_, Verdict(true, reason, message), old));
    }
    for (type_, verdict) in own {
        let old = base.iter().find(|c| c.type_ == type_);
        if type_ == "PodScheduled"
            && let Some(old) = old.or(found.iter().find(|c| c.type_ == type_))
        {
            conditions.push(old.clone());
            continue;
        }
        conditions.push(condition(view, type_, verdict, old));
    }
    conditions
}

fn condition(view: &View<'_>, type_: &str, verdict: Verdict, old: Option<&PodCondition>) -> PodCondition {
    let status = if verdict.0 { "True" } else { "False" };
    let since = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: (!verdict.1.is_empty()).then(|| verdict.1.to_owned()),
        message: (!verdict.2.is_empty()).then_some(verdict.2),
        last_transition_time: since.or_else(|| Some(Time(seconds(view.now)))),
        last_probe_time: None,
        observed_generation: view.pod.metadata.generation,
    }
}

fn clone(verdict: &Verdict) -> Verdict {
    Verdict(verdict.0, verdict.1, verdict.2.clone())
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn containers_ready(pod: &Pod, init: &[ContainerStatus], apps: &[ContainerStatus], phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict(false, "PodCompleted", String::new()),
        "Failed" => return Verdict(false, "PodFailed", String::new()),
        _ => {}
    }
    let sidecars = containers::init_containers(pod)
        .zip(init)
        .filter(|((kind, _), _)| *kind == Kind::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars.chain(apps).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict(true, "", String::new());
    }
    Verdict(false, "ContainersNotReady", format!("containers with unready status: {}", list(&unready)))
}

fn initialized(init: &[ContainerStatus], apps: &[ContainerStatus], view: &View<'_>, phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict(true, "PodCompleted", String::new());
    }
    let ran = |s: &ContainerStatus| {
        let state = s.state.as_ref();
        state.is_some_and(|s| s.running.is_some() || s.terminated.is_some()) || s.restart_count > 0
    };
    if apps.iter().any(ran) {
        return Verdict(true, "", String::new());
    }
    let incomplete: Vec<&str> = containers::init_containers(view.pod)
        .zip(init)
        .filter(|((kind, _), s)| if *kind == Kind::Sidecar { s.started != Some(true) } else { !s.ready })
        .map(|(_, s)| s.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict(true, "", String::new());
    }
    let message = format!("containers with incomplete status: {}", list(&incomplete));
    Verdict(false, "ContainersNotInitialized", message)
}

/// Readiness gates (KEP-580).
fn gates(pod: &Pod) -> Verdict {
    let found = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let unmet: Vec<String> = spec(pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match found.iter().find(|c| &c.type_ == name) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{name}\" does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if unmet.is_empty() {
        return Verdict(true, "", String::new());
    }
    Verdict(false, "ReadinessGatesNotReady", unmet.join(", "))
}

/// How long a pod may be told as it was while one of its containers is replaced.
const REPLACEMENT: SignedDuration = SignedDuration::from_secs(1);

/// When a status must be told at the latest though containers are being replaced by ones of a newer definition. The stop
/// of the one and the start of the other are one step: who watches should not see the moment between them.
pub fn replaced_until(view: &View<'_>) -> Option<Timestamp> {
    let ended = |name: &String| {
        let (_, container) = containers::find(view.pod, name)?;
        let mut instances = view.runtime.containers.iter().filter(|c| c.name == *name);
        instances
            .find(|c| c.state == State::Exited)
            .filter(|old| old.hash != containers::hash(&container))
            .map(|old| old.finished_at)
    };
    view.starting.iter().filter_map(ended).max().map(|at| at + REPLACEMENT)
}

/// Whether a change of the status must be written at once rather than together with the next.
pub fn urgent(old: &PodStatus, new: &PodStatus) -> bool {
    let ready = |status: &PodStatus| -> Option<String> {
        status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.clone())
    };
    old.phase.as_deref().unwrap_or("Pending") != new.phase.as_deref().unwrap_or("Pending")
        || ready(old).is_some_and(|old| Some(old) != ready(new))
        || restarts(old) != restarts(new)
}

fn restarts(status: &PodStatus) -> i32 {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().map(|s| s.restart_count).sum()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
