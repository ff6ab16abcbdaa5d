//! NodeRestriction: a kubelet writes its own Node and what belongs to the pods bound to it.
//! <https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction>

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::{Admission, Operation};
use crate::authz::Attributes;
use crate::authz::node::{Kind, named_by_pod, node_of};
use crate::object::Meta;

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels of the namespaces of Kubernetes that a kubelet may set on its node.
const KUBELET_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

type Verdict = Result<(), String>;

/// The plugin: what others than kubelets write passes.
pub fn check(admission: &Admission, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(node) = node_of(admission.user) else { return Ok(()) };
    let kind = (admission.kind.group(), admission.kind.plural(), admission.subresource);
    let create = admission.operation == Operation::Create;
    let verdict = match kind {
        ("", "pods", "") => pod(admission, node, object)?,
        ("", "pods", "status") => pod_status(node, object, old.unwrap_or(&Value::Null)),
        ("", "pods", "eviction") => evicted(admission, node)?,
        ("", "pods", other) => {
            Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("", "nodes", _) => self::node(admission, node, object, old.unwrap_or(&Value::Null)),
        ("", "persistentvolumeclaims", "status") => claim_status(node, object, old.unwrap_or(&Value::Null)),
        ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_owned()),
        ("", "serviceaccounts", "token") if create => return token(admission, node, object),
        ("coordination.k8s.io", "leases", _) if object.namespace() != "kube-node-lease" => {
            Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned())
        }
        ("coordination.k8s.io", "leases", _) if object.name() != node => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("storage.k8s.io", "csinodes", _) if object.name() != node => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        ("resource.k8s.io", "resourceslices", _) => slice(admission.operation, node, object),
        ("certificates.k8s.io", "certificatesigningrequests", "") if create => signing_request(node, object),
        _ => Ok(()),
    };
    verdict.map_err(|why| admission.forbidden(object, &why))
}

fn pod(admission: &Admission, node: &str, pod: &Value) -> Result<Verdict, Status> {
    Ok(match admission.operation {
        Operation::Create => {
            let known = admission.server.read("", "nodes", "", node);
            let known = known.ok_or_else(|| Status::not_found("", "nodes", node))?;
            mirror_pod(node, known.meta_str("uid"), pod)
        }
        Operation::Delete if pod["spec"]["nodeName"] == node => Ok(()),
        Operation::Delete => {
            Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        Operation::Update => Err(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        )),
    })
}

