//! Takes a cluster and everything it made on this machine away: pods, mounts, devices, rules, cgroups, files.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use coxswain_network::PodNetwork;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, Config, Resource, ResourceExt};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::node;

const PODS_MAY_TAKE: Duration = Duration::from_secs(15);
const CLUSTER_MAY_TAKE: Duration = Duration::from_secs(5);

/// Removes the cluster of a data directory: empties it while it runs, stops it, and removes what is left.
pub async fn remove(
    data_dir: &Path,
    cancel: &CancellationToken,
    running: Option<JoinHandle<anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    if let Some(cluster) = running {
        let emptied = tokio::time::timeout(PODS_MAY_TAKE, empty(data_dir)).await;
        if let Err(error) = emptied.unwrap_or_else(|_| Err(anyhow::anyhow!("pods did not end in time"))) {
            tracing::warn!(%error, "the pods are ended the hard way");
        }
        cancel.cancel();
        if let Ok(Ok(Err(error))) = tokio::time::timeout(CLUSTER_MAY_TAKE, cluster).await {
            tracing::debug!(%error, "the cluster ended");
        }
    }
    kill_shims(data_dir)?;
    kill_pods(&node::cgroup_root(data_dir)).await;
    unmount_below(data_dir)?;
    // Only a cluster that got as far as its network owns bridge and rules.
    if data_dir.join("network").exists() {
        PodNetwork::remove(node::BRIDGE).await.context("removing the pod network")?;
        coxswain_network::remove_proxy().await.context("removing the service rules")?;
    }
    coxswain_kubelet::remove_cgroups(&node::cgroup_root(data_dir)).context("removing the cgroups")?;
    match fs::remove_dir_all(data_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("removing the data directory")
        }
        _ => Ok(()),
    }
}

/// Deletes every workload and pod, and waits until the pods are gone.
async fn empty(data_dir: &Path) -> anyhow::Result<()> {
    let kubeconfig = kube::config::Kubeconfig::read_from(data_dir.join("admin.kubeconfig"))?;
    let client = Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?;
    delete_all::<CronJob>(&client).await?;
    delete_all::<Job>(&client).await?;
    delete_all::<Deployment>(&client).await?;
    delete_all::<StatefulSet>(&client).await?;
    delete_all::<DaemonSet>(&client).await?;
    delete_all::<ReplicaSet>(&client).await?;
    delete_all::<ReplicationController>(&client).await?;
    let pods: Api<Pod> = Api::all(client.clone());
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    loop {
        let left = pods.list(&ListParams::default()).await?;
        if left.items.is_empty() {
            return Ok(());
        }
        for pod in left {
            let of_namespace: Api<Pod> =
                Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let _ = of_namespace.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
        }
        pause.tick().await;
    }
}

async fn delete_all<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    for object in Api::<K>::all(client.clone()).list(&ListParams::default()).await? {
        let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        let _ = api.delete(&object.name_any(), &DeleteParams::background()).await;
    }
    Ok(())
}

/// Ends the shims of a data directory that outlived its cluster.
fn kill_shims(data_dir: &Path) -> anyhow::Result<()> {
    let marker = format!("{}/", data_dir.display());
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).skip(1);
        if words.next().as_deref() == Some("shim") && words.any(|word| word.starts_with(&marker)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// Ends what still runs in the cgroups of the pods.
async fn kill_pods(cgroup_root: &str) {
    let name = cgroup_root.trim_start_matches('/');
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..100 {
        pause.tick().await;
        let mut left = Vec::new();
        for mount in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            processes_below(&mount.path().join(name), &mut left);
        }
        processes_below(&Path::new("/sys/fs/cgroup").join(name), &mut left);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn processes_below(cgroup: &Path, found: &mut Vec<Pid>) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    found.extend(processes.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes_below(&entry.path(), found);
        }
    }
}

/// Unmounts everything below a directory, the deepest first.
fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(&dir))
        .collect();
    below.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in below {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}
