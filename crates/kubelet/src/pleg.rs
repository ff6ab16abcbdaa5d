//! Events of the runtime's pods reach their workers here; a slow relist catches what a broken stream lost.

use std::sync::Arc;
use std::time::Duration;

use coxswain_cri::v1::{ContainerEventResponse, ContainerEventType};

use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::pod::table::Message;
use crate::volumes;

const RELIST: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Listens to the runtime's events until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>) {
    let mut retry = Duration::from_millis(50);
    let mut connected = false;
    let mut relist = tokio::time::interval_at(tokio::time::Instant::now() + RELIST, RELIST);
    loop {
        match kubelet.cri.events().await {
            Ok(mut events) => {
                // Whatever happened while nobody listened.
                if std::mem::replace(&mut connected, true) {
                    kubelet.table.wake_all();
                }
                retry = Duration::from_millis(50);
                loop {
                    tokio::select! {
                        event = events.message() => match event {
                            Ok(Some(event)) => dispatch(&kubelet, &event),
                            Ok(None) | Err(_) => break,
                        },
                        _ = relist.tick() => {
                            kubelet.table.wake_all();
                            end_orphans(&kubelet).await;
                        }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no container events");
                kubelet.table.wake_all();
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LONGEST_RETRY);
    }
}

fn dispatch(kubelet: &Kubelet, event: &ContainerEventResponse) {
    if event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
        // Nobody may be following a log.
        let _ = kubelet.stopped.send(event.container_id.clone());
    }
    let metadata = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref());
    match metadata {
        Some(metadata) => {
            kubelet.table.tell(&metadata.uid, Message::Runtime);
        }
        None => kubelet.table.wake_all(),
    }
}

/// Ends sandboxes, volumes and logs of pods that no longer exist.
pub async fn end_orphans(kubelet: &Arc<Kubelet>) {
    let Ok(sandboxes) = kubelet.cri.sandboxes(None).await else { return };
    for sandbox in &sandboxes {
        if let Some(id) = PodId::of_labels(&sandbox.labels).filter(|id| !kubelet.table.knows(&id.uid)) {
            tracing::info!(pod = %id, "ending a pod that no longer exists");
            kubelet.table.end_orphan(id);
        }
    }
    remove_directories(kubelet).await;
}

async fn remove_directories(kubelet: &Kubelet) {
    for uid in names(&kubelet.dirs.pods()).await.into_iter().filter(|uid| !kubelet.table.knows(uid)) {
        let dir = kubelet.dirs.pod(&uid);
        match volumes::tear_down(&dir).await {
            Ok(()) => {
                let _ = kubelet.cgroups.remove(&uid);
                let _ = tokio::fs::remove_dir_all(dir).await;
            }
            Err(error) => tracing::debug!(uid, %error, "orphaned volumes remain for now"),
        }
    }
    for name in names(kubelet.dirs.all_logs()).await {
        if name.rsplit_once('_').is_some_and(|(_, uid)| !kubelet.table.knows(uid)) {
            let _ = tokio::fs::remove_dir_all(kubelet.dirs.all_logs().join(name)).await;
        }
    }
}

async fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(mut entries) = tokio::fs::read_dir(dir).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}
