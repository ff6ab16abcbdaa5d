//! `persistentVolumeClaimRetentionPolicy` (KEP-1847): who owns a claim, so that it goes with its owner.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::owner::controller_ref;

/// Who deletes a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The claim goes with the set.
    pub when_deleted: bool,
    /// The claim goes with a pod that is not wanted any more.
    pub when_scaled: bool,
}

impl Policy {
    /// The policy of a set.
    pub fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
        let deletes = |text: Option<String>| text.as_deref() == Some("Delete");
        Self { when_deleted: deletes(policy.when_deleted), when_scaled: deletes(policy.when_scaled) }
    }
}

fn names<K: Resource<DynamicType = ()>>(reference: &OwnerReference, owner: &K) -> bool {
    reference.kind == K::kind(&())
        && reference.api_version == K::api_version(&())
        && reference.name == owner.name_any()
}

fn is<K: ResourceExt>(reference: &OwnerReference, owner: &K) -> bool {
    owner.meta().uid.as_ref() == Some(&reference.uid)
}

fn references(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &OwnerReference> {
    claim.metadata.owner_references.iter().flatten()
}

/// Whether the claim is owned by an earlier object of the same name, with which it will go.
pub fn is_stale<K: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, owner: &K) -> bool {
    references(claim).any(|reference| names(reference, owner) && !is(reference, owner))
}

/// Whether another controller owns the claim, so that the policy has no say.
pub fn has_other_controller(
    policy: Policy,
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
) -> bool {
    (policy.when_deleted || policy.when_scaled)
        && references(claim).any(|reference| {
            let ours = is(reference, set) || is(reference, pod);
            let named = names(reference, set) || names(reference, pod);
            !ours && (named || reference.controller == Some(true))
        })
}

/// The owners a claim should have, where they are others. `is_wanted` is whether the set wants the pod.
pub fn owners(
    policy: Policy,
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    is_wanted: bool,
) -> Option<Vec<OwnerReference>> {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return None;
    }
    let ours = |reference: &&OwnerReference| names(reference, set) || names(reference, pod);
    let mut owners: Vec<_> = references(claim).filter(|reference| !ours(reference)).cloned().collect();
    let mut wanted = Vec::new();
    if !has_other_controller(policy, claim, set, pod) {
        let with_pod = policy.when_scaled && !is_wanted;
        if with_pod {
            wanted.push(controller_ref(pod));
        } else if policy.when_deleted {
            wanted.push(controller_ref(set));
        }
    }
    let same = |have: &[&OwnerReference]| {
        have.len() == wanted.len()
            && have
                .iter()
                .zip(&wanted)
                .all(|(have, want)| have.uid == want.uid && have.controller == Some(true))
    };
    if same(&references(claim).filter(ours).collect::<Vec<_>>()) {
        return None;
    }
    owners.extend(wanted);
    Some(owners)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_belongs_to_whoever_takes_it_along() {
        let set: StatefulSet =
            serde_json::from_value(json!({ "metadata": { "name": "web", "uid": "s" } })).unwrap();
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "web-0", "uid": "p" } })).unwrap();
        let (of_set, of_pod) = (controller_ref(&set), controller_ref(&pod));
        let claim = |owners: &[&OwnerReference]| -> PersistentVolumeClaim {
            serde_json::from_value(json!({ "metadata": { "ownerReferences": owners } })).unwrap()
        };
        let check = |(when_deleted, when_scaled),
                     is_wanted,
                     have: &[&OwnerReference],
                     want: Option<&[&OwnerReference]>| {
            let policy = Policy { when_deleted, when_scaled };
            let owners = owners(policy, &claim(have), &set, &pod, is_wanted);
            let want = want.map(|want| want.iter().map(|owner| (*owner).clone()).collect::<Vec<_>>());
            assert_eq!(owners, want, "{policy:?} {is_wanted} {have:?}");
        };
        check((false, false), true, &[], None);
        check((false, false), true, &[&of_set], Some(&[]));
        check((true, false), true, &[], Some(&[&of_set]));
        check((true, false), false, &[&of_set], None);
        check((false, true), true, &[&of_pod], Some(&[]));
        check((false, true), false, &[], Some(&[&of_pod]));
        check((true, true), false, &[&of_set], Some(&[&of_pod]));
        check((true, true), true, &[&of_pod], Some(&[&of_set]));
        let other = OwnerReference { uid: "x".into(), name: "x".into(), ..of_set.clone() };
        check((true, true), true, &[&other], None);
        check((true, true), true, &[&other, &of_set], Some(&[&other]));
        let earlier = OwnerReference { uid: "before".into(), ..of_pod.clone() };
        check((true, true), true, &[&earlier], None);
    }
}
