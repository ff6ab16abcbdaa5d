//! Reviews from request to answer.

use coxswain_meta::json::{Value, json};

use super::Fixture;

#[tokio::test]
async fn a_review_is_no_table() {
    let server = Fixture::start().await;
    let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(server.post(path, review.clone()).await.1["status"]["allowed"], true);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    assert_eq!(server.send_for(http::Method::POST, path, "application/json", table, review).await.0, 406);
}

#[tokio::test]
async fn a_review_is_decoded_and_validated_as_an_object_is() {
    let server = Fixture::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let ask = async |query: &str, spec: Value| {
        let review =
            json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": spec});
        let (code, answer) = server.post(&format!("{path}{query}"), review).await;
        (code, answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let (resource, url) =
        (json!({"resource": "pods", "verb": "get"}), json!({"path": "/version", "verb": "get"}));
    let (code, why) = ask("", json!({"resourceAttributes": resource, "nonResourceAttributes": url})).await;
    assert_eq!(code, 422);
    assert!(why.ends_with("spec.nonResourceAttributes: Invalid value: {\"Path\":\"/version\",\"Verb\":\"get\"}: cannot be specified in combination with resourceAttributes"), "{why}");
    let (code, why) = ask("", json!({})).await;
    assert_eq!(code, 422);
    assert!(
        why.ends_with("exactly one of nonResourceAttributes or resourceAttributes must be specified"),
        "{why}"
    );
    let odd = json!({"nonResourceAttributes": {"path": "/version", "verb": "get", "odd": 1}});
    assert_eq!(ask("", odd.clone()).await.0, 201);
    let (code, why) = ask("?fieldValidation=Strict", odd).await;
    assert_eq!(code, 400);
    assert!(
        why.ends_with("strict decoding error: unknown field \"spec.nonResourceAttributes.odd\""),
        "{why}"
    );
    assert_eq!(server.get(&format!("{path}/absent")).await.0, 404);
    assert_eq!(server.get(path).await.0, 405);
    let named = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {"name": "a"},
        "spec": {"resourceAttributes": resource}});
    let (code, answer) = server.post(path, named).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("metadata")));
}

#[tokio::test]
async fn a_missing_namespace_is_told_before_what_else_is_wrong() {
    let server = Fixture::start().await;
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "Not Valid"}});
    assert_eq!(server.post("/api/v1/namespaces/nowhere/configmaps", map).await.0, 404);
}
