//! A deployment's ReplicaSets: which is the current template's, revisions, names and annotations.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;

use super::plan::Set;
use crate::owner;

/// The label that tells the pods of a deployment's ReplicaSets apart.
pub const HASH_LABEL: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MOST: &str = "deployment.kubernetes.io/max-replicas";
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

/// A deployment's ReplicaSets, sorted out.
pub struct Sets {
    /// The one of the current template.
    pub new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    pub old: Vec<Arc<ReplicaSet>>,
}

fn template_of(set: &ReplicaSet) -> PodTemplateSpec {
    let mut template = set.spec.template.clone().unwrap_or_default();
    if let Some(labels) = template.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// Whether a ReplicaSet has the template of the deployment.
pub fn is_current(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let mut wanted = deployment.spec.template.clone();
    if let Some(labels) = wanted.metadata.as_mut().and_then(|metadata| metadata.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template_of(set) == wanted
}

impl Sets {
    /// Sorts the ReplicaSets that a deployment owns.
    pub fn of(deployment: &Deployment, mut owned: Vec<Arc<ReplicaSet>>) -> Self {
        let created = |set: &Arc<ReplicaSet>| {
            (set.metadata.creation_timestamp.as_ref().map(|Time(at)| *at), set.name_any())
        };
        owned.sort_by_key(created);
        let at = owned.iter().position(|set| is_current(deployment, set));
        let new = at.map(|at| owned.remove(at));
        Self { new, old: owned }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    /// The revision that the current template has or gets.
    pub fn revision(&self) -> i64 {
        let newest_old = self.old.iter().map(|set| revision_of(set)).max().unwrap_or(0);
        let own = self.new.as_ref().map_or(0, |set| revision_of(set));
        if own > newest_old { own } else { newest_old + 1 }
    }
}

fn annotation<'a>(set: &'a ReplicaSet, name: &str) -> Option<&'a String> {
    set.metadata.annotations.as_ref()?.get(name)
}

/// The revision a ReplicaSet carries.
pub fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// `spec.replicas`.
pub fn size_of(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// What the plan knows of a ReplicaSet.
pub fn as_planned(set: &ReplicaSet) -> Set {
    let number = |name: &str| annotation(set, name).and_then(|text| text.parse().ok());
    Set {
        size: size_of(set),
        available: set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0),
        desired: number(DESIRED),
        most: number(MOST),
    }
}

/// The annotations a ReplicaSet of the current template has to carry.
pub fn annotations(
    deployment: &Deployment,
    existing: Option<&ReplicaSet>,
    revision: i64,
    replicas: i32,
    most: i32,
) -> BTreeMap<String, String> {
    let mut all = existing.and_then(|set| set.metadata.annotations.clone()).unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            all.insert(key.clone(), value.clone());
        }
    }
    if let Some(before) = all.get(REVISION).filter(|before| **before != revision.to_string()).cloned() {
        let history =
            all.get(REVISION_HISTORY).map(|history| format!("{history},{before}")).unwrap_or(before);
        all.insert(REVISION_HISTORY.into(), history);
    }
    all.insert(REVISION.into(), revision.to_string());
    all.insert(DESIRED.into(), replicas.to_string());
    all.insert(MOST.into(), most.to_string());
    all
}

/// A short name for a template: stable, and different after a collision.
pub fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(template).unwrap_or_default().hash(&mut hasher);
    collisions.hash(&mut hasher);
    let mut number = hasher.finish();
    let mut text = String::new();
    for _ in 0..10 {
        let digit = usize::try_from(number % ALPHABET.len() as u64).unwrap_or(0);
        text.push(char::from(ALPHABET[digit]));
        number /= ALPHABET.len() as u64;
    }
    text
}

/// The ReplicaSet of a deployment's current template.
pub fn build(deployment: &Deployment, size: i32, annotations: BTreeMap<String, String>) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let labels = metadata.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}
