//! In-place resize (KEP-1287): what the node grants the containers of a pod, what they run with, and the steps from one
//! to the other. Pure: the worker takes the steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};

use super::containers::{self, Kind, spec};
use crate::admit::NoRoom;
use crate::model::{ContainerRecord, PodRuntime};
use crate::quantities;
use crate::spec::resources::{PodCgroup, pod_cgroup};

/// Requirements by container name.
type Granted = BTreeMap<String, ResourceRequirements>;

/// How a running container gets what it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its cgroup is changed.
    Update,
    /// It is restarted, as its `resizePolicy` says.
    Restart,
}

/// The resources of a pod's containers: wanted, granted, given.
#[derive(Default)]
pub struct Resize {
    granted: Option<Granted>,
    /// What each instance runs with, by its id.
    given: BTreeMap<String, ResourceRequirements>,
    /// What instances that are being started get, by name.
    starting: Granted,
    cgroup: Option<PodCgroup>,
    pending: Option<NoRoom>,
    failure: Option<String>,
}

impl Resize {
    /// Grants what the pod wants, if there is `room` for it, and gives the pod as granted.
    pub fn grant(&mut self, pod: &Arc<Pod>, room: impl FnOnce() -> Result<(), NoRoom>) -> Arc<Pod> {
        let wanted: Granted = resizable(pod).map(|(_, c)| (c.name.clone(), requirements(c))).collect();
        let granted = self.granted.get_or_insert_with(|| found(pod));
        let differs = wanted.iter().any(|(name, wanted)| granted.get(name).is_none_or(|g| !same(g, wanted)));
        self.pending = if differs { room().err() } else { None };
        if self.pending.is_none() {
            *granted = wanted;
            return pod.clone();
        }
        with(pod, granted)
    }

    /// An instance is about to be started with what `pod` grants.
    pub fn start(&mut self, pod: &Pod, name: &str) {
        if let Some((_, container)) = resizable(pod).find(|(_, c)| c.name == name) {
            self.starting.insert(name.to_owned(), requirements(container));
        }
    }

    /// Learns of instances, and forgets those that are gone.
    pub fn note(&mut self, pod: &Pod, runtime: &PodRuntime, status: &PodStatus) {
        self.given.retain(|id, _| runtime.containers.iter().any(|record| &record.id == id));
        for (_, container) in resizable(pod) {
            let Some(record) = runtime.latest(&container.name).filter(|record| record.alive()) else {
                continue;
            };
            if self.given.contains_key(&record.id) {
                continue;
            }
            let before = || shown(status, record);
            let given = self.starting.remove(&container.name).or_else(before);
            self.given.insert(record.id.clone(), given.unwrap_or_else(|| requirements(container)));
        }
    }

    /// What is to be done for each running container; `pod` is the pod as granted.
    pub fn steps(&self, pod: &Pod, runtime: &PodRuntime) -> BTreeMap<String, Step> {
        let step = |container: &Container| {
            let record = runtime.latest(&container.name).filter(|record| record.alive())?;
            let given = self.given.get(&record.id)?;
            let granted = requirements(container);
            let restarts = ["cpu", "memory"].iter().any(|resource| {
                !same_one(given, &granted, resource)
                    && container.resize_policy.iter().flatten().any(|policy| {
                        policy.resource_name == *resource && policy.restart_policy == "RestartContainer"
                    })
            });
            let step = if restarts { Step::Restart } else { Step::Update };
            (!same(given, &granted)).then(|| (container.name.clone(), step))
        };
        resizable(pod).filter_map(|(_, container)| step(container)).collect()
    }

    /// The values of the pod's cgroup: as granted, and while containers are on their way there, room for both.
    pub fn cgroup(&self, pod: &Pod, runtime: &PodRuntime) -> PodCgroup {
        let granted = pod_cgroup(pod);
        if self.steps(pod, runtime).is_empty() {
            return granted;
        }
        let running = resizable(pod).filter_map(|(_, container)| {
            let record = runtime.latest(&container.name)?;
            Some((container.name.clone(), self.given.get(&record.id)?.clone()))
        });
        let before = pod_cgroup(&with(&Arc::new(pod.clone()), &running.collect()));
        let larger = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
        PodCgroup {
            qos: granted.qos,
            cpu_shares: granted.cpu_shares.max(before.cpu_shares),
            cpu_quota: larger(granted.cpu_quota, before.cpu_quota),
            memory_bytes: larger(granted.memory_bytes, before.memory_bytes),
        }
    }

