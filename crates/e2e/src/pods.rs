//! Questions about pods as the API shows them.

use std::time::Duration;

use coxswain_testkit::{Api, Watched};
use serde_json::Value;

/// The path of the pods of the default namespace that have a label.
pub fn labelled(app: &str) -> String {
    format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}")
}

/// Whether a pod serves: ready, and not on its way out.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// How often the containers of a pod were restarted.
pub fn restarts(pod: &Value) -> u64 {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.into_iter().flatten().filter_map(|status| status["restartCount"].as_u64()).sum()
}

/// The id of a pod's first container, without the runtime's name.
pub fn container_id(pod: &Value) -> Option<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?;
    Some(id.split_once("://").map_or(id, |(_, id)| id).to_owned())
}

/// Name, id of the pod's first container and restarts: what must not change unless somebody changes the pod.
pub fn identities(pods: &Watched) -> Vec<(String, Option<String>, u64)> {
    pods.iter().map(|(name, pod)| (name.clone(), container_id(pod), restarts(pod))).collect()
}

/// Waits until exactly `count` pods of an app are there and ready.
///
/// # Errors
/// They do not become so within the time.
pub fn wait_ready(api: &Api, app: &str, count: usize, within: Duration) -> anyhow::Result<Watched> {
    api.wait(&format!("{count} ready pods of {app}"), &labelled(app), within, |pods| {
        (pods.len() == count && pods.values().all(is_ready)).then(|| pods.clone())
    })
}
