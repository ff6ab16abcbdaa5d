//! Classes: what a RuntimeClass adds to its pods, and the default classes of claims and ingresses.

use std::sync::Arc;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};

use super::Admission;
use crate::object::Meta;
use crate::sent;

const DEFAULT_STORAGE_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// The RuntimeClass that a pod names.
fn runtime_class_of(admission: &Admission, pod: &Value) -> Result<Option<Arc<Value>>, Status> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else { return Ok(None) };
    let class = admission.server.look_up("node.k8s.io", "runtimeclasses", "", name);
    let missing = || admission.forbidden(pod, &format!("pod rejected: RuntimeClass \"{name}\" not found"));
    class.map(Some).ok_or_else(missing)
}

/// RuntimeClass: its overhead and its scheduling become the pod's.
pub fn runtime_class(admission: &Admission, pod: &mut Value) -> Result<(), Status> {
    let Some(class) = runtime_class_of(admission, pod)? else { return Ok(()) };
    if let Some(overhead) = class["overhead"]["podFixed"].as_object() {
        let set = pod["spec"]["overhead"].as_object().filter(|set| !set.is_empty());
        if set.is_some_and(|set| set != overhead) {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(admission.forbidden(pod, why));
        }
        pod["spec"]["overhead"] = overhead.clone().into();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let own = &pod["spec"]["nodeSelector"].get(key).cloned();
        if let Some(own) = own.as_ref().filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            );
            return Err(admission.forbidden(pod, &why));
        }
        if !pod["spec"]["nodeSelector"].is_object() {
            pod["spec"]["nodeSelector"] = json!({});
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let added = scheduling["tolerations"].as_array().cloned().unwrap_or_default();
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for toleration in added {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    if !tolerations.is_empty() {
        pod["spec"]["tolerations"] = tolerations.into();
    }
    Ok(())
}

/// RuntimeClass: an overhead comes from a class.
pub fn overhead(admission: &Admission, pod: &Value, _: Option<&Value>) -> Result<(), Status> {
    let class = runtime_class_of(admission, pod)?.unwrap_or_default();
    let (given, set) = (&class["overhead"]["podFixed"], &pod["spec"]["overhead"]);
    // An empty one is set too.
    let is_set = !set.is_null() || sent::is_empty_at("/spec/overhead");
    match (given.is_null(), is_set) {
        (true, true) => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            Err(admission.forbidden(pod, why))
        }
        (false, _) if given != set => {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            Err(admission.forbidden(pod, why))
        }
        _ => Ok(()),
    }
}

/// The newest of the classes that are marked as the default.
fn default_class(admission: &Admission, group: &str, plural: &str, mark: &str) -> Option<String> {
    let classes = admission.server.look_up_all(group, plural, "");
    let marked = classes.iter().filter(|class| class["metadata"]["annotations"][mark] == "true");
    // Of two that are equally new, the first by name.
    let newest = marked.max_by(|a, b| {
        a.meta_str("creationTimestamp").cmp(b.meta_str("creationTimestamp")).then(b.name().cmp(a.name()))
    });
    newest.map(|class| class.name().to_owned())
}

/// DefaultStorageClass: a claim that names no class gets the default one.
pub fn default_storage_class(admission: &Admission, claim: &mut Value) -> Result<(), Status> {
    let annotated = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].is_string();
    if annotated || claim["spec"]["storageClassName"].is_string() || !claim["spec"].is_object() {
        return Ok(());
    }
    if let Some(name) = default_class(admission, "storage.k8s.io", "storageclasses", DEFAULT_STORAGE_CLASS) {
        claim["spec"]["storageClassName"] = name.into();
    }
    Ok(())
}

/// DefaultIngressClass: an ingress that names no class gets the default one.
pub fn default_ingress_class(admission: &Admission, ingress: &mut Value) -> Result<(), Status> {
    let annotated = ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_string();
    if annotated || ingress["spec"]["ingressClassName"].is_string() || !ingress["spec"].is_object() {
        return Ok(());
    }
    if let Some(name) = default_class(admission, "networking.k8s.io", "ingressclasses", DEFAULT_INGRESS_CLASS)
    {
        ingress["spec"]["ingressClassName"] = name.into();
    }
    Ok(())
}

/// PersistentVolumeClaimResize: a claim grows only where its class lets it.
pub fn resize(admission: &Admission, claim: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(old) = old else { return Ok(()) };
    let asked = |claim: &Value| {
        coxswain_api::resources::list(&claim["spec"]["resources"], "requests").remove("storage")
    };
    if asked(claim) <= asked(old) || old["status"]["phase"] != "Bound" {
        return Ok(());
    }
    let name = old["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = admission.server.look_up("storage.k8s.io", "storageclasses", "", name);
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(admission.forbidden(claim, why))
}
