//! Server-side apply from request to answer.

use serde_json::{Value, json};

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
