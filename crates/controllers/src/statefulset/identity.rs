//! What makes a pod of a StatefulSet that pod: its name, its labels, its volumes; and the claims behind them.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;

use super::plan::parse_name;
use crate::history::REVISION_LABEL;
use crate::podcontrol::pod_of;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name of the pod of an ordinal.
pub fn pod_name(set: &StatefulSet, ordinal: usize) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// Whether a pod has a name such as the set gives.
pub fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parse_name(&pod.name_any()).is_some_and(|(parent, _)| parent == set.name_any())
}

/// The name of a claim of the pod of an ordinal.
pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: usize) -> String {
    format!("{}-{}-{ordinal}", template.name_any(), set.name_any())
}

fn templates(spec: &StatefulSetSpec) -> impl Iterator<Item = &PersistentVolumeClaim> {
    spec.volume_claim_templates.iter().flatten()
}

/// The claims of the pod of an ordinal.
pub fn claims<'a>(
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    ordinal: usize,
) -> impl Iterator<Item = PersistentVolumeClaim> + 'a {
    templates(spec).map(move |template| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.namespace();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        claim
    })
}

/// The pod of an ordinal, made from a template of a revision.
pub fn build(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: PodTemplateSpec,
    revision: &str,
    ordinal: usize,
) -> Pod {
    let mut pod = pod_of(set, template);
    set_identity(set, ordinal, &mut pod);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_LABEL.into(), revision.into());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = pod.metadata.name.clone();
    pod_spec.subdomain = spec.service_name.clone().filter(|name| !name.is_empty());
    set_storage(set, spec, ordinal, &mut pod);
    pod
}

fn set_identity(set: &StatefulSet, ordinal: usize, pod: &mut Pod) {
    let name = pod_name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    pod.metadata.name = Some(name);
    pod.metadata.namespace = set.namespace();
}

fn set_storage(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: usize, pod: &mut Pod) {
    let volume = |template: &PersistentVolumeClaim| Volume {
        name: template.name_any(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    };
    let mut volumes: Vec<Volume> = templates(spec).map(volume).collect();
    let pod_spec = pod.spec.get_or_insert_default();
    let others = pod_spec.volumes.take().unwrap_or_default().into_iter();
    let own = |volume: &Volume| templates(spec).any(|template| template.name_any() == volume.name);
    volumes.extend(others.filter(|volume| !own(volume)));
    pod_spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
}

/// The pod as it should be, where labels or volumes are not the set's.
pub fn mended(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: usize, pod: &Pod) -> Option<Pod> {
    let labels = pod.metadata.labels.as_ref();
    let named = labels.and_then(|labels| labels.get(POD_NAME)) == pod.metadata.name.as_ref();
    let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let stored = templates(spec).all(|template| {
        let name = claim_name(set, template, ordinal);
        volumes().any(|volume| {
            volume.name == template.name_any()
                && volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == name)
        })
    });
    if named && stored {
        return None;
    }
    let mut pod = pod.clone();
    if !named {
        set_identity(set, ordinal, &mut pod);
    }
    if !stored {
        set_storage(set, spec, ordinal, &mut pod);
    }
    Some(pod)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_has_a_name_a_host_and_claims_of_its_own() {
        let set: StatefulSet =
            serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "n" }, "spec": {
            "serviceName": "svc", "selector": { "matchLabels": { "app": "w" } },
            "volumeClaimTemplates": [{ "metadata": { "name": "data" } }],
            "template": { "metadata": { "labels": { "app": "w" } }, "spec": { "containers": [],
                "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "other", "emptyDir": {} }] } } } }))
            .unwrap();
        let spec = &set.spec;
        let pod = build(&set, spec, spec.template.clone(), "web-1", 7);
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!([&labels[POD_NAME], &labels[POD_INDEX], &labels[REVISION_LABEL]], ["web-7", "7", "web-1"]);
        let built = pod.spec.as_ref().unwrap();
        assert_eq!((built.hostname.as_deref(), built.subdomain.as_deref()), (Some("web-7"), Some("svc")));
        let volumes = built.volumes.as_ref().unwrap();
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-7");
        assert_eq!((volumes.len(), volumes[1].name.as_str()), (2, "other"));
        let claim = claims(&set, spec, 7).next().unwrap();
        assert_eq!(claim.name_any(), "data-web-7");
        assert_eq!(claim.metadata.labels.unwrap()["app"], "w");
        assert_eq!(mended(&set, spec, 7, &pod), None);
        let mut strange = pod.clone();
        strange.metadata.labels.as_mut().unwrap().remove(POD_NAME);
        assert_eq!(mended(&set, spec, 7, &strange), Some(pod));
    }
}
