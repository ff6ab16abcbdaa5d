//! What a pod needs around its containers: cgroup, directories, volumes, sandbox; and their removal.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;

use super::containers::{self, spec};
use super::worker::Failure;
use crate::kubelet::Kubelet;
use crate::model::{PodId, PodRuntime};
use crate::spec::resources::{self, PodCgroup};
use crate::spec::sandbox;
use crate::volumes::{self, Mounted};

/// Makes cgroup, directories and volumes, or brings them up to date.
pub async fn prepare(kubelet: &Kubelet, pod: &Pod, cgroup: &PodCgroup) -> Result<Mounted, Failure> {
    let id = PodId::of(pod);
    if let Err(error) = kubelet.cgroups.create(&id.uid, cgroup) {
        let text = format!("unable to ensure pod container exists: {error}");
        kubelet.events.warning(pod, "FailedCreatePodContainer", text);
        return Err(Failure::plain());
    }
    for dir in [kubelet.dirs.pod(&id.uid), kubelet.dirs.logs(&id)] {
        if let Err(error) = tokio::fs::create_dir_all(&dir).await {
            let text = format!("error making pod data directories: mkdir {}: {error}", dir.display());
            kubelet.events.warning(pod, "Failed", text);
            return Err(Failure::plain());
        }
    }
    volumes::set_up(kubelet, pod).await.map_err(|error| {
        let text = format!("MountVolume.SetUp failed for volume \"{}\" : {}", error.volume, error.source);
        kubelet.events.warning(pod, "FailedMount", text);
        Failure::plain()
    })
}

/// Gives running containers, by their ids, what the pod grants them, after the pod's cgroup.
///
/// # Errors
/// What the kernel or the runtime says.
pub async fn resize(
    kubelet: &Kubelet,
    pod: &Pod,
    cgroup: &PodCgroup,
    ids: &[(String, String)],
) -> Result<(), String> {
    let id = PodId::of(pod);
    kubelet.cgroups.create(&id.uid, cgroup).map_err(|error| format!("the pod's cgroup: {error}"))?;
    for (name, id) in ids {
        let Some((kind, container)) = containers::find(pod, name) else { continue };
        let mut values = resources::container(pod, &container, kind, kubelet.node.memory_bytes());
        // Zero would leave a limit as it is.
        values.cpu_quota = if values.cpu_quota == 0 { -1 } else { values.cpu_quota };
        values.memory_limit_in_bytes =
            if values.memory_limit_in_bytes == 0 { -1 } else { values.memory_limit_in_bytes };
        let updated = kubelet.cri.update_resources(id, values).await;
        updated.map_err(|error| format!("container {name}: {}", crate::cri::text(&error)))?;
    }
    Ok(())
}

/// Makes a sandbox.
pub async fn create_sandbox(kubelet: &Kubelet, pod: &Pod, attempt: u32) -> Result<(), Failure> {
    let config = sandbox::config(kubelet, pod, attempt);
    let made = match runtime_handler(kubelet, pod).await {
        Ok(handler) => kubelet.cri.run_sandbox(config, handler).await.map_err(|e| crate::cri::text(&e)),
        Err(error) => Err(error.to_string()),
    };
    made.map(|_| ()).map_err(|error| {
        let text = format!("Failed to create pod sandbox: {error}");
        kubelet.events.warning(pod, "FailedCreatePodSandBox", text);
        Failure::plain()
    })
}

/// The handler the pod's RuntimeClass names; empty for the runtime's default.
async fn runtime_handler(kubelet: &Kubelet, pod: &Pod) -> Result<String, kube::Error> {
    let Some(name) = spec(pod).runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    let classes: Api<RuntimeClass> = Api::all(kubelet.config.client.clone());
    Ok(classes.get(name).await?.handler)
}

/// Gives back volumes and cgroup of a pod whose processes have ended; `false` when something resists.
pub async fn tear_down(kubelet: &Kubelet, id: &PodId) -> bool {
    kubelet.release_objects(&id.uid);
    let unmounted = volumes::tear_down(&kubelet.dirs.pod(&id.uid)).await;
    let removed = kubelet.cgroups.remove(&id.uid);
    for (what, result) in [("volumes", &unmounted), ("cgroup", &removed)] {
        if let Err(error) = result {
            tracing::warn!(pod = %id, %error, what, "cannot be removed yet");
        }
    }
    unmounted.is_ok() && removed.is_ok()
}

/// Removes the last of a pod whose object is gone: dead sandboxes with their containers, logs, directories.
pub async fn forget(kubelet: &Kubelet, id: &PodId, runtime: &PodRuntime) {
    kubelet.release_objects(&id.uid);
    for sandbox in &runtime.sandboxes {
        if let Err(error) = kubelet.cri.remove_sandbox(&sandbox.id).await {
            tracing::warn!(pod = %id, %error, "sandbox not removed");
        }
    }
    for dir in [kubelet.dirs.logs(id), kubelet.dirs.pod(&id.uid)] {
        let _ = tokio::fs::remove_dir_all(dir).await;
    }
}
