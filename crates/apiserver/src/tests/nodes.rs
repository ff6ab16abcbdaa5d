//! What kubelets may see and write: the node authorizer and NodeRestriction.

use coxswain_meta::json::{Value, json};
use http::Method;

use super::Fixture;

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn kubelet(server: &Fixture, node: &str) -> Fixture {
    server.of(&format!("system:node:{node}"), &["system:nodes"])
}

async fn made(server: &Fixture, path: &str, object: Value) -> Value {
    let (code, answer) = server.post(path, object).await;
    assert_eq!(code, 201, "{answer}");
    answer
}

/// A pod that is bound to a node and mounts a secret.
async fn bound_pod(server: &Fixture, name: &str, node: &str, secret: &str) -> Value {
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "secret": {"secretName": secret}}]}});
    made(server, PODS, pod).await
}

#[tokio::test]
async fn a_kubelet_sees_what_its_pods_name() {
    let server = Fixture::start().await;
    made(&server, "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await;
    for name in ["mine", "theirs"] {
        made(&server, SECRETS, json!({"metadata": {"name": name}})).await;
    }
    let (one, two) = (kubelet(&server, "one"), kubelet(&server, "two"));
    let secret = format!("{SECRETS}/mine");
    let (code, refused) = one.get(&secret).await;
    assert_eq!(code, 403);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("no relationship found between node 'one' and this object"), "{message}");
    bound_pod(&server, "p", "one", "mine").await;
    assert_eq!(one.get(&secret).await.0, 200);
    assert_eq!(two.get(&secret).await.0, 403);
    assert_eq!(one.get(&format!("{SECRETS}/theirs")).await.0, 403);
    assert_eq!(one.get(SECRETS).await.0, 403);
    assert_eq!(one.get(&format!("{SECRETS}?fieldSelector=metadata.name=mine")).await.0, 200);
    assert_eq!(one.get(&format!("{PODS}?fieldSelector=spec.nodeName=one")).await.0, 200);
    assert_eq!(one.get(&format!("{PODS}?fieldSelector=spec.nodeName=two")).await.0, 403);
    assert_eq!(two.get(&format!("{PODS}/p")).await.0, 403);
    let path = format!("{PODS}/p?gracePeriodSeconds=0");
    assert_eq!(two.send(Method::DELETE, &path, "", "").await.0, 403);
    assert_eq!(one.send(Method::DELETE, &path, "", "").await.0, 200);
    assert_eq!(one.get(&secret).await.0, 403, "what no pod names any more is not seen");
}

#[tokio::test]
async fn a_kubelet_writes_its_own_node_without_labels_that_are_not_its_own() {
    let server = Fixture::start().await;
    let one = kubelet(&server, "one");
    let node = |name: &str, label: &str| json!({"metadata": {"name": name, "labels": {label: "x"}}});
    assert_eq!(one.post(NODES, node("two", "a")).await.0, 403);
    let (code, refused) = one.post(NODES, node("one", "node-restriction.kubernetes.io/a")).await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(one.post(NODES, node("one", "kubernetes.io/hostname")).await.0, 201);
    let path = format!("{NODES}/one");
    assert_eq!(one.merge(&path, json!({"metadata": {"labels": {"own": "1"}}})).await.0, 200);
    assert_eq!(one.merge(&path, json!({"spec": {"taints": []}})).await.0, 403);
    assert_eq!(one.merge(&format!("{path}/status"), json!({"status": {"phase": "Running"}})).await.0, 200);
    assert_eq!(one.get(&path).await.0, 200);
    assert_eq!(
        kubelet(&server, "two").merge(&path, json!({"metadata": {"labels": {"b": "1"}}})).await.0,
        403
    );
}

#[tokio::test]
async fn a_kubelet_gets_tokens_for_pods_of_its_node() {
    let server = Fixture::start().await;
    made(&server, "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await;
    made(&server, SECRETS, json!({"metadata": {"name": "s"}})).await;
    let pod = bound_pod(&server, "p", "one", "s").await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"]});
    let request =
        |bound: &Value, audiences: Value| json!({"spec": {"boundObjectRef": bound, "audiences": audiences}});
    let (one, two) = (kubelet(&server, "one"), kubelet(&server, "two"));
    let (code, given) = one.post(path, request(&bound, json!([]))).await;
    assert_eq!(code, 201, "{given}");
    for (who, request, why) in [
        (&one, request(&Value::Null, json!([])), "not bound to a pod"),
        (&one, request(&bound, json!(["vault"])), "not found in pod spec volume"),
        (&two, request(&bound, json!([])), "no relationship found"),
    ] {
        let (code, refused) = who.post(path, request).await;
        assert_eq!(code, 403);
        assert!(refused["message"].as_str().unwrap_or_default().contains(why), "{refused}");
    }
}

#[tokio::test]
async fn approving_needs_the_permission_for_the_signer() {
    let server = Fixture::start().await;
    let params = rcgen::CertificateParams::default();
    let body = params.serialize_request(&rcgen::KeyPair::generate().expect("a key")).expect("a request");
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/a", "usages": ["client auth"],
        "request": base64::Engine::encode(&base64::prelude::BASE64_STANDARD, body.pem().expect("pem"))}});
    made(&server, path, request).await;
    let rules = |signers: &str| {
        json!({"metadata": {"name": "approver"}, "rules": [
        {"verbs": ["update", "patch"], "apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval"]},
        {"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": [signers]}]})
    };
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    made(&server, &format!("{rbac}/clusterroles"), rules("example.org/a")).await;
    let binding = json!({"metadata": {"name": "approver"}, "subjects": [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "approver"}});
    made(&server, &format!("{rbac}/clusterrolebindings"), binding).await;
    let ann = server.of("ann", &[]);
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}});
    let path = format!("{path}/r/approval");
    let (code, refused) = ann.merge(&path, approve.clone()).await;
    assert_eq!(code, 403);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("user not permitted to approve requests with signerName \"example.com/a\""),
        "{message}"
    );
    server.merge(&format!("{rbac}/clusterroles/approver"), rules("example.com/*")).await;
    let (code, approved) = ann.merge(&path, approve).await;
    assert_eq!(code, 200, "{approved}");
    let other = json!({"spec": {"signerName": "example.com/b", "usages": ["any"]}});
    let (code, kept) = server.merge(path.trim_end_matches("/approval"), other).await;
    assert_eq!((code, &kept["spec"]), (200, &approved["spec"]), "what was approved stays what it was");
}
