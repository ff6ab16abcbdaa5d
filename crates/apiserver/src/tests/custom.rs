//! Custom resources from their definition to their end.

use coxswain_meta::json::{Value, json};

use super::Fixture;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/e.io/v1/namespaces/default/tabs";

fn definition() -> Value {
    let spec = json!({"type": "object", "required": ["size"],
        "x-kubernetes-validations": [{"rule": "self.size <= self.most", "message": "too large"}],
        "properties": {"size": {"type": "integer"}, "most": {"type": "integer", "default": 5}, "color": {"type": "string"}}});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": spec,
        "status": {"type": "object", "properties": {"seen": {"type": "integer"}}}}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "tabs.e.io"},
        "spec": {"group": "e.io", "scope": "Namespaced", "names": {"plural": "tabs", "kind": "Tab", "shortNames": ["tb"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}},
                    "selectableFields": [{"jsonPath": ".spec.color"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": schema}]}})
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "e.io/v1", "kind": "Tab", "metadata": {"name": name}, "spec": spec, "status": {"seen": 1}})
}

async fn established() -> Fixture {
    let server = Fixture::start().await;
    let (code, answer) = server.post(DEFINITIONS, definition()).await;
    assert_eq!(code, 201, "{answer}");
    server.until(TABS, |(code, _)| *code == 200).await;
    server
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_checked() {
    let server = established().await;
    let (code, made) = server.post(TABS, tab("a", json!({"size": 1, "odd": true}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"size": 1, "most": 5})));
    assert_eq!((made.get("status"), &made["metadata"]["generation"]), (None, &json!(1)));
    let (code, strict) =
        server.post(&format!("{TABS}?fieldValidation=Strict"), tab("b", json!({"odd": 1}))).await;
    assert_eq!(
        (code, &strict["message"]),
        (
            400,
            &json!(
                "Tab in version \"v1\" cannot be handled as a Tab: strict decoding error: unknown field \"spec.odd\""
            )
        )
    );
    for (spec, why) in [
        (
            json!({}),
            "Tab.e.io \"c\" is invalid: [spec.size: Required value, <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation]",
        ),
        (json!({"size": 9}), "Tab.e.io \"c\" is invalid: spec: Invalid value: too large"),
    ] {
        let (code, refused) = server.post(TABS, tab("c", spec)).await;
        assert_eq!((code, refused["message"].as_str()), (422, Some(why)));
    }
    let path = format!("{TABS}/a/status");
    let (_, marked) = server.merge(&path, json!({"status": {"seen": 7}, "spec": {"size": 2}})).await;
    assert_eq!((&marked["status"]["seen"], &marked["spec"]["size"]), (&json!(7), &json!(1)));
    let (_, changed) = server.merge(&format!("{TABS}/a"), json!({"spec": {"color": "red"}})).await;
    assert_eq!(changed["metadata"]["generation"], 2);
    let (_, red) = server.get(&format!("{TABS}?fieldSelector=spec.color%3Dred")).await;
    assert_eq!(red["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_changed_definition_counts_for_what_is_stored() {
    let server = established().await;
    server.post(TABS, tab("a", json!({"size": 1}))).await;
    let (_, other) = server.get("/apis/e.io/v1beta1/namespaces/default/tabs/a").await;
    assert_eq!((&other["apiVersion"], &other["spec"]["size"]), (&json!("e.io/v1beta1"), &json!(1)));
    let mut newer = definition();
    newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"]
        ["default"] = json!("blue");
    let versions = newer["spec"]["versions"].clone();
    let path = format!("{DEFINITIONS}/tabs.e.io");
    let (code, answer) = server.merge(&path, json!({"spec": {"versions": versions}})).await;
    assert_eq!(code, 200, "{answer}");
    let (_, read) = server.get(&format!("{TABS}/a")).await;
    assert_eq!(read["spec"]["color"], "blue", "defaults hold for stored objects");
}

#[tokio::test]
async fn objects_go_with_their_definition() {
    let server = established().await;
    server.post(TABS, tab("a", json!({"size": 1}))).await;
    let path = format!("{DEFINITIONS}/tabs.e.io");
    server.send(http::Method::DELETE, &path, "", "").await;
    server.until(&path, |(code, _)| *code == 404).await;
    assert_eq!(server.get(TABS).await.0, 404);
    server.post(DEFINITIONS, definition()).await;
    let (_, list) = server.until(TABS, |(code, _)| *code == 200).await;
    assert_eq!(list["items"], json!([]), "nothing of the old objects comes back");
}

#[tokio::test]
async fn names_are_accepted_when_who_had_them_goes() {
    let server = established().await;
    let mut second = definition();
    second["metadata"]["name"] = "panes.e.io".into();
    second["spec"]["names"] = json!({"plural": "panes", "kind": "Pane", "shortNames": ["tb"]});
    server.post(DEFINITIONS, second).await;
    let (first, second) = (format!("{DEFINITIONS}/tabs.e.io"), format!("{DEFINITIONS}/panes.e.io"));
    let status = |name: &'static str, status: &'static str| {
        move |(_, definition): &(u16, Value)| {
            let conditions = definition["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == name && c["status"] == status)
        }
    };
    server.until(&second, status("NamesAccepted", "False")).await;
    server.send(http::Method::DELETE, &first, "", "").await;
    server.until(&second, status("Established", "True")).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_definition_is_told() {
    let server = Fixture::start().await;
    let mut wrong = definition();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    *wrong.pointer_mut(&format!("{spec}/x-kubernetes-validations/0/rule")).expect("a rule") =
        json!("self.sise > 1");
    wrong["spec"]["versions"][1]["schema"] = wrong["spec"]["versions"][0]["schema"].clone();
    let (code, refused) = server.post(DEFINITIONS, wrong).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert_eq!(code, 422);
    assert!(
        message.contains("spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule"),
        "{message}"
    );
    assert!(message.contains("undefined field 'sise'"), "{message}");
}
