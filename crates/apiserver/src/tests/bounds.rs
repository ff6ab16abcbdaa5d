//! Requests that are too large, too deep or too slow.

use std::time::Duration;

use bytes::Bytes;
use coxswain_meta::json::json;
use http::{Method, Request};

use super::{Fixture, read};
use crate::body::Body;
use crate::{AccessConfig, Peer, UserInfo};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn large_and_deep_bodies_are_refused() {
    let server = Fixture::start().await;
    let send = async |media: &str, body: String| server.send(Method::POST, MAPS, media, body).await;
    let long = "x".repeat(4 << 20);
    let (code, refused) = send("application/json", format!("{{\"data\":{{\"a\":\"{long}\"}}}}")).await;
    assert_eq!((code, &refused["reason"]), (413, &json!("RequestEntityTooLarge")));
    assert_eq!(refused["message"], "Request entity too large: limit is 3145728");
    for (media, open, close) in
        [("application/json", "[", "]"), ("application/json", "{\"a\":", "}"), ("application/yaml", "[", "]")]
    {
        let deep = format!("{{\"data\":{}{}}}", open.repeat(100_000), close.repeat(100_000));
        assert_eq!(send(media, deep).await.0, 400, "{media} {open}");
    }
    let label = json!({"metadata": {"name": "a", "labels": {"a": "x".repeat(1 << 20)}}});
    assert_eq!(server.post(MAPS, label).await.0, 422);
    let key = json!({"metadata": {"name": "a", "labels": {("x".repeat(1 << 20)): "a"}}});
    assert_eq!(server.post(MAPS, key).await.0, 422);
    let notes = json!({"metadata": {"name": "a", "annotations": {"a": "x".repeat(300 << 10)}}});
    assert_eq!(server.post(MAPS, notes).await.0, 422);
}

/// A body that says what it will be, and of which only what is asked for is made.
fn endless() -> Body {
    Body::from_stream(futures::stream::repeat(Bytes::from(vec![b' '; 64 << 10])))
}

#[tokio::test]
async fn a_body_without_end_is_refused_without_being_kept() {
    let server = Fixture::start().await;
    let request = Request::post(MAPS).header("content-type", "application/json").body(endless());
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    let answer = read(server.server.handle(&admin, request.expect("a request")).await).await;
    assert_eq!(answer.0, 413);
}

#[tokio::test]
async fn a_request_ends_when_its_time_is_over() {
    let access = AccessConfig { request_timeout: Duration::from_millis(200), ..AccessConfig::default() };
    let server = Fixture::start_with(access).await;
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    let send = async |path: &str| {
        let body = Body::from_stream(futures::stream::pending());
        let request = Request::post(path).header("content-type", "application/json").body(body);
        read(server.server.handle(&admin, request.expect("a request")).await).await
    };
    let (code, refused) = send(MAPS).await;
    assert_eq!((code, &refused["reason"]), (504, &json!("Timeout")));
    assert_eq!(refused["message"], "Timeout: request did not complete within the allotted timeout");
    assert_eq!(send(&format!("{MAPS}?timeout=20ms")).await.0, 504);
    assert_eq!(send(&format!("{MAPS}?timeout=soon")).await.0, 400);
}

#[tokio::test]
async fn the_layers_around_a_request_move_little() {
    let server = Fixture::start().await;
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    let answer = server.server.handle(&admin, Request::new(Body::empty()));
    // Everything that needs much room is boxed, for a write's thousands of bytes would be moved for every read.
    assert!(size_of_val(&answer) <= 2048, "{} bytes", size_of_val(&answer));
}

#[tokio::test]
async fn a_long_answer_is_compressed_for_who_takes_gzip() {
    let server = Fixture::start().await;
    for name in ["a", "b"] {
        let map = json!({"metadata": {"name": name}, "data": {"x": "y".repeat(100 << 10)}});
        assert_eq!(server.post(MAPS, map).await.0, 201);
    }
    let admin = Peer::of(UserInfo::new("admin", &["system:masters"]));
    for (path, accepted, compressed) in [
        (MAPS.to_owned(), "gzip, deflate", true),
        (MAPS.to_owned(), "identity", false),
        (format!("{MAPS}/a"), "gzip", false),
    ] {
        let request = Request::get(&path).header("accept-encoding", accepted).body(Body::empty());
        let answer = server.server.handle(&admin, request.expect("a request")).await;
        let coding = answer.headers().get("content-encoding").map(|coding| coding == "gzip");
        assert_eq!(coding, compressed.then_some(true), "{path} {accepted}");
    }
}

#[tokio::test]
async fn unknown_and_repeated_fields_are_told_as_they_stand_in_the_text() {
    let server = Fixture::start().await;
    let sent =
        r#"{"metadata": {"name": "a"}, "immutable": true, "z": 1, "immutable": false, "a": 1, "z": 2}"#;
    let (code, refused) =
        server.send(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), "application/json", sent).await;
    let told = r#"strict decoding error: unknown field "z", duplicate field "immutable", unknown field "a""#;
    assert_eq!(code, 400);
    assert!(refused["message"].as_str().is_some_and(|message| message.ends_with(told)), "{refused}");
}

#[tokio::test]
async fn options_of_lists_may_not_contradict_each_other() {
    let server = Fixture::start().await;
    let invalid = |why: &str| (422, format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"));
    let initial = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    for (query, wanted) in [
        ("timeoutSeconds=x", (400, "strconv.ParseInt: parsing \"x\": invalid syntax".to_owned())),
        (
            "limit=9223372036854775808",
            (400, "strconv.ParseInt: parsing \"9223372036854775808\": value out of range".to_owned()),
        ),
        (
            "resourceVersionMatch=Exact",
            invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
        ),
        (
            "sendInitialEvents=true",
            invalid("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
        ),
        (
            "watch=true&sendInitialEvents=true",
            invalid(&format!("resourceVersionMatch: Forbidden: {initial}")),
        ),
        (
            "watch=maybe&sendInitialEvents=true",
            invalid(&format!("resourceVersionMatch: Forbidden: {initial}")),
        ),
    ] {
        let (code, refused) = server.get(&format!("/api/v1/configmaps?{query}")).await;
        assert_eq!(
            (code, refused["message"].as_str().unwrap_or_default()),
            (wanted.0, &*wanted.1),
            "{query}"
        );
    }
    assert_eq!(server.get("/api/v1/configmaps?limit=-1").await.0, 200);
    let forever = server.get("/api/v1/configmaps?watch=true&timeoutSeconds=9223372036854775807");
    let ended = tokio::time::timeout(Duration::from_millis(200), forever).await;
    assert!(ended.is_err(), "a watch goes on: {ended:?}");
    let token = "/api/v1/namespaces/default/serviceaccounts/x/token";
    let (code, refused) = server.post(token, json!({"spec": {"expirationSeconds": 600.5}})).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert_eq!(code, 400);
    assert!(
        message.starts_with("TokenRequest in version \"v1\" cannot be handled as a TokenRequest: json:"),
        "{message}"
    );
}
