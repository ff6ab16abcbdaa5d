//! Priority and fairness, from the objects of the store to the answers.

use std::time::Duration;

use http::{Method, Request};
use serde_json::json;

use super::{Fixture, read};
use crate::body::Body;
use crate::{AccessConfig, Peer, UserInfo};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test]
async fn requests_are_classified_by_the_objects() {
    let server = Fixture::start().await;
    let marks = async |user: &str, path: &str| {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let peer = Peer::of(UserInfo::new(user, &[]));
        let answer = server.server.handle(&peer, request).await;
        let header = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        (header("x-kubernetes-pf-flowschema-uid"), header("x-kubernetes-pf-prioritylevel-uid"))
    };
    let uid = async |plural: &str, name: &str| {
        let (code, object) = server.get(&format!("{GROUP}/{plural}/{name}")).await;
        assert_eq!(code, 200, "{object}");
        object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    };
    let default = (
        uid("flowschemas", "global-default").await,
        uid("prioritylevelconfigurations", "global-default").await,
    );
    assert_eq!(marks("ann", "/version").await, default);
    assert_eq!(marks("ann", "/readyz").await.0, uid("flowschemas", "probes").await);
    let level = json!({"metadata": {"name": "few"}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}});
    assert_eq!(server.post(&format!("{GROUP}/prioritylevelconfigurations"), level).await.0, 201);
    let schema = json!({"metadata": {"name": "anns"}, "spec": {"matchingPrecedence": 10,
        "priorityLevelConfiguration": {"name": "few"}, "rules": [{"subjects": [{"kind": "User", "user": {"name": "ann"}}],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/version"]}]}]}});
    assert_eq!(server.post(&format!("{GROUP}/flowschemas"), schema).await.0, 201);
    let own = (uid("flowschemas", "anns").await, uid("prioritylevelconfigurations", "few").await);
    assert_eq!(marks("ann", "/version").await, own);
    assert_eq!(marks("bob", "/version").await, default);
    assert_eq!(marks("bob", "/api/v1/secrets").await, default, "what is refused is marked too");
    let dangling = async |wanted: &str, reason: &str| {
        let found = server
            .until(&format!("{GROUP}/flowschemas/anns"), |(_, schema)| {
                schema["status"]["conditions"][0]["status"] == wanted
            })
            .await;
        let condition = &found.1["status"]["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["reason"]),
            (&json!("Dangling"), &json!(reason)),
            "{condition}"
        );
    };
    dangling("False", "Found").await;
    let (_, metrics) = (0, server.server.clone());
    let request = Request::get("/metrics").body(Body::empty()).expect("a request");
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    let text = metrics.handle(&admin, request).await.into_body();
    let text = http_body_util::BodyExt::collect(text).await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line =
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"anns\",priority_level=\"few\"} 1";
    assert!(text.lines().any(|have| have == line), "{text}");
    server.send(Method::DELETE, &format!("{GROUP}/prioritylevelconfigurations/few"), "", "").await;
    dangling("True", "NotFound").await;
}

#[tokio::test]
async fn requests_wait_for_a_seat_and_not_for_ever() {
    // One seat for all levels together leaves every level with one. A request waits for a quarter of its time.
    let request_timeout = Duration::from_secs(2);
    let access = AccessConfig { max_requests_inflight: 1, request_timeout, ..AccessConfig::default() };
    let server = Fixture::start_with(access).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let subject =
        json!({"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"});
    let role =
        json!({"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": "rbac.authorization.k8s.io"});
    let all = json!({"metadata": {"name": "all"}, "subjects": [subject], "roleRef": role});
    assert_eq!(server.post(rbac, all).await.0, 201);
    let api = server.server.clone();
    let stuck = tokio::spawn(async move {
        let body = Body::from_stream(futures::stream::pending());
        let request = Request::post("/api/v1/namespaces/default/configmaps").body(body).expect("a request");
        read(api.handle(&Peer::of(UserInfo::new("ann", &[])), request).await).await.0
    });
    // The test has one thread: the request runs until it waits for its body.
    tokio::task::yield_now().await;
    let bob = server.of("bob", &[]);
    let (code, refused) = bob.get("/api/v1/namespaces/default/configmaps").await;
    assert_eq!((code, &refused["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(server.get("/api/v1/namespaces/default/configmaps").await.0, 200, "the exempt do not wait");
    assert_eq!(stuck.await.expect("an answer"), 504);
    assert_eq!(bob.send(Method::GET, "/api/v1/namespaces/default/configmaps", "", "").await.0, 200);
}
