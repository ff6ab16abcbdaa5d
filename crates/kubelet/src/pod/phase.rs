//! The pod's phase from its containers' statuses, by upstream's rules. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::containers::{self, Kind, spec};

#[derive(Default)]
struct Count {
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
}

fn status<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == name)
}

fn terminated(status: &ContainerStatus) -> Option<i32> {
    status.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code)
}

fn was_terminated(status: &ContainerStatus) -> bool {
    status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
}

fn running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// `status.phase`; `over` once no container of the pod will run again.
pub fn phase(pod: &Pod, init: &[ContainerStatus], apps: &[ContainerStatus], over: bool) -> &'static str {
    let mut pending_init = false;
    for (kind, container) in containers::init_containers(pod) {
        let status = status(init, &container.name);
        match (kind, status, status.and_then(terminated)) {
            (Kind::Init, Some(_), Some(0)) => {}
            (Kind::Init, Some(_), Some(code)) => {
                if !containers::restarts(pod, kind, container, code) {
                    return "Failed";
                }
                pending_init = true;
            }
            (Kind::Sidecar, Some(status), _) if status.started == Some(true) || was_terminated(status) => {}
            (Kind::Sidecar, Some(_), Some(_)) => {}
            _ => pending_init = true,
        }
    }
    let mut count = Count::default();
    for container in &spec(pod).containers {
        match status(apps, &container.name) {
            Some(status) if running(status) => count.running += 1,
            Some(status) => match terminated(status) {
                Some(code) => {
                    count.stopped += 1;
                    count.succeeded += usize::from(code == 0);
                }
                None if was_terminated(status) => count.stopped += 1,
                None => count.waiting += 1,
            },
            None => count.waiting += 1,
        }
    }
    of_counts(pod, &count, pending_init, over)
}

fn of_counts(pod: &Pod, count: &Count, pending_init: bool, over: bool) -> &'static str {
    let started = count.running + count.stopped > 0;
    if over {
        return if count.stopped > 0 && count.succeeded == count.stopped && count.waiting == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if pending_init && !started || count.waiting > 0 {
        return "Pending";
    }
    if count.running > 0 {
        return "Running";
    }
    match containers::restart_policy(pod) {
        "Always" => "Running",
        _ if count.stopped == count.succeeded => "Succeeded",
        "Never" => "Failed",
        _ => "Running",
    }
}
