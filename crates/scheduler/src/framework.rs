//! The framework: extension points, and which plugins stand at them in the default profile.

use crate::plugins::{affinity, fit, node, ports, taints};
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// What happened in the cluster, as far as it may help a pod that found no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node came.
    NodeAdded,
    /// What a node has grew, or pods left it.
    CapacityFreed,
    /// A node's labels changed.
    NodeLabelsChanged,
    /// A node's taints changed, or whether it takes pods.
    NodeTaintsChanged,
}

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The plugin that says so.
    pub plugin: &'static Filter,
    /// In upstream's words, for events.
    pub reasons: Vec<String>,
}

/// A plugin that sorts nodes out.
pub struct Filter {
    /// Upstream's name.
    pub name: &'static str,
    /// The reasons against a node; none where there is nothing against it.
    pub filter: fn(&PodInfo, &NodeInfo) -> Vec<String>,
    /// The events that may change its mind.
    pub helped_by: &'static [Event],
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Filter {}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A plugin that compares nodes.
pub struct Score {
    /// Upstream's name.
    pub name: &'static str,
    /// Its weight in the default profile.
    pub weight: i64,
    /// The value of a node, larger is better.
    pub score: fn(&PodInfo, &NodeInfo) -> i64,
    /// How values become 0 to 100.
    pub normalize: Normalize,
}

/// How a plugin's values become comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are 0 to 100 already.
    No,
    /// The largest becomes 100.
    ToLargest,
    /// The largest becomes 0.
    ToLargestReversed,
}

/// The best value of a score.
pub const MAX_SCORE: i64 = 100;

/// In the order in which they are asked: cheap and decisive first.
pub static FILTERS: &[Filter] = &[
    Filter {
        name: "NodeUnschedulable",
        filter: taints::unschedulable,
        helped_by: &[Event::NodeAdded, Event::NodeTaintsChanged],
    },
    Filter { name: "NodeName", filter: node::name, helped_by: &[Event::NodeAdded] },
    Filter {
        name: "TaintToleration",
        filter: taints::filter,
        helped_by: &[Event::NodeAdded, Event::NodeTaintsChanged],
    },
    Filter {
        name: "NodeAffinity",
        filter: affinity::filter,
        helped_by: &[Event::NodeAdded, Event::NodeLabelsChanged],
    },
    Filter { name: "NodePorts", filter: ports::filter, helped_by: &[Event::NodeAdded, Event::CapacityFreed] },
    Filter {
        name: "NodeResourcesFit",
        filter: fit::filter,
        helped_by: &[Event::NodeAdded, Event::CapacityFreed],
    },
];

/// The default profile's scores.
pub static SCORES: &[Score] = &[
    Score {
        name: "TaintToleration",
        weight: 3,
        score: taints::score,
        normalize: Normalize::ToLargestReversed,
    },
    Score { name: "NodeAffinity", weight: 2, score: affinity::score, normalize: Normalize::ToLargest },
    Score { name: "NodeResourcesFit", weight: 1, score: fit::least_allocated, normalize: Normalize::No },
    Score {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        score: fit::balanced,
        normalize: Normalize::No,
    },
];