/// A kubelet makes mirror pods of itself, which name no other object.
fn mirror_pod(node: &str, node_uid: &str, pod: &Value) -> Verdict {
    let refused = |why: &str| Err(format!("node {node:?} can only create pods with {why}"));
    if !pod.meta()["annotations"][MIRROR].is_string() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return refused("spec.nodeName set to itself");
    }
    let owners = pod.meta()["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let owner = match owners {
        [] => return refused("an owner reference set to itself"),
        [owner] => owner,
        _ => return refused("a single owner reference set to itself"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return refused("an owner reference set to itself");
    }
    if owner["controller"] != true {
        return refused("a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    if owner["uid"] != node_uid {
        let given = owner["uid"].as_str().unwrap_or_default();
        return Err(format!("node {node} UID mismatch: expected {given} got {node_uid}"));
    }
    match named_by(pod) {
        Some(resource) => Err(format!("node {node:?} can not create pods that reference {resource}")),
        None => Ok(()),
    }
}

/// The first kind of object that a pod names.
fn named_by(pod: &Value) -> Option<&'static str> {
    let named = named_by_pod(pod);
    let order = [
        (Kind::Account, "serviceaccounts"),
        (Kind::Secret, "secrets"),
        (Kind::ConfigMap, "configmaps"),
        (Kind::ResourceClaim, "resourceclaims"),
        (Kind::Claim, "persistentvolumeclaims"),
    ];
    if let Some((_, resource)) = order.iter().find(|(kind, _)| named.iter().any(|other| other.kind == *kind))
    {
        return Some(resource);
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().find_map(|volume| {
        let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
        let projected = sources.into_iter().find_map(|source| {
            [
                ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
                ("clusterTrustBundle", "clustertrustbundles"),
                ("podCertificate", "podcertificates"),
            ]
            .iter()
            .find(|(field, _)| source[*field].is_object())
            .map(|(_, resource)| *resource)
        });
        let direct =
            [("csi", "csidrivers (via CSI volumes)"), ("glusterfs", "endpoints (via glusterFS volumes)")]
                .iter()
                .find(|(field, _)| volume[*field].is_object())
                .map(|(_, resource)| *resource);
        let claims = pod["spec"]["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty());
        projected.or(direct).or(claims.then_some("resourceclaims"))
    })
}

fn pod_status(node: &str, new: &Value, old: &Value) -> Verdict {
    if old["spec"]["nodeName"] != node {
        return Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if new.meta()["labels"] != old.meta()["labels"] {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    if new["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
        return Err(format!("node {node:?} cannot update resource claim statues"));
    }
    if new["status"]["extendedResourceClaimStatus"] != old["status"]["extendedResourceClaimStatus"] {
        return Err(format!("node {node:?} cannot update extended resource claim status"));
    }
    Ok(())
}

fn evicted(admission: &Admission, node: &str) -> Result<Verdict, Status> {
    let (namespace, name) = admission.target;
    let pod = admission.server.read("", "pods", namespace, name);
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
    Ok(match pod["spec"]["nodeName"] == node {
        true => Ok(()),
        false => Err(format!("node {node} can only evict pods with spec.nodeName set to itself")),
    })
}

fn node(admission: &Admission, node: &str, new: &Value, old: &Value) -> Verdict {
    if new.name() != node {
        return Err(format!("node {node:?} is not allowed to modify node {:?}", new.name()));
    }
    let labels = |node: &Value| node.meta()["labels"].as_object().cloned().unwrap_or_default();
    if admission.operation == Operation::Create {
        let refused = forbidden_labels(&labels(new), &Map::new());
        return match refused.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                refused.join(", ")
            )),
        };
    }
    if new["spec"]["taints"] != old["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if new.meta()["ownerReferences"] != old.meta()["ownerReferences"] {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    match forbidden_labels(&labels(new), &labels(old)) {
        refused if refused.is_empty() => Ok(()),
        refused => Err(format!("is not allowed to modify labels: {}", refused.join(", "))),
    }
}

/// Labels that differ and are not a kubelet's to set, in their order.
fn forbidden_labels(new: &Map, old: &Map) -> Vec<String> {
    let mut changed: Vec<&str> =
        new.keys().chain(old.keys()).filter(|key| new.get(key) != old.get(key)).collect();
    changed.sort();
    changed.dedup();
    changed.into_iter().filter(|key| !is_kubelets(key)).map(str::to_owned).collect()
}

fn is_kubelets(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let below = |domain: &str| {
        namespace.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let reserved = below("kubernetes.io") || below("k8s.io");
    !reserved
        || KUBELET_LABELS.contains(&label)
        || below("kubelet.kubernetes.io")
        || below("node.kubernetes.io")
}

/// Of a claim's status, a kubelet reports how large the volume is and how its resizing goes.
fn claim_status(node: &str, new: &Value, old: &Value) -> Verdict {
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        if let Some(status) = claim["status"].as_object_mut() {
            for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
                status.remove(field);
            }
        }
        claim.meta_mut().remove("resourceVersion");
        claim.meta_mut().remove("managedFields");
        claim
    };
    match rest(new) == rest(old) {
        true => Ok(()),
        false => Err(format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        )),
    }
}

fn slice(operation: Operation, node: &str, slice: &Value) -> Verdict {
    let own = slice["spec"]["nodeName"] == node;
    match operation {
        Operation::Create if !own => {
            Err("can only create ResourceSlice with the same NodeName as the requesting node".to_owned())
        }
        Operation::Delete if !own => {
            Err("can only delete ResourceSlice with the same NodeName as the requesting node".to_owned())
        }
        _ => Ok(()),
    }
}

fn signing_request(node: &str, request: &Value) -> Verdict {
    const SIGNERS: [&str; 2] =
        ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];
    if !SIGNERS.iter().any(|signer| request["spec"]["signerName"] == *signer) {
        return Ok(());
    }
    let body = BASE64_STANDARD.decode(request["spec"]["request"].as_str().unwrap_or_default());
    let unreadable = || "unable to parse csr".to_owned();
    let body = body.map_err(|_| unreadable())?;
    let (_, pem) = parse_x509_pem(&body).map_err(|_| unreadable())?;
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|_| unreadable())?;
    let wanted = format!("system:node:{node}");
    let mut names = parsed.certification_request_info.subject.iter_common_name();
    match names.next().and_then(|name| name.as_str().ok()) == Some(&wanted) {
        true => Ok(()),
        false => Err(format!("can only create a node CSR with CN={wanted}")),
    }
}

