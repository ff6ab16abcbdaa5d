//! Server-side apply from request to answer.

use coxswain_meta::json::{Value, json};

use super::Fixture;

const PATH: &str = "/apis/apps/v1/namespaces/default/deployments/d";

fn deployment(replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}}})
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"].as_array().expect("entries");
    entries.iter().find(|entry| entry["manager"] == manager).map_or(&Value::Null, |entry| &entry["fieldsV1"])
}

#[tokio::test]
async fn apply_creates_conflicts_and_takes_over() {
    let server = Fixture::start().await;
    let (code, created) = server.apply(PATH, "a", deployment(1)).await;
    assert_eq!(code, 201, "{created}");
    let port = "k:{\"containerPort\":80,\"protocol\":\"TCP\"}";
    let ports = &fields(&created, "a")["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]
        ["f:ports"];
    assert_eq!(ports[port], json!({".": {}, "f:containerPort": {}}));

    let (code, refused) = server.apply(PATH, "b", deployment(2)).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")));
    assert_eq!(refused["message"], "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    assert_eq!(
        refused["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.replicas"}])
    );
    let (code, forced) = server.apply(&format!("{PATH}?force=true"), "b", deployment(2)).await;
    assert_eq!((code, &forced["spec"]["replicas"]), (200, &json!(2)));
    assert_eq!(fields(&forced, "a")["f:spec"].get("f:replicas"), None);

    let (code, missing) =
        server.send(http::Method::PATCH, PATH, "application/apply-patch+yaml", deployment(1)).await;
    assert_eq!((code, missing["details"]["causes"][0]["field"].as_str()), (422, Some("fieldManager")));
}

#[tokio::test]
async fn writes_that_are_no_apply_have_managers_too() {
    let server = Fixture::start().await;
    let map = json!({"metadata": {"name": "m", "labels": {"l": "1"}}, "data": {"a": "1"}});
    let (code, created) = server.post("/api/v1/namespaces/default/configmaps?fieldManager=maker", map).await;
    assert_eq!(code, 201);
    assert_eq!(
        fields(&created, "maker"),
        &json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}})
    );
    let path = "/api/v1/namespaces/default/configmaps/m";
    let (_, patched) = server.merge(path, json!({"data": {"b": "2"}})).await;
    assert_eq!(
        fields(&patched, "tester"),
        &json!({"f:data": {"f:b": {}}}),
        "the client's name is the default"
    );
    let (_, cleared) = server.merge(path, json!({"metadata": {"managedFields": [{}]}})).await;
    assert_eq!(cleared["metadata"].get("managedFields"), None);
}

