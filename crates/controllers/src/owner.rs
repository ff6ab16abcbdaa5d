//! Controller references: which object manages which (API convention "controller owner reference").

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

/// The reference that makes `owner` the controller of another object.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller of an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object of this uid controls the other.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// What a controller does about an object that its selector or its reference names.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Keep,
    /// Nobody's, and selected: make it ours.
    Adopt,
    /// Ours, but no longer selected: let it go.
    Release,
    /// Not ours.
    Ignore,
}

/// Decides about one object; `selected` is whether the owner's selector matches it.
pub fn claim(meta: &ObjectMeta, uid: &str, owner_is_deleting: bool, selected: bool) -> Claim {
    match controller_of(meta) {
        Some(owner) if owner.uid != uid => Claim::Ignore,
        Some(_) if selected => Claim::Keep,
        Some(_) if owner_is_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if selected && !owner_is_deleting && meta.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The merge patch that adds a controller reference, guarded by the uid.
pub fn adopt_patch(meta: &ObjectMeta, owner: &OwnerReference) -> Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.push(owner.clone());
    json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners } })
}

/// The merge patch that takes the reference to an owner away.
pub fn release_patch(meta: &ObjectMeta, uid: &str) -> Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != uid);
    json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners } })
}

/// An object's finalizers with one more, or without it.
pub fn with_finalizer(meta: &ObjectMeta, finalizer: &str, wanted: bool) -> Vec<String> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    finalizers.retain(|other| other != finalizer);
    if wanted {
        finalizers.push(finalizer.to_owned());
    }
    finalizers
}

/// Whether a pod still counts: it has not ended and is not going away.
pub fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none()
}
