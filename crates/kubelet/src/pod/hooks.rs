//! Lifecycle hooks: exec, httpGet, sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::kubelet::Kubelet;
use crate::probe::{check, http};

/// How long an HTTP hook may take to answer.
const HTTP_HOOK: Duration = Duration::from_secs(60);
/// Exec hooks are bounded by who calls them; this only bounds the runtime.
const EXEC_HOOK: Duration = Duration::from_secs(24 * 3600);

/// Runs a hook of a running container; the error is a sentence for logs and statuses.
pub async fn run(
    kubelet: &Kubelet,
    hook: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = kubelet.cri.exec_sync(container_id, command.clone(), EXEC_HOOK).await;
        let answer = answer.map_err(|error| crate::cri::text(&error))?;
        if answer.exit_code != 0 {
            return Err(format!("command '{}' exited with {}", command.join(" "), answer.exit_code));
        }
    }
    if let Some(get) = &hook.http_get {
        let request = check::http_request(get, container, pod_ip, "kube-lifecycle/1.37")?;
        let (status, body) = http::get(&request, HTTP_HOOK).await?;
        if status >= 400 {
            return Err(format!("HTTP hook failed with statuscode: {status}: {body}"));
        }
    }
    if let Some(sleep) = &hook.sleep {
        // The hook is a pause by definition.
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
    }
    Ok(())
}
