//! One scheduling cycle: which node takes a pod, or why none does.

use std::collections::BTreeMap;

use crate::framework::{Event, FILTERS, Filter, MAX_SCORE, Normalize, Rejection, SCORES};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// Why no node takes a pod.
#[derive(Debug)]
pub struct Failure {
    nodes: usize,
    rejections: Vec<Rejection>,
}

impl Failure {
    /// In upstream's words: `0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were unschedulable.`
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rejections.iter().flat_map(|rejection| &rejection.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut reasons: Vec<String> =
            counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }

    /// What is added where no pods could leave for this one.
    pub fn without_victims(&self) -> String {
        format!(
            "{} preemption: 0/{} nodes are available: {} No preemption victims found for incoming pod.",
            self.message(),
            self.nodes,
            self.nodes
        )
    }

    /// Whether an event may help.
    pub fn is_helped_by(&self, event: Event) -> bool {
        self.nodes == 0 && event == Event::NodeAdded
            || self.rejections.iter().any(|rejection| rejection.plugin.helped_by.contains(&event))
    }
}

/// The first plugin that has something against a node.
pub fn reject(pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
    FILTERS.iter().find_map(|plugin: &'static Filter| {
        let reasons = (plugin.filter)(pod, node);
        (!reasons.is_empty()).then_some(Rejection { plugin, reasons })
    })
}

/// What stands against a node once those have come to whom its room is promised.
fn reject_promised(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> Option<Rejection> {
    if !snapshot.has_nominated() {
        return None;
    }
    let mut full = node.clone();
    if snapshot.add_nominated(pod, &mut full) { reject(pod, &full) } else { None }
}

/// The index of the best node; among equals, `turn` decides, so that they take turns.
pub fn schedule(pod: &PodInfo, snapshot: &Snapshot, turn: usize) -> Result<usize, Failure> {
    let nodes = snapshot.nodes();
    let mut feasible = Vec::new();
    let mut rejections = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        match reject(pod, node).or_else(|| reject_promised(pod, node, snapshot)) {
            None => feasible.push(at),
            Some(rejection) => rejections.push(rejection),
        }
    }
    match feasible.as_slice() {
        [] => Err(Failure { nodes: nodes.len(), rejections }),
        [only] => Ok(*only),
        _ => Ok(best(pod, nodes, &feasible, turn)),
    }
}

fn best(pod: &PodInfo, nodes: &[NodeInfo], feasible: &[usize], turn: usize) -> usize {
    let mut totals = vec![0; feasible.len()];
    for plugin in SCORES {
        let values: Vec<i64> = feasible.iter().map(|at| (plugin.score)(pod, &nodes[*at])).collect();
        tracing::trace!(plugin = plugin.name, ?values, pod = %pod.key);
        let largest = values.iter().copied().max().unwrap_or(0);
        for (total, value) in totals.iter_mut().zip(values) {
            let value = match plugin.normalize {
                Normalize::No => value,
                Normalize::ToLargest if largest == 0 => 0,
                Normalize::ToLargest => value * MAX_SCORE / largest,
                Normalize::ToLargestReversed if largest == 0 => MAX_SCORE,
                Normalize::ToLargestReversed => MAX_SCORE - value * MAX_SCORE / largest,
            };
            *total += value * plugin.weight;
        }
    }
    let top = totals.iter().copied().max().unwrap_or(0);
    let equals: Vec<usize> =
        feasible.iter().zip(&totals).filter(|(_, total)| **total == top).map(|(at, _)| *at).collect();
    equals[turn % equals.len()]
}