#[tokio::test]
async fn a_patch_of_what_managers_own_sees_trees_and_text_of_a_client_is_none() {
    let server = Fixture::start().await;
    let (maps, path) = ("/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/m");
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    server.post(&format!("{maps}?fieldManager=maker"), map).await;
    let owned = "/metadata/managedFields/0/fieldsV1/f:data/f:a";
    let patch = |steps: Value| server.send(http::Method::PATCH, path, "application/json-patch+json", steps);
    let (code, patched) = patch(json!([{"op": "test", "path": owned, "value": {}},
        {"op": "copy", "from": "/metadata/managedFields/0/manager", "path": "/data/b"}]))
    .await;
    assert_eq!((code, &patched["data"]["b"]), (200, &json!("maker")), "{patched}");
    assert_eq!(fields(&patched, "maker"), &json!({"f:data": {".": {}, "f:a": {}}}));
    let (code, patched) = patch(json!([{"op": "remove", "path": owned}])).await;
    assert_eq!((code, fields(&patched, "maker")), (200, &json!({"f:data": {".": {}}})));

    let text = json!([{"manager": "x", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": "{\"f:data\":{}}"}]);
    let sent = json!({"metadata": {"name": "m", "managedFields": text}, "data": {"a": "1", "b": "maker"}});
    let (code, updated) = server.send(http::Method::PUT, path, "application/json", sent).await;
    assert_eq!((code, fields(&updated, "x")), (200, &Value::Null), "{updated}");
    assert_eq!(updated["metadata"]["managedFields"], patched["metadata"]["managedFields"]);
}

const HPAS: &str = "/namespaces/default/horizontalpodautoscalers/h";

fn autoscaler(version: &str, spec: Value) -> Value {
    let mut out = json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let members = spec.as_object().expect("a spec").clone();
    out["spec"].as_object_mut().expect("a spec").extend(members);
    out
}

#[tokio::test]
async fn managers_of_two_versions_of_a_built_in_kind_meet() {
    let server = Fixture::start().await;
    let (v1, v2) = (format!("/apis/autoscaling/v1{HPAS}"), format!("/apis/autoscaling/v2{HPAS}"));
    let resource = |name: &str, percent: i64| {
        json!({"type": "Resource", "resource": {"name": name,
            "target": {"type": "Utilization", "averageUtilization": percent}}})
    };
    let metrics = json!([resource("cpu", 50), resource("memory", 60)]);
    let wanted = autoscaler("v2", json!({"maxReplicas": 5, "metrics": metrics}));
    assert_eq!(server.apply(&v2, "a", wanted).await.0, 201);
    // All metrics are one field, and the older version shows one of them in a field that it always has.
    let (code, applied) = server.apply(&v1, "a", autoscaler("v1", json!({"maxReplicas": 5}))).await;
    assert_eq!((code, &applied["spec"]["targetCPUUtilizationPercentage"]), (200, &json!(50)), "{applied}");
    assert_eq!(applied["status"], json!({"currentReplicas": 0, "desiredReplicas": 0}));
    let other =
        "[{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"targetAverageUtilization\":60}}]";
    assert_eq!(applied["metadata"]["annotations"], json!({"autoscaling.alpha.kubernetes.io/metrics": other}));
    let entries = &applied["metadata"]["managedFields"];
    let own = json!({"f:spec": {"f:maxReplicas": {}, "f:scaleTargetRef": {}}});
    assert_eq!(
        (entries.as_array().map(Vec::len), &entries[0]["apiVersion"], &entries[0]["fieldsV1"]),
        (Some(1), &json!("autoscaling/v1"), &own)
    );
    let (code, refused) = server.apply(&v2, "b", autoscaler("v2", json!({"maxReplicas": 6}))).await;
    let message = "Apply failed with 1 conflict: conflict with \"a\": .spec.maxReplicas";
    assert_eq!((code, refused["message"].as_str()), (409, Some(message)));
    let (code, updated) = server.merge(&v2, json!({"spec": {"maxReplicas": 7}})).await;
    assert_eq!((code, fields(&updated, "a")), (200, &json!({"f:spec": {"f:scaleTargetRef": {}}})));
    // What nobody serves any more belongs to nobody.
    let gone = json!({"manager": "old", "operation": "Apply", "apiVersion": "autoscaling/v2beta2",
        "time": "2020-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:maxReplicas": {}}}});
    let sent = json!({"metadata": {"managedFields": [gone]}, "spec": {"maxReplicas": 8}});
    let (_, updated) = server.merge(&v2, sent).await;
    assert_eq!(
        (fields(&updated, "old"), fields(&updated, "tester")),
        (&Value::Null, &json!({"f:spec": {"f:maxReplicas": {}}}))
    );
}

#[tokio::test]
async fn an_empty_list_that_is_always_written_has_an_owner() {
    let server = Fixture::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles?fieldManager=maker";
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let (_, made) = server.post(roles, role("a", json!([]))).await;
    assert_eq!((&made["rules"], fields(&made, "maker")), (&Value::Null, &json!({"f:rules": {}})));
    let (_, made) = server.post(roles, role("b", Value::Null)).await;
    assert_eq!(made["metadata"].get("managedFields"), None);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?fieldManager=maker";
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [], "ports": []});
    let (_, made) = server.post(slices, slice).await;
    let own = json!({"f:addressType": {}, "f:endpoints": {}, "f:ports": {}});
    assert_eq!(fields(&made, "maker"), &own);
}
