use serde_json::json;

use super::*;

fn deployment() -> TypeRef {
    by_gvk("apps", "v1", "Deployment").expect("in the table")
}

#[test]
fn table_is_closed_and_sorted() {
    for def in &TABLE.types {
        assert!(def.fields.is_sorted_by(|a, b| a.name < b.name), "{}", def.name);
        for field in &def.fields {
            if let Type::Ref(target) = field.ty.innermost() {
                assert!(usize::from(target.0) < TABLE.types.len(), "{}.{}", def.name, field.name);
            }
        }
    }
    let containers =
        by_name("io.k8s.api.core.v1.PodSpec").and_then(|t| t.get("containers")).expect("containers");
    assert!(containers.required && containers.list_type == ListType::Map && containers.map_keys == "name");
    let facts = SchemaNode::field(by_name("io.k8s.api.core.v1.PodSpec").expect("PodSpec"), "volumes")
        .expect("volumes");
    assert!(facts.merge && facts.retain_keys && facts.merge_key == Some("name") && facts.node.is_some());
}

#[test]
fn wrong_types_are_worded_as_go_words_them() {
    let first =
        |doc: serde_json::Value| check(&doc, deployment()).errors.first().cloned().unwrap_or_default();
    assert_eq!(
        first(json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let spec =
        |container: serde_json::Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
    assert_eq!(
        first(spec(json!({"name": 1}))),
        "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.name of type string"
    );
    assert_eq!(
        first(json!({"spec": {"template": {"spec": {"containers": {}}}}})),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"
    );
    assert_eq!(
        first(json!({"metadata": {"labels": {"a": 1}}})),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
    assert!(
        first(spec(json!({"resources": {"limits": {"cpu": "1x"}}})))
            .starts_with("quantities must match the regular")
    );
    assert_eq!(
        first(spec(json!({"ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1}}}))),
        ""
    );
    let secret = by_gvk("", "v1", "Secret").expect("Secret");
    assert_eq!(check(&json!({"data": {"a": "aGk="}}), secret).errors.len(), 0);
    assert_eq!(check(&json!({"data": {"a": "a b"}}), secret).errors, ["illegal base64 data at input byte 1"]);
}

#[test]
fn unknown_and_duplicate_fields_have_paths() {
    let doc =
        json!({"foo": 1, "spec": {"template": {"spec": {"containers": [{"image": "a", "imagee": "b"}]}}}});
    assert_eq!(
        check(&doc, deployment()).unknown,
        [r#"unknown field "foo""#, r#"unknown field "spec.template.spec.containers[0].imagee""#]
    );
    let (value, duplicates) =
        parse_json_strict(br#"{"a":{"b":1,"c":[{"d":1,"d":2}],"b":3}}"#).expect("parses");
    assert_eq!(value, json!({"a": {"b": 3, "c": [{"d": 2}]}}));
    assert_eq!(duplicates, [r#"duplicate field "a.c[0].d""#, r#"duplicate field "a.b""#]);
    assert_eq!(parse_json_strict(b"{\"a\":").expect_err("truncated"), "unexpected end of JSON input");
    assert_eq!(
        parse_json_strict(b"{\"a\":x}").expect_err("malformed"),
        "invalid character 'x' looking for beginning of value"
    );
    assert!(parse_json_strict(&b"[".repeat(100_000)).is_err());
}

#[test]
fn stored_form() {
    let mut doc = json!({"foo": 1, "metadata": {"labels": {}, "creationTimestamp": null}, "spec": {"replicas": 1,
        "template": {"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
            "securityContext": {}, "args": []}], "volumes": [{"name": "v", "emptyDir": {}}]}}}});
    normalise(&mut doc, deployment());
    assert_eq!(
        doc,
        json!({"metadata": {}, "spec": {"replicas": 1, "template": {"spec": {
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}, "securityContext": {}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}}}})
    );
}
