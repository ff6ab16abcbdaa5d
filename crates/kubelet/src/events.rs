//! Events about pods and their containers; the words are upstream's, because people and scripts match on them.

use coxswain_client::{EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Resource;

/// Writes the events of one node's pods.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    node_name: String,
}

impl Events {
    /// Events of a node, written through `recorder`.
    pub fn new(recorder: Recorder, node_name: &str) -> Self {
        Self { recorder, node_name: node_name.to_owned() }
    }

    /// Something normal about the pod.
    pub fn normal(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.event(pod, EventType::Normal, reason, message);
    }

    /// Something wrong about the pod.
    pub fn warning(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.event(pod, EventType::Warning, reason, message);
    }

    /// Something about one container of the pod.
    pub fn container(
        &self,
        pod: &Pod,
        name: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let reference = ObjectReference { field_path: Some(field_path(pod, name)), ..pod.object_ref(&()) };
        self.recorder.event_ref(reference, kind, reason, message);
    }

    /// Something about the node itself.
    pub fn node(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let reference = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node_name.clone()),
            uid: Some(self.node_name.clone()),
            ..ObjectReference::default()
        };
        self.recorder.event_ref(reference, kind, reason, message);
    }
}

fn field_path(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let named = |list: Option<&Vec<k8s_openapi::api::core::v1::Container>>| {
        list.is_some_and(|containers| containers.iter().any(|c| c.name == name))
    };
    let field = if named(spec.map(|s| &s.containers)) {
        "containers"
    } else if named(spec.and_then(|s| s.init_containers.as_ref())) {
        "initContainers"
    } else {
        "ephemeralContainers"
    };
    format!("spec.{field}{{{name}}}")
}
