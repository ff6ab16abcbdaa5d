//! NodeName: a pod that names its node takes no other.

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Filter.
pub fn name(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let matches = pod.node.is_empty() || pod.node == node.name;
    if matches { Vec::new() } else { vec!["node(s) didn't match the requested node name".into()] }
}
