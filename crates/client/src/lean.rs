//! What the caches keep of an object, and what a watch of everything's owners needs of it.

use std::any::{Any, TypeId};
use std::borrow::Cow;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ApiResource;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};

use crate::decode::{Members, Part, Parts};

/// Nothing in the process reads managed fields, and they are often half of an object. An update without them leaves them as they
/// are.
const METADATA: (&str, Part) = ("metadata", Part::Without(&[("managedFields", Part::Nothing)]));

/// What only a pod's kubelet reads of a container.
const CONTAINERS: Part = Part::Without(&[
    ("args", Part::Nothing),
    ("command", Part::Nothing),
    ("env", Part::Nothing),
    ("envFrom", Part::Nothing),
    ("image", Part::Nothing),
    ("imagePullPolicy", Part::Nothing),
    ("lifecycle", Part::Nothing),
    ("livenessProbe", Part::Nothing),
    ("readinessProbe", Part::Nothing),
    ("securityContext", Part::Nothing),
    ("startupProbe", Part::Nothing),
    ("terminationMessagePath", Part::Nothing),
    ("terminationMessagePolicy", Part::Nothing),
    ("volumeDevices", Part::Nothing),
    ("volumeMounts", Part::Nothing),
    ("workingDir", Part::Nothing),
]);

const CONTAINER_STATUSES: Part = Part::Without(&[
    ("allocatedResources", Part::Nothing),
    ("allocatedResourcesStatus", Part::Nothing),
    ("containerID", Part::Nothing),
    ("image", Part::Nothing),
    ("imageID", Part::Nothing),
    ("resources", Part::Nothing),
    ("user", Part::Nothing),
    ("volumeMounts", Part::Nothing),
]);

const POD: Members = &[
    METADATA,
    (
        "spec",
        Part::Without(&[
            ("containers", CONTAINERS),
            ("dnsConfig", Part::Nothing),
            ("ephemeralContainers", Part::Nothing),
            ("hostAliases", Part::Nothing),
            ("imagePullSecrets", Part::Nothing),
            ("initContainers", CONTAINERS),
            ("securityContext", Part::Nothing),
            ("volumes", Part::Only(&["name", "persistentVolumeClaim", "ephemeral"])),
        ]),
    ),
    (
        "status",
        Part::Without(&[
            ("containerStatuses", CONTAINER_STATUSES),
            ("ephemeralContainerStatuses", Part::Nothing),
            ("initContainerStatuses", CONTAINER_STATUSES),
        ]),
    ),
];

/// An object as a cache keeps it: without managed fields and, unless `WHOLE`, a pod without what only its kubelet reads.
#[derive(Clone, Debug)]
pub(crate) struct Cached<K, const WHOLE: bool>(pub K);

impl<'de, K: Resource<DynamicType = ()> + DeserializeOwned + 'static, const WHOLE: bool> Deserialize<'de>
    for Cached<K, WHOLE>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Of pods there are most, and to skip parts costs a decoder of its own for each kind.
        if !WHOLE && TypeId::of::<K>() == TypeId::of::<Pod>() {
            let mut pod = Some(Pod::deserialize(Parts::new(deserializer, Part::Without(POD)))?);
            pod.iter_mut().for_each(tighten);
            let pod = (&mut pod as &mut dyn Any).downcast_mut().and_then(Option::take);
            return Ok(Self(pod.expect("the types are the same")));
        }
        let mut object = K::deserialize(deserializer)?;
        object.meta_mut().managed_fields = None;
        Ok(Self(object))
    }
}

impl<K: Resource<DynamicType = ()>, const WHOLE: bool> Resource for Cached<K, WHOLE> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// Of the annotations and volumes, leaves those that controllers know; takes no more room than there are elements.
fn tighten(pod: &mut Pod) {
    fn fit<T>(list: &mut Option<Vec<T>>) {
        list.as_mut().map(Vec::shrink_to_fit);
    }
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| name.contains("kubernetes.io/"));
    }
    pod.metadata.annotations.take_if(|annotations| annotations.is_empty());
    fit(&mut pod.metadata.owner_references);
    if let Some(spec) = &mut pod.spec {
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
        }
        spec.volumes.take_if(|volumes| volumes.is_empty());
        fit(&mut spec.volumes);
        fit(&mut spec.tolerations);
        spec.containers.shrink_to_fit();
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            fit(&mut container.ports);
        }
    }
    if let Some(status) = &mut pod.status {
        fit(&mut status.conditions);
        fit(&mut status.container_statuses);
        fit(&mut status.init_container_statuses);
    }
}

/// What is known of an object without its content: its place, its uid and version, its owners and what holds it.
#[derive(Clone, Debug)]
pub struct Outline(ObjectMeta);

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Object {
            #[serde(default, deserialize_with = "outline")]
            metadata: ObjectMeta,
        }
        fn outline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
            const OUTLINE: Part = Part::Only(&[
                "deletionTimestamp",
                "finalizers",
                "name",
                "namespace",
                "ownerReferences",
                "resourceVersion",
                "uid",
            ]);
            ObjectMeta::deserialize(Parts::new(deserializer, OUTLINE))
        }
        Object::deserialize(deserializer).map(|object| Self(object.metadata))
    }
}

impl Resource for Outline {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    /// The server is asked for metadata only.
    fn metadata_api() -> bool {
        true
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cached_pod_lacks_what_only_its_kubelet_reads() {
        let pod = |annotations, volumes, more: serde_json::Value| {
            let mut container = json!({ "name": "c", "ports": [{ "containerPort": 80 }], "resources": {} });
            container.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            json!({ "metadata": { "name": "a", "annotations": annotations },
                "spec": { "containers": [container], "volumes": volumes }, "status": { "phase": "Running" } })
        };
        let text = pod(
            json!({ "controller.kubernetes.io/pod-deletion-cost": "1", "note": "long" }),
            json!([{ "name": "d", "emptyDir": {} }, { "name": "v", "persistentVolumeClaim": { "claimName": "v" } }]),
            json!({ "env": [{ "name": "A" }], "image": "i", "readinessProbe": { "periodSeconds": 1 } }),
        )
        .to_string();
        let left = pod(
            json!({ "controller.kubernetes.io/pod-deletion-cost": "1" }),
            json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "v" } }]),
            json!({}),
        );
        let Cached(lean) = serde_json::from_str::<Cached<Pod, false>>(&text).unwrap();
        assert_eq!(lean, serde_json::from_value(left).unwrap());
        let Cached(whole) = serde_json::from_str::<Cached<Pod, true>>(&text).unwrap();
        assert_eq!(whole, serde_json::from_str(&text).unwrap());
    }

    #[test]
    fn an_outline_has_owners_and_no_managed_fields() {
        let owner =
            json!({ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true });
        let mut object = json!({ "kind": "Pod", "metadata": { "name": "a", "namespace": "b", "uid": "c", "resourceVersion": "7",
            "ownerReferences": [owner], "finalizers": ["f"], "deletionTimestamp": "2026-01-02T03:04:05Z" } });
        let expected: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap();
        object["metadata"]["labels"] = json!({ "l": "m" });
        object["metadata"]["managedFields"] = json!([{ "manager": "x", "fieldsV1": { "f:spec": {} } }]);
        object["spec"] = json!({ "containers": [] });
        let outline: Outline = serde_json::from_str(&object.to_string()).unwrap();
        assert_eq!(outline.meta(), &expected);
    }
}
