//! The schema facts and strict decoding under test.

use coxswain_meta::json::{Value, json};

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
    let first = |doc: Value| check(&doc, deployment()).errors.first().cloned().unwrap_or_default();
    assert_eq!(
        first(json!({"spec": {"replicas": "3"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    let spec = |container: Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
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
        json!({"metadata": {}, "status": {}, "spec": {"replicas": 1, "strategy": {}, "template": {"metadata": {}, "spec": {
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}, "securityContext": {}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}}}})
    );
}

/// A protobuf message: `(number, bytes)` fields, and varints.
fn message(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, bytes) in parts {
        out.extend([number << 3 | 2, u8::try_from(bytes.len()).expect("short")]);
        out.extend(*bytes);
    }
    out
}

#[test]
fn protobuf_objects_decode() {
    let int = |number: u8, n: u8| vec![number << 3, n];
    let volume = message(&[(1, b"v"), (2, &message(&[(2, b"")]))]);
    let port = [message(&[(1, b"")]), int(3, 80), message(&[(4, b"TCP")])].concat();
    let limits = message(&[(1, b"cpu"), (2, &message(&[(1, b"1")]))]);
    let container = message(&[(1, b"c"), (2, b"i"), (5, b""), (6, &port), (8, &message(&[(1, &limits)]))]);
    let spec = [message(&[(1, &volume), (2, &container), (3, b"")]), int(4, 0), int(11, 0)].concat();
    let label = message(&[(1, b"a"), (2, b"b")]);
    let metadata = message(&[(1, b"p"), (8, &message(&[])), (11, &label)]);
    let pod = message(&[(1, &metadata), (2, &spec)]);
    let type_meta = message(&[(1, b"v1"), (2, b"Pod")]);
    let body = [b"k8s\0".to_vec(), message(&[(1, &type_meta), (2, &pod)])].concat();
    assert_eq!(
        decode_protobuf(&body).expect("decodes"),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}},
                "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
            "terminationGracePeriodSeconds": 0}})
    );
    for broken in [&b"{}"[..], &body[..body.len() - 1], b"k8s\0\x0a\x05"] {
        assert!(decode_protobuf(broken).is_err());
    }
}
