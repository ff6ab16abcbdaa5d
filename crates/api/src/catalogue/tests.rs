//! The catalogue's rows under test: every kind can be written and read back.

use coxswain_meta::json::{Value, json};

use super::*;
use crate::schema;

const PEM: &[u8] = b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n";

/// The least a client has to write of each kind that wants more than metadata.
fn minimal(kind: &Kind) -> Value {
    let template = |policy: &str| {
        json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}})
    };
    let selector = json!({"matchLabels": {"a": "b"}});
    let rule =
        json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"]});
    let body = match kind.kind {
        "Binding" => json!({"target": {"name": "n"}}),
        "Pod" => json!({"spec": template("Always")["spec"]}),
        "PodTemplate" => json!({"template": template("Always")}),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => {
            json!({"spec": {"selector": selector, "template": template("Always")}})
        }
        "ReplicationController" => json!({"spec": {"template": template("Always")}}),
        "Job" => json!({"metadata": {"uid": "u"}, "spec": {"template": template("Never")}}),
        "CronJob" => {
            json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template("Never")}}}})
        }
        "Service" => json!({"spec": {"ports": [{"port": 80}]}}),
        "Event" if kind.group.is_empty() => json!({"involvedObject": {"namespace": "d"}}),
        "Event" => {
            json!({"eventTime": "2026-11-21T11:43:46.000000Z", "type": "Normal", "reason": "r", "action": "a",
            "reportingController": "c", "reportingInstance": "i", "regarding": {"namespace": "d"}})
        }
        "PersistentVolume" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/d"}}})
        }
        "PersistentVolumeClaim" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "HorizontalPodAutoscaler" => {
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}})
        }
        "CertificateSigningRequest" => {
            json!({"spec": {"request": crate::base64::encode(PEM), "signerName": "a.example/b", "usages": ["client auth"]}})
        }
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": []}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        "RuntimeClass" => json!({"handler": "h"}),
        "RoleBinding" | "ClusterRoleBinding" => json!({"roleRef": {"kind": "ClusterRole", "name": "r"}}),
        "ControllerRevision" => json!({"data": {"a": "b"}}),
        "StorageClass" => json!({"provisioner": "p"}),
        "CSIStorageCapacity" => json!({"storageClassName": "c"}),
        "VolumeAttributesClass" => json!({"driverName": "d", "parameters": {"a": "b"}}),
        "VolumeAttachment" => {
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}})
        }
        "IngressClass" => json!({"spec": {"controller": "a.example/b"}}),
        "IPAddress" => {
            json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "s"}}})
        }
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.0.0.0/24"]}}),
        "FlowSchema" => json!({"spec": {"priorityLevelConfiguration": {"name": "p"}}}),
        "PriorityLevelConfiguration" => {
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}})
        }
        "ResourceSlice" => {
            json!({"spec": {"driver": "d", "nodeName": "n", "pool": {"name": "p", "resourceSliceCount": 1}}})
        }
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "p"}}),
        "ValidatingAdmissionPolicy" => json!({"spec": {"matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "true"}]}}),
        "MutatingAdmissionPolicy" => json!({"spec": {"matchConstraints": {"resourceRules": [rule]},
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]}}),
        "CustomResourceDefinition" => {
            json!({"metadata": {"name": "ts.e.io"}, "spec": {"group": "e.io", "scope": "Cluster",
            "names": {"plural": "ts", "kind": "T"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
        }
        "APIService" => json!({"metadata": {"name": "v1.e.io"}, "spec": {"group": "e.io", "version": "v1",
            "groupPriorityMinimum": 1, "versionPriority": 1}}),
        "PriorityClass" => json!({"value": 1}),
        _ => json!({}),
    };
    let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "x"}});
    if kind.namespaced {
        object["metadata"]["namespace"] = json!("d");
    }
    for (key, value) in body.as_object().into_iter().flatten() {
        match (key, value) {
            ("metadata", Value::Object(more)) => {
                more.iter().for_each(|(k, v)| object["metadata"][k] = v.clone());
            }
            _ => object[key] = value.clone(),
        }
    }
    object
}

#[test]
fn every_row_holds_together() {
    for kind in KINDS {
        let label = format!("{} {}", kind.api_version(), kind.kind);
        let type_ref = kind.schema().unwrap_or_else(|| panic!("{label}: no schema"));
        let mut object = minimal(kind);
        let decoded = schema::check(&object, type_ref);
        assert!(decoded.errors.is_empty() && decoded.unknown.is_empty(), "{label}: {decoded:?}");

        schema::normalise(&mut object, type_ref);
        kind.default(&mut object).expect("defaults");
        kind.prepare_create(&mut object);
        let decoded = schema::check(&object, type_ref);
        assert!(
            decoded.errors.is_empty() && decoded.unknown.is_empty(),
            "{label} after defaults: {decoded:?}"
        );
        assert_eq!(kind.validate_create(&object).to_string(), "[]", "{label}");

        let once = object.clone();
        kind.default(&mut object).expect("defaults");
        assert_eq!(object, once, "{label}: defaulting twice differs");
        kind.prepare_update(&mut object, &once);
        assert_eq!(object, once, "{label}: an update without changes changes something");
        assert_eq!(kind.validate_update(&object, &once).to_string(), "[]", "{label}");

        assert_eq!(kind.row(&object, 0).len(), kind.columns.len(), "{label}: cells and columns");
        let mut stored = object.clone();
        kind.to_storage(&mut stored);
        let storage = KINDS.iter().find(|k| (k.group, k.plural) == kind.storage).expect("a storage row");
        assert_eq!(storage.storage, kind.storage, "{label}: stored elsewhere again");
        let fields: Vec<&str> = storage.selectable_fields(&stored).iter().map(|(name, _)| *name).collect();
        for field in kind.selectable {
            assert!(fields.contains(&kind.stored_field(field).as_str()), "{label}: {field}");
        }
        assert_eq!(fields, storage.selectable, "{label}: selectable fields");
    }
}

#[test]
fn rows_are_found() {
    assert_eq!(find("apps", "v1", "deployments").map(|k| k.kind), Some("Deployment"));
    assert_eq!(by_gvk("", "v1", "Pod").map(|k| k.plural), Some("pods"));
    assert!(find("apps", "v1", "pods").is_none());
    for (i, kind) in KINDS.iter().enumerate() {
        let same = |k: &Kind| (k.group, k.version, k.plural) == (kind.group, kind.version, kind.plural);
        assert!(!KINDS[..i].iter().any(same), "{} twice", kind.kind);
        assert_eq!(kind.singular, kind.kind.to_lowercase());
        assert!(kind.status == kind.subresource("status").is_some(), "{}", kind.kind);
    }
}
