//! Stops one container: preStop hook, stop signal, SIGKILL, all within one grace period.

use std::time::Duration;

use coxswain_client::EventType::{Normal, Warning};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::plan::LEAST_GRACE_SECONDS;
use super::worker::Failure;
use super::{containers, hooks};
use crate::kubelet::Kubelet;

/// The order to stop a container.
pub struct Kill {
    /// Its id.
    pub id: String,
    /// Its name in the spec.
    pub name: String,
    /// How long hook and process may take together.
    pub grace_seconds: i64,
    /// Text of the event.
    pub message: String,
}

/// Stops the container.
pub async fn kill(kubelet: &Kubelet, pod: &Pod, order: Kill) -> Result<(), Failure> {
    kubelet.events.container(pod, &order.name, Normal, "Killing", order.message);
    let begun = Instant::now();
    let container = containers::find(pod, &order.name).map(|(_, c)| c);
    let hook = container.as_ref().and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
    if let (Some(container), Some(hook)) = (&container, hook)
        && order.grace_seconds > 0
    {
        let ips = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
        let ip = ips.or(kubelet.host_ips.first().cloned()).unwrap_or_default();
        let limit = Duration::from_secs(order.grace_seconds.unsigned_abs());
        let run = hooks::run(kubelet, hook, container, &order.id, &ip);
        if let Ok(Err(error)) = tokio::time::timeout(limit, run).await {
            tracing::debug!(container = order.name, error, "preStop hook failed");
            kubelet.events.container(pod, &order.name, Warning, "FailedPreStopHook", "PreStopHook failed");
        }
    }
    let spent = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
    let left = order.grace_seconds.saturating_sub(spent).max(LEAST_GRACE_SECONDS);
    kubelet.cri.stop_container(&order.id, left).await.map_err(|error| {
        let text = format!("error killing pod: failed to stop container: {}", crate::cri::text(&error));
        kubelet.events.warning(pod, "FailedKillPod", text);
        Failure::plain()
    })
}
