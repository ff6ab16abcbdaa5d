//! An aggregated server on the loopback interface: its OpenAPI documents are part of ours.

use coxswain_meta::json::{Value, json};

use super::{Fixture, webhook};
use crate::authn::UserInfo;
use crate::handler::{Change, Part};
use crate::object::Meta;
use crate::resource::Resource;

const DOCUMENT: &str = "apis/w.e.io/v1";

/// A server of `things`.
fn answer(path: &str, _: Value) -> Value {
    let definition = json!({"type": "object", "description": "A thing.",
        "x-kubernetes-group-version-kind": [{"group": "w.e.io", "version": "v1", "kind": "Thing"}]});
    match path {
        "/apis/w.e.io/v1" => json!({"kind": "APIResourceList", "resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]}]}),
        "/openapi/v3" => {
            let url = format!("/openapi/v3/{DOCUMENT}?hash=1");
            json!({"paths": {DOCUMENT: {"serverRelativeURL": url}, "version": {"serverRelativeURL": "/openapi/v3/version?hash=2"}}})
        }
        "/openapi/v3/apis/w.e.io/v1" => json!({"components": {"schemas": {"Thing": definition}}}),
        "/openapi/v2" => {
            let get = json!({"produces": ["application/json"], "responses": {"200": {"schema": {"$ref": "#/definitions/Thing"}}}});
            json!({"paths": {"/apis/w.e.io/v1/things": {"get": get}, "/version/": {}}, "definitions": {"Thing": definition}})
        }
        _ => json!({}),
    }
}

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Makes a server at a port of the loopback interface the one of `w.e.io/v1`.
async fn aggregate(server: &Fixture, port: u16) {
    let service = json!({"metadata": {"name": "things"}, "spec": {"ports": [{"port": 443}]}});
    assert_eq!(server.post("/api/v1/namespaces/default/services", service).await.0, 201);
    let slice = json!({"metadata": {"name": "things", "labels": {"kubernetes.io/service-name": "things"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": port}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(server.post(slices, slice).await.0, 201);
    // No client may name the loopback interface.
    let kind = Resource::built_in("discovery.k8s.io", "v1", "endpointslices").expect("a kind");
    let user = UserInfo::new("tester", &["system:masters"]);
    let change = Change {
        kind: &kind,
        user: &user,
        namespace: "default",
        name: "things",
        part: Part::Verbatim,
        dry_run: false,
        manager: None,
    };
    let moved = server.server.0.update(&change, |old| {
        let mut new = old.clone();
        new.meta_mut().remove("resourceVersion");
        new["endpoints"][0]["addresses"][0] = "127.0.0.1".into();
        Ok(new)
    });
    moved.await.expect("a change");
    let api = json!({"metadata": {"name": "v1.w.e.io"}, "spec": {"group": "w.e.io", "version": "v1",
        "service": {"namespace": "default", "name": "things"}, "insecureSkipTLSVerify": true,
        "groupPriorityMinimum": 1000, "versionPriority": 10}});
    assert_eq!(server.post(SERVICES, api).await.0, 201);
}

#[tokio::test]
async fn openapi_documents_of_other_servers_come_and_go() {
    let server = Fixture::start().await;
    let (address, _) = webhook::start(answer).await;
    let (_, before) = server.get("/openapi/v2").await;
    aggregate(&server, address.port()).await;

    let (_, index) = server.until("/openapi/v3", |(_, index)| index["paths"][DOCUMENT].is_object()).await;
    let url = index["paths"][DOCUMENT]["serverRelativeURL"].as_str().expect("a URL");
    assert_eq!((url, index["paths"].get("version")), ("/openapi/v3/apis/w.e.io/v1?hash=1", None));
    let (code, document) = server.get(url).await;
    assert_eq!((code, &document["components"]["schemas"]["Thing"]["description"]), (200, &json!("A thing.")));
    let path = "/apis/w.e.io/v1/things";
    let (_, merged) = server.until("/openapi/v2", |(_, v2)| v2["paths"][path].is_object()).await;
    assert_eq!(merged["definitions"]["Thing"]["description"], "A thing.");
    assert!(merged["definitions"]["io.k8s.api.core.v1.Pod"].is_object());

    let removed = server.send(http::Method::DELETE, &format!("{SERVICES}/v1.w.e.io"), "", "").await;
    assert_eq!(removed.0, 200);
    assert_eq!(server.get("/openapi/v2").await.1, before);
    assert_eq!(server.get("/openapi/v3").await.1["paths"].get(DOCUMENT), None);
}

#[tokio::test]
async fn a_swagger_document_alone_becomes_one_of_openapi_v3() {
    let server = Fixture::start().await;
    let only_v2 = |path: &str, body: Value| match path {
        path if path.starts_with("/openapi/v3") => json!(404),
        path => answer(path, body),
    };
    let (address, _) = webhook::start(only_v2).await;
    aggregate(&server, address.port()).await;

    let (_, index) = server.until("/openapi/v3", |(_, index)| index["paths"][DOCUMENT].is_object()).await;
    let url = index["paths"][DOCUMENT]["serverRelativeURL"].as_str().expect("a URL");
    let (code, document) = server.get(url).await;
    assert_eq!((code, &document["openapi"]), (200, &json!("3.0.0")));
    assert_eq!(document["components"]["schemas"]["Thing"]["description"], "A thing.");
    let response = &document["paths"]["/apis/w.e.io/v1/things"]["get"]["responses"]["200"];
    let schema = json!({"$ref": "#/components/schemas/Thing"});
    assert_eq!(response["content"]["application/json"]["schema"], schema);
}
