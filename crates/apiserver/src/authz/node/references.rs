//! Which objects a pod or a volume names: pure functions over documents.

use coxswain_meta::json::Value;

use crate::object::Meta;

/// Kinds that the node authorizer tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Secret.
    Secret,
    /// ConfigMap.
    ConfigMap,
    /// PersistentVolumeClaim.
    Claim,
    /// PersistentVolume.
    Volume,
    /// ResourceClaim.
    ResourceClaim,
    /// ServiceAccount.
    Account,
    /// Pod.
    Pod,
    /// VolumeAttachment.
    Attachment,
    /// ResourceSlice.
    Slice,
    /// PodCertificateRequest.
    PodCertificate,
}

/// An object that something names: its kind, and `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    path: String,
}

impl Reference {
    /// A reference to an object of a namespace.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, path: format!("{namespace}/{name}") }
    }

    /// Namespace and name.
    pub fn parts(&self) -> Option<(&str, &str)> {
        self.path.split_once('/')
    }
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

/// Everything a pod names. The kubelet made a mirror pod itself: what that names gives it nothing.
pub fn of_pod(pod: &Value) -> Vec<Reference> {
    if pod.meta()["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Vec::new();
    }
    named_by_pod(pod)
}

/// Everything a pod names, whoever made it.
pub fn named_by_pod(pod: &Value) -> Vec<Reference> {
    let (spec, namespace) = (&pod["spec"], pod.namespace());
    let mut found = Vec::new();
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push(Reference::new(kind, namespace, name));
        }
    };
    add(Kind::Account, &spec["serviceAccountName"]);
    list(spec, "imagePullSecrets").for_each(|secret| add(Kind::Secret, &secret["name"]));
    let containers =
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|of| list(spec, of));
    for container in containers {
        for source in list(container, "envFrom") {
            add(Kind::Secret, &source["secretRef"]["name"]);
            add(Kind::ConfigMap, &source["configMapRef"]["name"]);
        }
        for variable in list(container, "env") {
            add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
    }
    for volume in list(spec, "volumes") {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let name = volume["name"].as_str().unwrap_or_default();
            add(Kind::Claim, &format!("{}-{name}", pod.name()).into());
        }
        for source in volume.as_object().into_iter().flatten().map(|(_, source)| source) {
            secrets_of_source(source).into_iter().for_each(|name| add(Kind::Secret, name));
        }
        for source in list(&volume["projected"], "sources") {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
    }
    let statuses = &pod["status"]["resourceClaimStatuses"];
    for claim in list(spec, "resourceClaims") {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
        let made = statuses.as_array().into_iter().flatten().find(|status| status["name"] == claim["name"]);
        made.into_iter().for_each(|made| add(Kind::ResourceClaim, &made["resourceClaimName"]));
    }
    add(Kind::ResourceClaim, &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
    found
}

/// The names of secrets that the source of a volume mounts with.
fn secrets_of_source(source: &Value) -> [&Value; 3] {
    [&source["secretName"], &source["secretRef"]["name"], &source["nodePublishSecretRef"]["name"]]
}

/// The claim that a PersistentVolume is bound to.
pub fn claim_of(volume: &Value) -> Option<Reference> {
    let claim = &volume["spec"]["claimRef"];
    Some(Reference::new(Kind::Claim, claim["namespace"].as_str()?, claim["name"].as_str()?))
}

/// The secrets that a kubelet needs for a PersistentVolume; those without a namespace are in the claim's.
pub fn secrets_of_volume(volume: &Value, namespace: &str) -> Vec<Reference> {
    let mut found = Vec::new();
    for source in volume["spec"].as_object().into_iter().flatten().map(|(_, source)| source) {
        if let Some(name) = source["secretName"].as_str() {
            let home = source["secretNamespace"].as_str().unwrap_or(namespace);
            found.push(Reference::new(Kind::Secret, home, name));
        }
        for field in ["secretRef", "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
            if let Some(name) = source[field]["name"].as_str() {
                let home = source[field]["namespace"].as_str().unwrap_or(namespace);
                found.push(Reference::new(Kind::Secret, home, name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn a_pod_leads_to_what_it_names() {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {
            "serviceAccountName": "bot", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "all"}}]}],
            "volumes": [{"name": "s", "secret": {"secretName": "mounted"}}, {"name": "e", "ephemeral": {}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "part"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}}],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "p-gpu-x"}]}});
        let wanted = [
            (Kind::Account, "bot"),
            (Kind::Secret, "pull"),
            (Kind::Secret, "env"),
            (Kind::ConfigMap, "all"),
            (Kind::Secret, "mounted"),
            (Kind::Claim, "p-e"),
            (Kind::ConfigMap, "part"),
            (Kind::Secret, "csi"),
            (Kind::ResourceClaim, "p-gpu-x"),
        ];
        let found = of_pod(&pod);
        for (kind, name) in wanted {
            assert!(found.contains(&Reference::new(kind, "a", name)), "{kind:?} {name}");
        }
        assert_eq!(found.len(), wanted.len());
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        assert!(of_pod(&pod).is_empty());
    }

    #[test]
    fn a_volume_names_its_claim_and_its_secrets() {
        let volume = json!({"spec": {"claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodeStageSecretRef": {"name": "stage", "namespace": "b"}}, "azureFile": {"secretName": "own"}}});
        assert_eq!(claim_of(&volume), Some(Reference::new(Kind::Claim, "a", "c")));
        let found = secrets_of_volume(&volume, "a");
        assert!(found.contains(&Reference::new(Kind::Secret, "b", "stage")));
        assert!(found.contains(&Reference::new(Kind::Secret, "a", "own")));
    }
}
