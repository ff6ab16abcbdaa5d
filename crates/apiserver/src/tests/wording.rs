//! Answers that clients match on, where upstream's are not what one would think.

use coxswain_meta::json::{Value, json};
use http::Method;

use super::Fixture;

const JSON: &str = "application/json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn message((code, answer): &(u16, Value)) -> (u16, &str) {
    (*code, answer["message"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn bodies_that_name_no_type_are_shown() {
    let server = Fixture::start().await;
    let head = "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: ";
    for (body, tail) in [
        ("{\"kind\":", "unexpected end of JSON input ({\"kind\":)"),
        (
            "[]",
            r#"json: cannot unmarshal array into Go value of type struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" } (5b5d)"#,
        ),
        ("", "unexpected end of JSON input (<empty>)"),
    ] {
        let answer = server.send(Method::POST, MAPS, JSON, body).await;
        assert_eq!(message(&answer), (400, format!("{head}{tail}").as_str()));
    }
}

#[tokio::test]
async fn metadata_of_one_object_is_no_metadata_of_a_list() {
    let server = Fixture::start().await;
    let accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    let answer = server.send_for(Method::GET, MAPS, "", accept, "").await;
    let why = "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)";
    assert_eq!(message(&answer), (406, why));
}

#[tokio::test]
async fn namespaces_select_nothing_in_the_cluster_scope() {
    let server = Fixture::start().await;
    let selected = "fieldSelector=metadata.namespace%3Dx";
    let refused = server.get(&format!("/api/v1/nodes?{selected}")).await;
    assert_eq!(message(&refused), (400, "field label not supported: metadata.namespace"));
    assert_eq!(server.get(&format!("/api/v1/persistentvolumes?{selected}")).await.0, 200);
}

#[tokio::test]
async fn a_put_makes_services_and_no_maps() {
    let server = Fixture::start().await;
    let put =
        async |path: &str, body: Value| server.send(Method::PUT, &format!("{path}/new"), JSON, body).await;
    let service = json!({"metadata": {"name": "new"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(put(SERVICES, service.clone()).await.0, 201);
    assert_eq!(put(SERVICES, service).await.0, 200);
    assert_eq!(put(MAPS, json!({"metadata": {"name": "new"}})).await.0, 404);
}

#[tokio::test]
async fn protocols_of_a_port_share_its_node_port() {
    let server = Fixture::start().await;
    let of = |name: &str, ports: Value| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": ports}});
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "port": 53, "protocol": protocol});
    let (_, made) = server.post(SERVICES, of("dns", json!([port("TCP"), port("UDP")]))).await;
    let ports = &made["spec"]["ports"];
    assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"], "{made}");
    let again = server.post(SERVICES, of("dns", ports.clone())).await;
    let number = &ports[0]["nodePort"];
    let why = format!("spec.ports[0].nodePort: Invalid value: {number}: provided port is already allocated");
    assert!(again.0 == 422 && message(&again).1.contains(&why), "{}", again.1);
}

#[tokio::test]
async fn a_tried_deletion_shows_what_it_would_do() {
    let server = Fixture::start().await;
    server.post("/api/v1/namespaces", json!({"metadata": {"name": "gone"}})).await;
    let (_, shown) = server.send(Method::DELETE, "/api/v1/namespaces/gone?dryRun=All", JSON, "").await;
    assert_eq!(shown["status"]["phase"], "Terminating");
    assert!(shown["metadata"].get("deletionGracePeriodSeconds").is_none());
    let (_, kept) = server.get("/api/v1/namespaces/gone").await;
    assert_eq!(kept["status"]["phase"], "Active");
    server.post(MAPS, json!({"metadata": {"name": "m"}})).await;
    let (_, gone) = server.send(Method::DELETE, &format!("{MAPS}/m?dryRun=All"), JSON, "").await;
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(server.get(&format!("{MAPS}/m")).await.0, 200);
}

#[tokio::test]
async fn integers_lose_what_is_above_their_32_bits_where_documents_are_converted() {
    let server = Fixture::start().await;
    let service = |port: i64| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wide"}, "spec": {"ports": [{"port": port}]}});
    let path = format!("{SERVICES}/wide");
    let refused = "Invalid value: -2147483648: must be between 1 and 65535, inclusive";
    let answer = server.apply(&path, "tester", service(1 << 31)).await;
    assert_eq!(answer.0, 422);
    assert!(message(&answer).1.contains(refused), "{answer:?}");
    assert_eq!(server.apply(&path, "tester", service(80)).await.0, 201);
    let strategic = "application/strategic-merge-patch+json";
    let answer = server.send(Method::PATCH, &path, strategic, service(1 << 31)).await;
    assert_eq!(answer.0, 422);
    assert!(message(&answer).1.contains(refused), "{answer:?}");
    // Where the text itself is read into its type, it does not fit.
    let answer = server.merge(&path, json!({"spec": {"ports": [{"port": 1_i64 << 31}]}})).await;
    assert!(message(&answer).1.contains("cannot unmarshal number 2147483648"), "{answer:?}");
}

#[tokio::test]
async fn an_overhead_is_set_even_if_it_is_empty() {
    let server = Fixture::start().await;
    let pod = |overhead: Value| json!({"metadata": {"name": "p"}, "spec": {"overhead": overhead, "containers": [{"name": "c", "image": "i"}]}});
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(server.post("/api/v1/namespaces/default/serviceaccounts", account).await.0, 201);
    let pods = "/api/v1/namespaces/default/pods?dryRun=All";
    let why = "pods \"p\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
    assert_eq!(message(&server.post(pods, pod(json!({}))).await), (403, why));
    assert_eq!(message(&server.post(pods, pod(json!({"cpu": 1}))).await), (403, why));
    assert_eq!(server.post(pods, pod(Value::Null)).await.0, 201);
}

#[tokio::test]
async fn patches_that_are_none_are_refused_in_their_own_words() {
    let server = Fixture::start().await;
    server.post(MAPS, json!({"metadata": {"name": "m"}, "data": {"a": "b"}})).await;
    let (path, absent) = (format!("{MAPS}/m?fieldManager=x"), format!("{MAPS}/absent?fieldManager=x"));
    let undeterminable = "the name of the object (m based on URL) was undeterminable: name must be provided";
    for (path, media, body, code, why) in [
        (&path, "merge-patch+json", "{", 400, "error decoding patch: unexpected end of JSON input"),
        (&path, "merge-patch+json", "null", 400, "Invalid JSON Patch"),
        (&path, "merge-patch+json", r#"{"metadata": null}"#, 400, undeterminable),
        (&path, "merge-patch+json", r#"{"kind": "Foo"}"#, 422, "no kind \"Foo\" is registered"),
        (&path, "merge-patch+json", r#"{"metadata": 7}"#, 422, "ConfigMap.metadata of type v1.ObjectMeta"),
        (
            &path,
            "merge-patch+json",
            r#"{"metadata": {"uid": "x"}}"#,
            422,
            "metadata.uid: Invalid value: \"x\": field is immutable",
        ),
        (
            &path,
            "strategic-merge-patch+json",
            "7",
            400,
            "json: cannot unmarshal number into Go value of type map[string]interface {}",
        ),
        (&path, "strategic-merge-patch+json", "null", 200, ""),
        (&path, "strategic-merge-patch+json", r#"{"kind": "Foo"}"#, 200, ""),
        (
            &path,
            "strategic-merge-patch+json",
            r#"{"data": {"$patch": "x"}}"#,
            500,
            "unknown patch type: x in map: map[$patch:x]",
        ),
        (
            &path,
            "json-patch+json",
            "{}",
            400,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (&path, "json-patch+json", "null", 200, ""),
        (&path, "json-patch+json", r#"[{"op": "add"}]"#, 422, "the server rejected our request"),
        (&path, "json-patch+json", r#"[{"op": "add", "path": "/data/x"}]"#, 200, ""),
        (
            &path,
            "apply-patch+yaml",
            "[1]",
            400,
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array",
        ),
        (&path, "apply-patch+yaml", "", 400, "invalid object type: /, Kind="),
        (&path, "apply-patch+yaml", "{apiVersion: v1, kind: Foo}", 400, "invalid object type: /v1, Kind=Foo"),
        (&absent, "merge-patch+json", "{", 404, "configmaps \"absent\" not found"),
    ] {
        let answer = server.send(Method::PATCH, path, &format!("application/{media}"), body).await;
        assert_eq!(answer.0, code, "{media} {body}: {}", answer.1);
        assert!(message(&answer).1.contains(why), "{media} {body}: {}", answer.1);
    }
    let strict = format!("{path}&fieldValidation=Strict");
    let step = json!([{"op": "add", "path": "/data/x", "value": "y", "bogus": 1}]);
    let answer = server.send(Method::PATCH, &strict, "application/json-patch+json", step).await;
    assert!(message(&answer).1.contains("json patch unknown field \"[0].bogus\""), "{answer:?}");
}