    /// Whether the pod's cgroup has other values.
    pub fn cgroup_differs(&self, cgroup: &PodCgroup) -> bool {
        self.cgroup.as_ref().is_some_and(|applied| applied != cgroup)
    }

    /// The pod's cgroup has these values now.
    pub fn applied(&mut self, cgroup: PodCgroup) {
        self.cgroup = Some(cgroup);
    }

    /// Containers run with what `pod` grants: those with these ids.
    pub fn updated(&mut self, pod: &Pod, runtime: &PodRuntime, ids: &[String]) {
        for record in runtime.containers.iter().filter(|record| ids.contains(&record.id)) {
            if let Some((_, container)) = resizable(pod).find(|(_, c)| c.name == record.name) {
                self.given.insert(record.id.clone(), requirements(container));
            }
        }
    }

    /// How the last attempt ended.
    pub fn tried(&mut self, failure: Option<String>) {
        self.failure = failure;
    }

    /// What a container was granted and what its instance runs with, for the status.
    pub fn shown(
        &self,
        name: &str,
        id: &str,
    ) -> (Option<ResourceRequirements>, Option<ResourceRequirements>) {
        let granted = self.granted.as_ref().and_then(|granted| granted.get(name)).cloned();
        let given = self.given.get(id).cloned().or_else(|| granted.clone());
        (granted, given)
    }

    /// Condition, reason and message of what is not done yet; `busy` while steps are left.
    pub fn conditions(&self, busy: bool) -> Vec<(&'static str, &'static str, String)> {
        let mut conditions = Vec::new();
        match &self.pending {
            Some(NoRoom::Ever(message)) => {
                conditions.push(("PodResizePending", "Infeasible", message.clone()))
            }
            Some(NoRoom::Now(message)) => conditions.push(("PodResizePending", "Deferred", message.clone())),
            None => {}
        }
        if busy {
            let reason = if self.failure.is_some() { "Error" } else { "" };
            conditions.push(("PodResizeInProgress", reason, self.failure.clone().unwrap_or_default()));
        }
        conditions
    }
}

/// Containers whose resources can change while they run.
fn resizable(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    containers::init_containers(pod).chain(spec(pod).containers.iter().map(|c| (Kind::App, c)))
}

fn requirements(container: &Container) -> ResourceRequirements {
    container.resources.clone().unwrap_or_default()
}

/// What the status says an instance runs with.
fn shown(status: &PodStatus, record: &ContainerRecord) -> Option<ResourceRequirements> {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let status = all.find(|s| s.container_id.as_deref().is_some_and(|id| id.ends_with(&record.id)))?;
    status.resources.clone()
}

/// What was granted before this kubelet started, by the pod's status; at first what the pod wants.
fn found(pod: &Pod) -> Granted {
    let statuses = pod.status.as_ref().map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let before = |name: &str| {
        let mut all = statuses.into_iter().flatten().flatten().flatten();
        let status = all.find(|s| s.name == name && s.allocated_resources.is_some())?;
        let limits = status.resources.as_ref().and_then(|r| r.limits.clone());
        Some(ResourceRequirements { requests: status.allocated_resources.clone(), limits, claims: None })
    };
    resizable(pod)
        .map(|(_, c)| (c.name.clone(), before(&c.name).unwrap_or_else(|| requirements(c))))
        .collect()
}

fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    ["cpu", "memory"].iter().all(|resource| same_one(a, b, resource))
}

/// Equal amounts are the same however they are written.
fn same_one(a: &ResourceRequirements, b: &ResourceRequirements, resource: &str) -> bool {
    let amounts = |r: &ResourceRequirements| {
        let exact = |q| quantities::milli(q);
        (quantities::request(Some(r), resource).map(exact), quantities::limit(Some(r), resource).map(exact))
    };
    amounts(a) == amounts(b)
}

/// The pod with other resources of its containers.
fn with(pod: &Arc<Pod>, resources: &Granted) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    if let Some(spec) = &mut pod.spec {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            if let Some(granted) = resources.get(&container.name) {
                container.resources = Some(granted.clone());
            }
        }
    }
    Arc::new(pod)
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
