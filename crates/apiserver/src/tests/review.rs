//! Reviews from request to answer.

use serde_json::json;

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
