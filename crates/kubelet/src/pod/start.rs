//! Starts one instance of a container: image, configuration, creation, start, postStart hook.

use std::sync::Arc;

use coxswain_client::EventType::{Normal, Warning};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::containers;
use super::table::Message;
use super::worker::Failure;
use super::{Waiting, hooks};
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::spec::container::{self as build, ContainerInput};
use crate::spec::sandbox;
use crate::volumes::Mounted;

/// What a start needs to know of the pod.
pub struct StartRequest {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container's name.
    pub name: String,
    /// Restarts before this instance.
    pub restart_count: u32,
    /// The sandbox to start it in.
    pub sandbox_id: String,
    /// The sandbox's number.
    pub sandbox_attempt: u32,
    /// The pod's addresses.
    pub ips: Vec<String>,
    /// The container whose process namespace it joins.
    pub target_id: Option<String>,
    /// The pod's volumes.
    pub mounted: Arc<Mounted>,
    /// Cancelled when the pod is to end.
    pub cancel: CancellationToken,
    /// The worker, to be told when the process runs.
    pub sender: mpsc::UnboundedSender<Message>,
}

/// Starts the container and runs its postStart hook.
pub async fn start(kubelet: &Kubelet, request: StartRequest) -> Result<(), Failure> {
    let pod = request.pod.clone();
    let Some((_, container)) = containers::find(&pod, &request.name) else { return Ok(()) };
    let pull = kubelet.images.ensure(kubelet, &pod, &container);
    let Some(image) = request.cancel.run_until_cancelled(pull).await else { return Ok(()) };
    let image = image?;
    let input = ContainerInput {
        pod: &pod,
        container: &container,
        restart_count: request.restart_count,
        ips: &request.ips,
        mounted: &request.mounted,
        image: &image,
        target_id: request.target_id.clone(),
    };
    let name = container.name.as_str();
    let config = match request.cancel.run_until_cancelled(build::config(kubelet, &input)).await {
        None => return Ok(()),
        Some(Ok(config)) => config,
        Some(Err(error)) => {
            return Err(failed(kubelet, &pod, name, "CreateContainerConfigError", error.to_string()));
        }
    };
    let sandbox_config = sandbox::config(kubelet, &pod, request.sandbox_attempt);
    let id = match kubelet.cri.create_container(&request.sandbox_id, config, sandbox_config).await {
        Ok(id) => id,
        Err(error) => {
            let text = crate::cri::text(&error);
            return Err(failed(kubelet, &pod, name, "CreateContainerError", text));
        }
    };
    kubelet.events.container(&pod, name, Normal, "Created", "Container created");
    if request.cancel.is_cancelled() {
        let _ = kubelet.cri.remove_container(&id).await;
        return Ok(());
    }
    if let Err(error) = kubelet.cri.start_container(&id).await {
        let text = crate::cri::text(&error);
        return Err(failed(kubelet, &pod, name, "RunContainerError", text));
    }
    kubelet.events.container(&pod, name, Normal, "Started", "Container started");
    post_start(kubelet, &pod, &container, &id, &request).await
}

async fn post_start(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    id: &str,
    request: &StartRequest,
) -> Result<(), Failure> {
    let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
    // The process runs while the hook does: let the worker see it.
    let _ = request.sender.send(Message::Runtime);
    let ip = request.ips.first().or(kubelet.host_ips.first()).cloned().unwrap_or_default();
    let run = hooks::run(kubelet, hook, container, id, &ip);
    let Some(Err(error)) = request.cancel.run_until_cancelled(run).await else { return Ok(()) };
    let name = &container.name;
    tracing::debug!(pod = %PodId::of(pod), container = name, error, "postStart hook failed");
    kubelet.events.container(pod, name, Warning, "FailedPostStartHook", "PostStartHook failed");
    kubelet.events.container(pod, name, Normal, "Killing", "FailedPostStartHook");
    let _ = kubelet.cri.stop_container(id, containers::grace_seconds(pod)).await;
    Err(failure("PostStartHookError", error))
}

fn failed(kubelet: &Kubelet, pod: &Pod, name: &str, reason: &str, message: String) -> Failure {
    kubelet.events.container(pod, name, Warning, "Failed", format!("Error: {message}"));
    failure(reason, message)
}

fn failure(reason: &str, message: String) -> Failure {
    let waiting = Waiting { reason: reason.to_owned(), message };
    let retry_after = Some(jiff::SignedDuration::from_secs(10));
    Failure { waiting: Some(waiting), retry_after }
}
