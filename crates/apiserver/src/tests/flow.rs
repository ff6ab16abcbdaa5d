//! Priority and fairness, from the objects of the store to the answers.

use std::time::Duration;

use coxswain_meta::json::json;
use http::{Method, Request};

use super::{Fixture, read};
use crate::body::Body;
use crate::{AccessConfig, Peer, UserInfo};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// What an administrator reads: the code, the type and the text.
async fn page(server: &Fixture, path: &str) -> (u16, String, String) {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    let (head, body) = server.server.handle(&admin, request).await.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.expect("a body").to_bytes();
    let media = head.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    (head.status.as_u16(), media.to_owned(), String::from_utf8_lossy(&body).into_owned())
}

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
    let debug = "/debug/api_priority_and_fairness/dump_queues";
    assert_eq!((server.of("bob", &[]).get(debug).await.0, page(&server, debug).await.0), (403, 200));
    let (_, _, text) = page(&server, "/metrics").await;
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
    debug_pages_tell(&server).await;
    assert_eq!(server.get("/api/v1/namespaces/default/configmaps").await.0, 200, "the exempt do not wait");
    assert_eq!(stuck.await.expect("an answer"), 504);
    assert_eq!(bob.send(Method::GET, "/api/v1/namespaces/default/configmaps", "", "").await.0, 200);
}

/// Of a server where a request of ann runs, and bob was refused one: another one of bob waits.
async fn debug_pages_tell(server: &Fixture) {
    let bob = server.of("bob", &[]);
    let waiting = tokio::spawn(async move { bob.get("/api/v1/namespaces/default/secrets/a").await.0 });
    tokio::task::yield_now().await;
    let directory = "/debug/api_priority_and_fairness";
    let rows = async |name: &str| {
        let (code, media, text) = page(server, &format!("{directory}/{name}")).await;
        assert_eq!((code, media.as_str()), (200, "text/plain; charset=utf-8"), "{text}");
        text.lines()
            .map(|line| line.split(',').map(|cell| cell.trim().to_owned()).collect())
            .collect::<Vec<Vec<String>>>()
    };
    let row = |rows: &[Vec<String>], of: &dyn Fn(&[String]) -> bool| {
        rows.iter().find(|row| of(row)).cloned().unwrap_or_else(|| panic!("{rows:#?}"))
    };
    let levels = rows("dump_priority_levels").await;
    assert_eq!(levels[0][..4], ["PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing"]);
    let level = row(&levels, &|row| row[0] == "global-default");
    assert_eq!(level[1..], ["1", "false", "false", "1", "1", "1", "1", "0", "1"], "{levels:#?}");
    let exempt = row(&levels, &|row| row[0] == "exempt");
    assert_eq!((&exempt[1][..], &exempt[5][..]), ("0", "1"), "this question runs: {levels:#?}");
    let queues = rows("dump_queues").await;
    let busy: Vec<_> = queues.iter().filter(|row| row[0] == "global-default" && row[3] == "1").collect();
    assert_eq!(busy.len(), 1, "{queues:#?}");
    assert_eq!((&busy[0][4][..], &busy[0][5][busy[0][5].len() - 2..]), ("1", "ss"));
    assert!(queues.iter().any(|row| row[2] == "1" && row[6..] == ["1", "1", "0.00300000ss"]), "{queues:#?}");
    let requests = rows("dump_requests?includeRequestDetails=1").await;
    let of_bob = row(&requests, &|row| row[10..].first().is_some_and(|user| user == "bob"));
    assert_eq!(of_bob[..2], ["global-default", "global-default"]);
    assert_eq!(of_bob[3..5], ["0", "bob"]);
    assert_eq!(of_bob[6..10], ["1", "0", "0s", "0001-01-01T00:00:00Z"]);
    let path = "/api/v1/namespaces/default/secrets/a";
    assert_eq!(of_bob[10..], ["bob", "get", path, "default", "a", "v1", "secrets", ""]);
    let of_ann = row(&requests, &|row| row[4] == "ann");
    assert!(of_ann[3] == "-1" && of_ann[9].parse::<jiff::Timestamp>().is_ok(), "{of_ann:?}");
    let brief = rows("dump_requests").await;
    assert_eq!(brief[0].len(), 10);
    let text = page(server, &format!("{directory}/dump_priority_levels")).await.2;
    assert!(text.starts_with("PriorityLevelName, ActiveQueues, "), "{text}");
    assert_eq!(page(server, &format!("{directory}/dump")).await.0, 404);
    assert_eq!(waiting.await.expect("an answer"), 429);
}
