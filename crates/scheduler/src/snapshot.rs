//! The nodes and what is taken of them, kept up to date by every event and every decision.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt;

use crate::pod::{HostPort, PodInfo};
use crate::resources::Resources;

/// A node, as plugins see it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// What the node has.
    pub allocatable: Resources,
    /// How many pods it takes.
    pub most_pods: i64,
    /// What its pods ask for.
    pub requested: Resources,
    /// What its pods count as when nodes are compared.
    pub counted: Resources,
    /// Ports taken.
    pub ports: Vec<HostPort>,
    /// How many pods it has.
    pub pods: i64,
}

impl NodeInfo {
    fn describe(&mut self, node: &Node) {
        let status = node.status.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        let pods = status.allocatable.as_ref().and_then(|list| list.get("pods"));
        self.name = node.name_any();
        self.labels = node.labels().clone();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        self.allocatable = Resources::of(status.allocatable.as_ref());
        self.most_pods = pods.and_then(|pods| pods.0.parse().ok()).unwrap_or(0);
    }

    /// A pod more.
    pub fn add(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.counted.add(&pod.counted);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods += 1;
    }

    /// A pod less.
    pub fn subtract(&mut self, pod: &PodInfo) {
        self.requested.subtract(&pod.requests);
        self.counted.subtract(&pod.counted);
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(at);
            }
        }
        self.pods -= 1;
    }
}

/// Nodes in the order they came, and the pods that count on them.
#[derive(Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    pods: HashMap<String, PodInfo>,
    /// Pods for which others are leaving a node, by uid.
    nominated: HashMap<String, PodInfo>,
}

impl Snapshot {
    /// The nodes.
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// A node as it is now.
    pub fn put_node(&mut self, node: &Node) {
        let name = node.name_any();
        let at = match self.index.get(&name) {
            Some(at) => *at,
            None => {
                let mut info = NodeInfo { name: name.clone(), ..NodeInfo::default() };
                self.pods.values().filter(|pod| pod.node == name).for_each(|pod| info.add(pod));
                self.nodes.push(info);
                self.index.insert(name, self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        self.nodes[at].describe(node);
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(at) = self.index.remove(name) {
            self.nodes.remove(at);
            self.index.values_mut().filter(|other| **other > at).for_each(|other| *other -= 1);
        }
    }

    /// The pods that count on a node.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a PodInfo> {
        self.pods.values().filter(move |pod| pod.node == node)
    }

    /// Room on a node is promised to a pod.
    pub fn nominate(&mut self, pod: PodInfo, node: &str) {
        self.nominated.insert(pod.uid.clone(), PodInfo { node: node.to_owned(), ..pod });
    }

    /// A pod is promised nothing any more.
    pub fn withdraw(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// The node on which a pod was promised room.
    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|pod| pod.node.as_str())
    }

    /// Adds to a node those to whom its room is promised before `pod`; whether there are any.
    pub fn add_nominated(&self, pod: &PodInfo, node: &mut NodeInfo) -> bool {
        let before = self.nominated.values().filter(|other| {
            other.node == node.name && other.uid != pod.uid && other.priority >= pod.priority
        });
        let before: Vec<&PodInfo> = before.collect();
        before.iter().for_each(|other| node.add(other));
        !before.is_empty()
    }

    /// Whether anybody is promised room.
    pub fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// A pod counts on its node from now on.
    pub fn put_pod(&mut self, pod: PodInfo) {
        self.remove_pod(&pod.uid);
        self.withdraw(&pod.uid);
        if let Some(at) = self.index.get(&pod.node) {
            self.nodes[*at].add(&pod);
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// A pod counts no longer; whether it did.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(pod) = self.pods.remove(uid) else { return false };
        if let Some(at) = self.index.get(&pod.node) {
            self.nodes[*at].subtract(&pod);
        }
        true
    }

    /// Whether a pod counts on a node.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }
}
