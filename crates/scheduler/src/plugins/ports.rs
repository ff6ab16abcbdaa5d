//! NodePorts: ports of the host are taken once.

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Filter.
pub fn filter(pod: &PodInfo, node: &NodeInfo) -> Vec<String> {
    let taken = pod.ports.iter().any(|wanted| node.ports.iter().any(|port| port.conflicts(wanted)));
    if taken { vec!["node(s) didn't have free ports for the requested pod ports".into()] } else { Vec::new() }
}