/// A token that a kubelet asks for is bound to a pod of its node, and meant for whom the pod says.
fn token(admission: &Admission, node: &str, request: &Value) -> Result<(), Status> {
    let (namespace, account) = admission.target;
    let refused =
        |why: &str| Err(Status::forbidden(admission.kind.group(), admission.kind.plural(), account, why));
    let bound = &request["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return refused("node requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return refused("node requested token with a pod binding without a uid");
    }
    let pod = admission.server.read("", "pods", namespace, text("name"));
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", text("name")))?;
    if text("uid") != pod.meta_str("uid") {
        return refused(&format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return refused("node requested token bound to a pod scheduled on a different node");
    }
    let audiences = request["spec"]["audiences"].as_array().map_or(&[][..], Vec::as_slice);
    let audience = match audiences {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return refused("node may only request 0 or 1 audiences"),
    };
    if names_audience(admission, &pod, audience) {
        return Ok(());
    }
    let asked = Attributes {
        verb: "request-serviceaccounts-token-audience",
        resource: audience,
        name: account,
        namespace,
        ..Attributes::default()
    };
    if admission.server.decide(admission.user, &asked).allowed {
        return Ok(());
    }
    refused(&format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        admission.user.name
    ))
}

/// Whether a volume of the pod asks for tokens for an audience.
fn names_audience(admission: &Admission, pod: &Value, audience: &str) -> bool {
    let server = admission.server;
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().any(|volume| {
        let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
        let mut tokens = sources.into_iter().map(|source| &source["serviceAccountToken"]);
        if tokens.any(|token| token.is_object() && token["audience"].as_str().unwrap_or_default() == audience)
        {
            return true;
        }
        let claim = match volume["ephemeral"].is_object() {
            true => Some(format!("{}-{}", pod.name(), volume["name"].as_str().unwrap_or_default())),
            false => volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned),
        };
        let bound = claim.and_then(|claim| {
            let claim = server.read("", "persistentvolumeclaims", pod.namespace(), &claim)?;
            server.read("", "persistentvolumes", "", claim["spec"]["volumeName"].as_str()?)
        });
        let source = bound.as_ref().map_or(&volume["csi"], |bound| &bound["spec"]["csi"]);
        let driver =
            source["driver"].as_str().and_then(|name| server.read("storage.k8s.io", "csidrivers", "", name));
        driver.is_some_and(|driver| {
            let requests = driver["spec"]["tokenRequests"].as_array().into_iter().flatten();
            requests.into_iter().any(|request| request["audience"].as_str().unwrap_or_default() == audience)
        })
    })
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn kubelets_set_their_own_labels() {
        for (label, own) in [
            ("example.com/any", true),
            ("plain", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/anything", true),
            ("a.kubelet.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("my.node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("foo.k8s.io/x", false),
            ("notkubernetes.io/x", true),
        ] {
            assert_eq!(is_kubelets(label), own, "{label}");
        }
        let labels = |value: Value| value.as_object().cloned().unwrap_or_default();
        let (new, old) = (
            labels(json!({"a": "1", "x.k8s.io/b": "2"})),
            labels(json!({"x.k8s.io/b": "1", "y.k8s.io/c": "1"})),
        );
        assert_eq!(forbidden_labels(&new, &old), ["x.k8s.io/b", "y.k8s.io/c"]);
        assert!(forbidden_labels(&old, &old).is_empty());
    }

    #[test]
    fn mirror_pods_are_owned_by_their_node_and_name_nothing() {
        let pod = json!({"metadata": {"name": "p", "annotations": {MIRROR: "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{}], "volumes": [{"name": "h", "hostPath": {"path": "/"}}]}});
        assert_eq!(mirror_pod("n", "u", &pod), Ok(()));
        let refused = |path: &str, value: Value| {
            let mut pod = pod.clone();
            *pod.pointer_mut(path).unwrap() = value;
            mirror_pod("n", "u", &pod).unwrap_err()
        };
        assert!(refused("/metadata/annotations", json!({})).contains("can only create mirror pods"));
        assert!(refused("/spec/nodeName", json!("m")).contains("spec.nodeName set to itself"));
        assert!(refused("/metadata/ownerReferences/0/uid", json!("v")).contains("UID mismatch"));
        assert!(refused("/metadata/ownerReferences/0/controller", json!(false)).contains("controller owner"));
        assert!(
            refused("/spec/volumes/0", json!({"secret": {"secretName": "s"}})).contains("reference secrets")
        );
        assert!(refused("/spec/volumes/0", json!({"csi": {"driver": "d"}})).contains("csidrivers"));
    }

    #[test]
    fn only_the_size_of_a_claim_is_reported() {
        let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": {"phase": "Bound", "capacity": {"storage": "1"}}});
        let mut grown = claim.clone();
        grown["status"]["capacity"]["storage"] = "2".into();
        assert_eq!(claim_status("n", &grown, &claim), Ok(()));
        grown["status"]["phase"] = "Lost".into();
        assert!(claim_status("n", &grown, &claim).is_err());
    }
}
