//! How pods are shown in tables.

use coxswain_meta::json::Value;

use crate::catalogue::Column;
use crate::table::{AGE, NAME, age, column, name, or, wide};
use crate::time;
use crate::value::{flag, has, int, items, text};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Containers that are ready, of all."),
    column("Status", "What the pod as a whole is doing."),
    column("Restarts", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node the pod runs on."),
    wide("Nominated Node", "Node that is being freed for the pod."),
    wide("Readiness Gates", "Readiness gates that are true, of all."),
];

/// Running totals over container statuses.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<i64>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "restartCount").unwrap_or(0);
        let finished = time::parse(text(&status["lastState"]["terminated"], "finishedAt"));
        self.last = self.last.max(finished);
    }

    fn cell(&self, now: i64) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                format!("{} ({} ago)", self.count, time::human_duration(now - last))
            }
            _ => self.count.to_string(),
        }
    }
}

/// What the container statuses say of the pod.
struct Summary {
    ready: usize,
    reason: String,
    restarts: Restarts,
}

pub(super) fn row(pod: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars = items(spec, "initContainers").iter().filter(|c| is_sidecar(c)).count();
    let total = items(spec, "containers").len() + sidecars;
    let summary = summary(pod);
    let ip = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip"));
    vec![
        name(pod),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        summary.restarts.cell(now).into(),
        age(pod, now),
        or(ip, "<none>").into(),
        or(text(spec, "nodeName"), "<none>").into(),
        or(text(status, "nominatedNodeName"), "<none>").into(),
        gates(pod).into(),
    ]
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&pod["status"], "conditions").iter().find(|c| text(c, "type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| text(c, "status") == "True")
}

fn summary(pod: &Value) -> Summary {
    let status = &pod["status"];
    let phase = text(status, "phase");
    let mut reason = or(text(status, "reason"), phase).to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let mut summary = Summary { ready: 0, reason, restarts: Restarts::default() };
    let (initializing, sidecar_restarts) = init_containers(pod, &mut summary);
    if !initializing || is_true(pod, "Initialized") {
        summary.restarts = sidecar_restarts;
        main_containers(pod, &mut summary);
    }
    if has(&pod["metadata"], "deletionTimestamp") {
        if text(status, "reason") == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// Whether a container's state ended well, and the reason text otherwise.
fn ended(terminated: &Value) -> String {
    let signal = int(terminated, "signal").unwrap_or(0);
    match text(terminated, "reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", int(terminated, "exitCode").unwrap_or(0)),
        reason => reason.to_owned(),
    }
}

/// Whether the pod still initialises, and the sidecars' restarts.
fn init_containers(pod: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let specs = items(&pod["spec"], "initContainers");
    let mut sidecar_restarts = Restarts::default();
    for (i, status) in items(&pod["status"], "initContainerStatuses").iter().enumerate() {
        let sidecar = specs.iter().any(|c| text(c, "name") == text(status, "name") && is_sidecar(c));
        summary.restarts.add(status);
        if sidecar {
            sidecar_restarts.add(status);
        }
        let (terminated, waiting) = (&status["state"]["terminated"], &status["state"]["waiting"]);
        if terminated.is_object() && int(terminated, "exitCode").unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && flag(status, "started") {
            summary.ready += usize::from(flag(status, "ready"));
            continue;
        }
        summary.reason = if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else {
            match text(waiting, "reason") {
                "" | "PodInitializing" => format!("Init:{i}/{}", specs.len()),
                reason => format!("Init:{reason}"),
            }
        };
        return (true, sidecar_restarts);
    }
    (false, sidecar_restarts)
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    let (mut running, mut error) = (false, String::new());
    for status in items(&pod["status"], "containerStatuses").iter().rev() {
        summary.restarts.add(status);
        let (terminated, waiting) = (&status["state"]["terminated"], &status["state"]["waiting"]);
        if !text(waiting, "reason").is_empty() {
            summary.reason = text(waiting, "reason").to_owned();
        } else if terminated.is_object() {
            summary.reason = ended(terminated);
            if int(terminated, "exitCode").unwrap_or(0) != 0 {
                error.clone_from(&summary.reason);
            }
        } else if flag(status, "ready") && has(&status["state"], "running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        if running && is_true(pod, "Ready") {
            summary.reason = "Running".into();
        } else if !error.is_empty() {
            summary.reason = error;
        } else if running {
            summary.reason = "NotReady".into();
        }
    }
}

fn gates(pod: &Value) -> String {
    let gates = items(&pod["spec"], "readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|g| is_true(pod, text(g, "conditionType"))).count();
    format!("{open}/{}", gates.len())
}
