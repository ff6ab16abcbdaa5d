//! Claims and volumes in use are not taken away: their finalizers go once nobody uses them any more.
//! <https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>

use std::sync::Arc;

use coxswain_client::{Change, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::context::{Context, ignore};

const OF_CLAIMS: &str = "kubernetes.io/pvc-protection";
const OF_VOLUMES: &str = "kubernetes.io/pv-protection";
const OF_CLASSES: &str = "kubernetes.io/vac-protection";

/// Runs the protection of claims.
pub async fn run_claims(context: &Context) {
    let client = context.client();
    let (claims, pods): (Informer<PersistentVolumeClaim>, Informer<Pod>) =
        (context.informer(), context.pods());
    tokio::join!(claims.synced(), pods.synced());
    let queue = WorkQueue::new();
    claims.feed(&queue, |change| {
        let claim = change.object();
        claim.metadata.deletion_timestamp.is_some().then(|| ObjectKey::of(&**claim))
    });
    pods.feed(&queue, |change| {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        claims_of(pod)
            .into_iter()
            .map(move |name| ObjectKey::new(namespace.clone(), name))
            .collect::<Vec<_>>()
    });
    let reconcile = |key: ObjectKey| {
        let (client, claims, pods) = (client.clone(), claims.clone(), pods.clone());
        async move {
            let Some(claim) = claims.get(&key) else { return Ok(Requeue::OnChange) };
            let used = pods.list().iter().any(|pod| {
                pod.namespace().as_deref() == Some(&key.namespace)
                    && is_scheduled(pod)
                    && claims_of(pod).contains(&key.name)
            });
            if used {
                return Ok(Requeue::OnChange);
            }
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.namespace);
            release(&api, &*claim, OF_CLAIMS).await
        }
    };
    context.drive("pvc-protection", queue, 1, reconcile).await;
}

/// Runs the protection of volumes.
pub async fn run_volumes(context: &Context) {
    let client = context.client();
    let volumes: Informer<PersistentVolume> = context.informer();
    volumes.synced().await;
    let queue = WorkQueue::new();
    volumes.feed(&queue, |change| {
        let volume = change.object();
        volume.metadata.deletion_timestamp.is_some().then(|| ObjectKey::of(&**volume))
    });
    let reconcile = |key: ObjectKey| {
        let (client, volumes) = (client.clone(), volumes.clone());
        async move {
            let Some(volume) = volumes.get(&key) else { return Ok(Requeue::OnChange) };
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Bound") {
                return Ok(Requeue::OnChange);
            }
            release(&Api::<PersistentVolume>::all(client), &*volume, OF_VOLUMES).await
        }
    };
    context.drive("pv-protection", queue, 1, reconcile).await;
}

/// Runs the protection of volume attributes classes (KEP-3751): claims and volumes name the classes they use.
pub async fn run_classes(context: &Context) {
    let client = context.client();
    let classes: Informer<VolumeAttributesClass> = context.informer();
    let claims: Informer<PersistentVolumeClaim> = context.informer();
    let volumes: Informer<PersistentVolume> = context.informer();
    tokio::join!(classes.synced(), claims.synced(), volumes.synced());
    let queue = WorkQueue::new();
    classes.feed(&queue, |change| {
        let class = change.object();
        class.metadata.deletion_timestamp.is_some().then(|| ObjectKey::of(&**class))
    });
    claims.feed(&queue, |change| {
        let names = versions(change).flat_map(|claim| classes_of(claim));
        names.map(|name| ObjectKey::cluster(&name)).collect::<Vec<_>>()
    });
    volumes.feed(&queue, |change| {
        let names = versions(change).filter_map(|volume| class_of(volume));
        names.map(|name| ObjectKey::cluster(&name)).collect::<Vec<_>>()
    });
    let reconcile = |key: ObjectKey| {
        let (client, classes) = (client.clone(), classes.clone());
        let (claims, volumes) = (claims.clone(), volumes.clone());
        async move {
            let Some(class) = classes.get(&key) else { return Ok(Requeue::OnChange) };
            let used = claims.list().iter().any(|claim| classes_of(claim).contains(&key.name))
                || volumes.list().iter().any(|volume| class_of(volume).as_ref() == Some(&key.name));
            if used {
                return Ok(Requeue::OnChange);
            }
            release(&Api::<VolumeAttributesClass>::all(client), &*class, OF_CLASSES).await
        }
    };
    context.drive("vac-protection", queue, 1, reconcile).await;
}

/// An object as it is, and as it was: what it does not name any more may be free now.
fn versions<K>(change: &Change<K>) -> impl Iterator<Item = &Arc<K>> {
    let old = if let Change::Updated { old, .. } = change { Some(old) } else { None };
    std::iter::once(change.object()).chain(old)
}

/// The classes a claim wants, has, or is being given.
fn classes_of(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let modified = status.and_then(|status| status.modify_volume_status.as_ref());
    let names = [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone()),
        status.and_then(|status| status.current_volume_attributes_class_name.clone()),
        modified.and_then(|modified| modified.target_volume_attributes_class_name.clone()),
    ];
    names.into_iter().flatten().collect()
}

fn class_of(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.volume_attributes_class_name.clone()
}

/// A pod that no node has yet is not let start with a claim that is going away.
fn is_scheduled(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|node| !node.is_empty()))
}

/// The claims that a pod mounts; ephemeral ones are named after the pod and the volume.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    });
    names.collect()
}

/// Takes a finalizer away from an object that is being deleted.
async fn release<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<Requeue, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let held = object.finalizers().iter().any(|name| name == finalizer);
    if !held || object.meta().deletion_timestamp.is_none() {
        return Ok(Requeue::OnChange);
    }
    let left: Vec<&String> = object.finalizers().iter().filter(|name| *name != finalizer).collect();
    let patch = json!({ "metadata": { "uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": left } });
    let patched = api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
    // After a conflict the newer version is on its way.
    patched.map(drop).or_else(|error| ignore(error, &[404, 409])).map(|()| Requeue::OnChange)
}
