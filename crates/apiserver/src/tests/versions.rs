//! Managers of a custom resource's several versions.

use coxswain_meta::json::{Value, json};

use super::{Fixture, webhook};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn path(version: &str) -> String {
    format!("/apis/x.io/{version}/namespaces/default/tabs/t")
}

fn tab(version: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("x.io/{version}"), "kind": "Tab", "metadata": {"name": "t"}, "spec": spec})
}

/// A definition whose versions have strings in their specs.
async fn defined(fields: [&[&str]; 2], conversion: Value) -> Fixture {
    let server = Fixture::start().await;
    let version = |name: &str, fields: &[&str]| {
        let mut properties: Value =
            fields.iter().map(|field| ((*field).to_owned(), json!({"type": "string"}))).collect();
        properties["list"] = json!({"type": "array", "items": {"type": "string"}});
        if name == "v2" {
            properties["list"]["x-kubernetes-list-type"] = "set".into();
        }
        json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema":
            {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}}})
    };
    let spec = json!({"group": "x.io", "scope": "Namespaced", "names": {"plural": "tabs", "kind": "Tab"},
        "versions": [version("v1", fields[0]), version("v2", fields[1])], "conversion": conversion});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "tabs.x.io"}, "spec": spec});
    let (code, answer) = server.post(DEFINITIONS, definition).await;
    assert_eq!(code, 201, "{answer}");
    server.until("/apis/x.io/v1/namespaces/default/tabs", |(code, _)| *code == 200).await;
    server
}

fn managers(object: &Value) -> Vec<(&str, &str, &Value)> {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            (text("manager"), text("apiVersion"), &entry["fieldsV1"])
        })
        .collect()
}

#[tokio::test]
async fn fields_go_with_the_version_that_they_were_applied_in() {
    let server = defined([&["a", "b"], &["a", "b", "c"]], json!({"strategy": "None"})).await;
    let applied = tab("v1", json!({"a": "1", "b": "2", "list": ["x", "y"]}));
    assert_eq!(server.apply(&path("v1"), "m", applied).await.0, 201);
    let (code, now) = server.apply(&path("v2"), "m", tab("v2", json!({"a": "1", "list": ["x"]}))).await;
    // The first version owned the list as a whole, and it is owned still.
    assert_eq!((code, &now["spec"]), (200, &json!({"a": "1", "list": ["x", "y"]})), "{now}");
    let own = json!({"f:spec": {"f:a": {}, "f:list": {"v:\"x\"": {}}}});
    assert_eq!(managers(&now), [("m", "x.io/v2", &own)]);

    let (code, refused) = server.apply(&path("v1"), "n", tab("v1", json!({"a": "9"}))).await;
    let message = "Apply failed with 1 conflict: conflict with \"m\": .spec.a";
    assert_eq!((code, refused["message"].as_str()), (409, Some(message)));
    // A field that the entries' version does not have: applied in vain, and written by losing all entries.
    let (code, refused) = server.apply(&path("v2"), "n", tab("v2", json!({"b": "1"}))).await;
    assert_eq!(code, 200, "{refused}");
    assert_eq!(server.apply(&path("v1"), "o", tab("v1", json!({"a": "1"}))).await.0, 200);
    let (code, refused) = server.apply(&path("v2"), "m", tab("v2", json!({"a": "1", "c": "7"}))).await;
    let message = "failed to prune fields: failed add back owned items: failed to convert merged object at version x.io/v1: .spec.c: field not declared in schema";
    assert_eq!((code, refused["message"].as_str()), (500, Some(message)));
    let (code, updated) = server.merge(&path("v2"), json!({"spec": {"c": "7"}})).await;
    assert_eq!((code, managers(&updated)), (200, Vec::new()));
}

/// Calls `a` in one version what is `b` in the other.
fn rename(_: &str, mut review: Value) -> Value {
    let asked = review["request"].take();
    let wanted = asked["desiredAPIVersion"].clone();
    let mut objects = asked["objects"].clone();
    for object in objects.as_array_mut().into_iter().flatten() {
        object["apiVersion"] = wanted.clone();
        let (from, to) = if wanted == "x.io/v1" { ("b", "a") } else { ("a", "b") };
        if let Some(value) = object["spec"].as_object_mut().and_then(|spec| spec.remove(from)) {
            object["spec"][to] = value;
        }
    }
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"],
        "response": {"uid": asked["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

#[tokio::test]
async fn a_webhook_says_what_a_field_is_called_in_the_version_of_an_entry() {
    let (address, bundle) = webhook::start(rename).await;
    let client = json!({"url": format!("https://localhost:{}/", address.port()), "caBundle": bundle});
    let conversion = json!({"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}});
    let server = defined([&["a", "z"], &["b", "z"]], conversion).await;
    let (code, made) = server.apply(&path("v1"), "m", tab("v1", json!({"a": "1", "z": "1"}))).await;
    assert_eq!(code, 201, "{made}");
    let (code, refused) = server.apply(&path("v2"), "n", tab("v2", json!({"b": "2"}))).await;
    let message = "Apply failed with 1 conflict: conflict with \"m\": .spec.a";
    assert_eq!((code, refused["message"].as_str()), (409, Some(message)), "{refused}");
    let (code, updated) = server.merge(&path("v2"), json!({"spec": {"b": "2"}})).await;
    let (left, own) = (json!({"f:spec": {"f:z": {}}}), json!({"f:spec": {"f:b": {}}}));
    assert_eq!((code, managers(&updated)), (200, vec![("m", "x.io/v1", &left), ("tester", "x.io/v2", &own)]));
    let (code, applied) = server.apply(&path("v2"), "m", tab("v2", json!({}))).await;
    assert_eq!((code, &applied["spec"]), (200, &json!({"b": "2"})), "what was applied in v1 alone is gone");
}
