//! Admission policies from request to answer.

use coxswain_meta::json::{Value, json};

use super::Fixture;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn policy(kind: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
        "operations": ["CREATE"], "resources": ["configmaps"]}]});
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "p"}, "spec": spec})
}

fn map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"size": value}})
}

#[tokio::test]
async fn a_bound_policy_refuses_in_its_words() {
    let server = Fixture::start().await;
    server.post(MAPS, map("limits", "5")).await;
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "failurePolicy": "Fail",
        "variables": [{"name": "size", "expression": "int(object.data.size)"}],
        "validations": [{"expression": "variables.size <= int(params.data.size)",
            "messageExpression": "'at most ' + params.data.size", "reason": "Forbidden"}]});
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let (code, made) = server.post(&path, policy("ValidatingAdmissionPolicy", spec)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(server.post(MAPS, map("free", "9")).await.0, 201, "without a binding nothing is refused");
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"],
        "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}}});
    let (code, bound) = server.post(&format!("{GROUP}/validatingadmissionpolicybindings"), binding).await;
    assert_eq!(code, 201, "{bound}");
    let (code, refused) = server.post(MAPS, map("large", "9")).await;
    assert_eq!(
        (code, refused["message"].as_str()),
        (
            403,
            Some(
                "configmaps \"large\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: at most 5"
            )
        )
    );
    assert_eq!(server.post(MAPS, map("small", "2")).await.0, 201);
    let (_, failed) = server.post(MAPS, json!({"metadata": {"name": "none"}})).await;
    let message = failed["message"].as_str().unwrap_or_default();
    assert!(message.contains("resulted in error"), "a policy that cannot be evaluated refuses: {message}");
}

#[tokio::test]
async fn a_mutating_policy_applies_and_patches() {
    let server = Fixture::start().await;
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration":
            {"expression": "Object{data: Object.data{applied: object.metadata.name}}"}},
        {"patchType": "JSONPatch", "jsonPatch":
            {"expression": "[JSONPatch{op: 'add', path: '/data/patched', value: object.data.applied + '!'}]"}}]});
    let path = format!("{GROUP}/mutatingadmissionpolicies");
    let (code, made) = server.post(&path, policy("MutatingAdmissionPolicy", spec)).await;
    assert_eq!(code, 201, "{made}");
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    let (code, bound) = server.post(&format!("{GROUP}/mutatingadmissionpolicybindings"), binding).await;
    assert_eq!(code, 201, "{bound}");
    let (_, made) = server.post(MAPS, map("m", "1")).await;
    assert_eq!(made["data"], json!({"size": "1", "applied": "m", "patched": "m!"}));
}
