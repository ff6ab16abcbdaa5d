//! Who owns whom: the owner references of all objects, by uid.

use std::collections::{HashMap, HashSet};

use coxswain_client::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The finalizer of an owner that waits for its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner that lets its dependents go.
pub const ORPHAN: &str = "orphan";

/// What is known of an object.
#[derive(Clone, Debug)]
pub struct Node {
    /// The index of its kind among those watched.
    pub kind: usize,
    /// Its place.
    pub key: ObjectKey,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its finalizers.
    pub finalizers: Vec<String>,
}

impl Node {
    /// What an object's metadata says.
    pub fn of(kind: usize, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            key: ObjectKey::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }

    fn holds(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|name| name == finalizer)
    }

    /// Whether it waits for its dependents.
    pub fn is_foreground(&self) -> bool {
        self.holds(FOREGROUND)
    }

    /// Whether it is to let its dependents go.
    pub fn is_orphaning(&self) -> bool {
        self.holds(ORPHAN)
    }
}

/// The graph. Every method returns the uids whose state the change may decide.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// One object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(String, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone()))).collect()
    }

    /// An object as it is now.
    pub fn put(&mut self, uid: String, node: Node) -> Vec<String> {
        let mut concerned = Vec::new();
        self.unlink(&uid);
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let waits = node.is_foreground() || node.is_orphaning();
        if waits {
            concerned.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        if waits || !node.owners.is_empty() {
            concerned.push(uid.clone());
        }
        // A dependent that no longer names its owner may have been what the owner waited for.
        if let Some(before) = self.nodes.insert(uid, node) {
            concerned.extend(
                before
                    .owners
                    .into_iter()
                    .map(|owner| owner.uid)
                    .filter(|owner| self.nodes.contains_key(owner)),
            );
        }
        concerned
    }

    /// An object is gone.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        self.unlink(uid);
        let mut concerned: Vec<String> = self.dependents.remove(uid).into_iter().flatten().collect();
        if let Some(node) = self.nodes.remove(uid) {
            concerned.extend(node.owners.into_iter().map(|owner| owner.uid));
        }
        concerned
    }

    /// The objects of a kind that are not among those listed.
    pub fn missing(&self, kind: usize, listed: &HashSet<String>) -> Vec<String> {
        self.nodes
            .iter()
            .filter(|(uid, node)| node.kind == kind && !listed.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    fn unlink(&mut self, uid: &str) {
        for owner in self.nodes.get(uid).map(|node| node.owners.clone()).unwrap_or_default() {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Solid,
    /// It is there, and waits for its dependents to go.
    Waiting,
    /// It is gone.
    Absent,
}

/// What is done about an object with owners.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// Take the references to these owners away.
    Unlink(Vec<String>),
    /// Delete it; foreground where its owner waits and it has dependents itself.
    Delete {
        /// Wait for its dependents.
        foreground: bool,
    },
}

/// An object lives as long as one of its owners does.
pub fn decide(owners: &[(String, Owner)], has_dependents: bool) -> Decision {
    let with = |state: Owner| owners.iter().filter(move |(_, owner)| *owner == state);
    let leaving: Vec<String> =
        owners.iter().filter(|(_, owner)| *owner != Owner::Solid).map(|(uid, _)| uid.clone()).collect();
    match (with(Owner::Solid).count(), leaving.is_empty()) {
        (_, true) => Decision::Keep,
        (0, false) => Decision::Delete { foreground: with(Owner::Waiting).count() > 0 && has_dependents },
        _ => Decision::Unlink(leaving),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_lives_as_long_as_one_owner() {
        let owners = |states: &[Owner]| {
            states.iter().enumerate().map(|(at, state)| (at.to_string(), *state)).collect::<Vec<_>>()
        };
        for (states, dependents, decision) in [
            (vec![Owner::Solid], false, Decision::Keep),
            (vec![Owner::Solid, Owner::Absent], false, Decision::Unlink(vec!["1".into()])),
            (vec![Owner::Absent], true, Decision::Delete { foreground: false }),
            (vec![Owner::Waiting, Owner::Absent], true, Decision::Delete { foreground: true }),
            (vec![Owner::Waiting], false, Decision::Delete { foreground: false }),
        ] {
            assert_eq!(decide(&owners(&states), dependents), decision);
        }
    }

    #[test]
    fn the_graph_knows_whom_a_change_concerns() {
        let node = |owner: &str, deleting: bool| Node {
            kind: 0,
            key: ObjectKey::default(),
            owners: (!owner.is_empty())
                .then(|| OwnerReference { uid: owner.into(), ..OwnerReference::default() })
                .into_iter()
                .collect(),
            deleting,
            finalizers: vec![FOREGROUND.into()],
        };
        let mut graph = Graph::default();
        assert!(graph.put("owner".into(), node("", false)).is_empty());
        assert_eq!(graph.put("child".into(), node("owner", false)), ["child"]);
        assert_eq!(graph.put("owner".into(), node("", true)), ["child", "owner"]);
        assert_eq!(graph.remove("child"), ["owner"]);
        assert!(graph.dependents("owner").is_empty());
    }
}
