//! The scale of what has replicas, which is a document of its own type.

use coxswain_meta::json::{Value, json};
use http::Method;

use super::Fixture;

const OBJECT: &str = "/apis/apps/v1/namespaces/default/deployments/d";
const SCALE: &str = "/apis/apps/v1/namespaces/default/deployments/d/scale";

async fn with_deployment() -> Fixture {
    let server = Fixture::start().await;
    let object = json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldManager=maker";
    let (code, answer) = server.post(path, object).await;
    assert_eq!(code, 201, "{answer}");
    server
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_scale_that_is_none_scales_nothing() {
    let server = with_deployment().await;
    for (patch, code, why) in [
        (
            json!({"spec": {"replicas": "x"}}),
            422,
            "cannot unmarshal string into Go struct field ScaleSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": 7}),
            422,
            "cannot unmarshal number into Go struct field Scale.spec of type v1.ScaleSpec",
        ),
        (json!({"spec": {"replicas": -1}}), 422, "must be greater than or equal to 0"),
        (json!({"kind": "Foo"}), 422, "no kind \"Foo\" is registered for version \"autoscaling/v1\""),
        (
            json!({"metadata": {"name": "o"}}),
            400,
            "the name of the object (o) does not match the name on the URL (d)",
        ),
        (json!({"metadata": {"uid": "o"}}), 409, "deployments/scale.apps \"d\": Precondition failed"),
        (
            json!({"metadata": {"resourceVersion": "x"}}),
            500,
            "strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
    ] {
        let (found, answer) = server.merge(SCALE, patch.clone()).await;
        assert_eq!(found, code, "{patch}: {answer}");
        assert!(message(&answer).contains(why), "{patch}: {answer}");
    }
    let undeterminable = "the name of the object (d based on URL) was undeterminable: name must be provided";
    for (document, why) in [
        (json!({"spec": {"replicas": 1}}), undeterminable),
        (
            json!({"metadata": {"name": "d", "namespace": "o"}}),
            "does not match the namespace sent on the request",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}),
            "converting (v1.Deployment) to (autoscaling.Scale): unknown conversion",
        ),
    ] {
        let (code, answer) = server.send(Method::PUT, SCALE, "application/json", &document).await;
        assert_eq!(code, 400, "{document}: {answer}");
        assert!(message(&answer).contains(why), "{document}: {answer}");
    }
    assert_eq!(server.get(OBJECT).await.1["spec"]["replicas"], 3);
}

#[tokio::test]
async fn applied_scales_have_owners() {
    let server = with_deployment().await;
    let scale = |n: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": n}});
    let (code, refused) = server.apply(SCALE, "scaler", scale(5)).await;
    assert_eq!((code, refused["details"]["causes"][0]["field"].as_str()), (409, Some(".spec.replicas")));
    let (code, answer) = server.apply(&format!("{SCALE}?force=true"), "scaler", scale(5)).await;
    assert_eq!((code, &answer["spec"]["replicas"]), (200, &json!(5)), "{answer}");
    let (_, object) = server.get(OBJECT).await;
    assert_eq!(object["spec"]["replicas"], 5);
    let entries = object["metadata"]["managedFields"].as_array().expect("entries");
    let owner = entries.iter().find(|entry| entry["manager"] == "scaler").expect("the scaler's entry");
    assert_eq!(
        (&owner["operation"], &owner["subresource"], &owner["fieldsV1"]),
        (&json!("Apply"), &json!("scale"), &json!({"f:spec": {"f:replicas": {}}}))
    );
    let maker = entries.iter().find(|entry| entry["manager"] == "maker").expect("the maker's entry");
    assert_eq!(maker["fieldsV1"]["f:spec"].get("f:replicas"), None);
}

#[tokio::test]
async fn what_is_scaled_has_numbers_where_the_scale_reads_them() {
    let server = Fixture::start().await;
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({"metadata": {"name": "pools.e.io"}, "spec": {"group": "e.io", "scope": "Namespaced",
        "names": {"plural": "pools", "kind": "Pool"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
            "subresources": {"scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}}]}});
    server.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let pools = "/apis/e.io/v1/namespaces/default/pools";
    server.until(pools, |(code, _)| *code == 200).await;
    for (replicas, why) in [
        (json!(-1), "Invalid value: -1: should be a non-negative integer"),
        (json!(1_i64 << 31), "Invalid value: 2147483648: should be less than or equal to 2147483647"),
        (
            json!("x"),
            "Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64",
        ),
    ] {
        let pool = json!({"apiVersion": "e.io/v1", "kind": "Pool", "metadata": {"name": "p"}, "spec": {"replicas": replicas}});
        let (code, answer) = server.post(pools, pool).await;
        assert_eq!(
            (code, message(&answer)),
            (422, format!("Pool.e.io \"p\" is invalid: .spec.replicas: {why}").as_str())
        );
    }
}
