//! What the plugins read of a pod, prepared once.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::ObjectKey;
use k8s_openapi::api::core::v1::{NodeSelector, Pod, PreferredSchedulingTerm, Toleration};
use kube::ResourceExt;

use crate::resources::{self, Resources};

/// A port of the host that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Number.
    pub port: i32,
    /// Protocol.
    pub protocol: String,
    /// Address; empty for all.
    pub ip: String,
}

impl HostPort {
    /// Whether the two cannot be had together.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip.is_empty() || other.ip.is_empty())
    }
}

/// A pod, as plugins see it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// Its place.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.nodeName`; empty while it is not bound.
    pub node: String,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts as when nodes are compared.
    pub counted: Resources,
    /// Ports of the host.
    pub ports: Vec<HostPort>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity.
    pub required: Option<NodeSelector>,
    /// Preferred node affinity.
    pub preferred: Vec<PreferredSchedulingTerm>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// The object, for events.
    pub object: Arc<Pod>,
}

impl PodInfo {
    /// Prepares a pod.
    pub fn new(pod: &Arc<Pod>) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let affinity =
            spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone()).unwrap_or_default();
        let (requests, counted) = (resources::of_pod(&spec, false), resources::of_pod(&spec, true));
        let ip = |ip: Option<String>| ip.filter(|ip| ip != "0.0.0.0").unwrap_or_default();
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten()).filter_map(
            |port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                Some(HostPort { port: number, protocol, ip: ip(port.host_ip.clone()) })
            },
        );
        Self {
            key: ObjectKey::of(&**pod),
            uid: pod.uid().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            node: spec.node_name.clone().unwrap_or_default(),
            requests,
            counted,
            ports: ports.collect(),
            node_selector: spec.node_selector.unwrap_or_default(),
            required: affinity.required_during_scheduling_ignored_during_execution,
            preferred: affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            object: pod.clone(),
        }
    }
}

/// Whether a pod has ended: it takes nothing of its node any more.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}
