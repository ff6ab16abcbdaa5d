//! Step 5: what dies comes back, what is unwell is restarted or left alone.

use anyhow::Context;
use coxswain_e2e::pods::{container_id, is_ready, labelled, restarts, wait_ready};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{LONG, Walk, manifest};

const EVENTS: &str = "/api/v1/namespaces/default/events";

pub fn deleted_and_killed_come_back(walk: &Walk) -> anyhow::Result<String> {
    let pods = wait_ready(&walk.api, "notepad", 3, LONG)?;
    let deleted = pods.keys().next().context("no pod")?.clone();
    walk.cluster.kubectl(&["delete", "pod", deleted.trim_start_matches("default/")])?;
    let pods = walk.api.wait("a pod in its place", &labelled("notepad"), LONG, |pods| {
        let healed = pods.len() == 3 && pods.values().all(is_ready) && !pods.contains_key(&deleted);
        healed.then(|| pods.clone())
    })?;
    let (name, pod) = pods.iter().next().context("no pod")?;
    let id = container_id(pod).context("no container")?;
    let pid = process_of(walk, &id)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let pod = walk.api.wait("the container's restart", &labelled("notepad"), LONG, |pods| {
        let pod = pods.get(name)?;
        (restarts(pod) == 1 && is_ready(pod)).then(|| pod.clone())
    })?;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    anyhow::ensure!(last["exitCode"] == 137, "the status tells of the kill: {last}");
    let started = events_of(walk, name, "Started", 2)?;
    Ok(format!("{deleted} was replaced; {name} restarted once, {started} Started events, last exit code 137"))
}

pub fn liveness_restarts(walk: &Walk) -> anyhow::Result<String> {
    walk.apply(manifest("probed.yaml"))?;
    wait_ready(&walk.api, "probed", 1, LONG)?;
    walk.cluster.kubectl(&["exec", "probed", "--", "rm", "/tmp/alive"])?;
    walk.api.wait("the restart", &labelled("probed"), LONG, |pods| {
        let pod = pods.get("default/probed")?;
        (restarts(pod) == 1 && is_ready(pod)).then_some(())
    })?;
    let why = event_message(walk, "probed", "Unhealthy", "Liveness probe failed")?;
    event_message(walk, "probed", "Killing", "failed liveness probe, will be restarted")?;
    let previous = walk.cluster.kubectl(&["logs", "probed", "--previous"])?;
    anyhow::ensure!(previous == "instance starts\n", "{previous:?}");
    Ok(why)
}

pub fn readiness_takes_out(walk: &Walk) -> anyhow::Result<String> {
    endpoints(walk, 1)?;
    walk.cluster.kubectl(&["exec", "probed", "--", "rm", "/tmp/ready"])?;
    endpoints(walk, 0)?;
    walk.api.wait("the pod to be unready", &labelled("probed"), LONG, |pods| {
        pods.get("default/probed").filter(|pod| !is_ready(pod)).map(drop)
    })?;
    walk.cluster.kubectl(&["exec", "probed", "--", "touch", "/tmp/ready"])?;
    endpoints(walk, 1)?;
    let pods = wait_ready(&walk.api, "probed", 1, LONG)?;
    anyhow::ensure!(pods.values().all(|pod| restarts(pod) == 1), "readiness restarts nothing");
    Ok("out of the endpoints and in again, without a restart".to_owned())
}

/// Waits until the service `probed` has so many ready endpoints.
pub fn endpoints(walk: &Walk, count: usize) -> anyhow::Result<()> {
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                ?labelSelector=kubernetes.io%2Fservice-name%3Dprobed";
    walk.api.wait(&format!("{count} ready endpoints"), path, LONG, |slices| {
        let endpoints = slices.values().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
        (!slices.is_empty() && ready == count).then_some(())
    })
}

/// The host's id of the process of a container.
pub fn process_of(walk: &Walk, container: &str) -> anyhow::Result<i32> {
    let mut pids = walk.cluster.processes();
    pids.retain(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|cgroups| cgroups.contains(container))
    });
    pids.first().copied().with_context(|| format!("no process is in a cgroup of {container}"))
}

/// Waits until events of a pod with a reason say they happened so often.
fn events_of(walk: &Walk, pod: &str, reason: &str, times: u64) -> anyhow::Result<u64> {
    let name = pod.trim_start_matches("default/");
    walk.api.wait(&format!("{times} {reason} events"), EVENTS, LONG, |events| {
        let matching = events
            .values()
            .filter(|event| event["reason"] == reason && event["involvedObject"]["name"] == name);
        let happened: u64 = matching.map(|event| event["count"].as_u64().unwrap_or(1)).sum();
        (happened >= times).then_some(happened)
    })
}

/// Waits for an event of a pod, with a reason and a text.
fn event_message(walk: &Walk, pod: &str, reason: &str, text: &str) -> anyhow::Result<String> {
    walk.api.wait(&format!("a {reason} event with {text:?}"), EVENTS, LONG, |events| {
        let message = |event: &Value| {
            let message = event["message"].as_str()?;
            let matches =
                event["reason"] == reason && event["involvedObject"]["name"] == pod && message.contains(text);
            matches.then(|| message.to_owned())
        };
        events.values().find_map(message)
    })
}
