//! A small schema against objects.

use crate::json::json;

use super::*;

fn schema(schema: Value) -> Structural {
    let mut errors = ErrorList::new();
    let parsed = Structural::parse(&schema, &Path::root(), &mut errors);
    assert_eq!(errors.to_string(), "[]");
    parsed
}

#[test]
fn prunes_and_defaults() {
    let schema = schema(
        json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
        "a": {"type": "string", "default": "x"}, "n": {"type": "string", "nullable": true},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"in": {"type": "object"}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "integer"}}}}}}}}),
    );
    let mut object = json!({"apiVersion": "v", "kind": "K", "metadata": {"x": 1}, "odd": 1,
        "spec": {"free": {"y": 1, "in": {"z": 1}}, "list": [{"b": 1, "c": 2}], "a": null, "n": null, "map": {"m": null}}});
    assert_eq!(prune(&mut object, &schema), ["odd", "spec.free.in.z", "spec.list[0].c"]);
    default(&mut object, &schema);
    drop_nulls(&mut object, &schema);
    assert_eq!(
        object["spec"],
        json!({"free": {"y": 1, "in": {}}, "list": [{"b": 1}], "a": "x", "n": null, "map": {}})
    );
    let mut empty = json!({});
    default(&mut empty, &schema);
    assert_eq!(empty, json!({"spec": {"a": "x"}}));
}

#[test]
fn wrong_values_are_named_in_upstreams_words() {
    let schema = schema(json!({"type": "object", "required": ["need"], "properties": {
        "i": {"type": "integer", "minimum": 1, "maximum": 5}, "s": {"type": "string", "pattern": "^a+$", "maxLength": 3},
        "e": {"type": "string", "enum": ["x", "y"]}, "p": {"x-kubernetes-int-or-string": true},
        "l": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "n": {"type": "integer", "format": "int32"}, "need": {"type": "boolean"}, "ip": {"type": "string", "format": "ipv4"},
        "o": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}}}));
    for (value, wanted) in [
        (json!({}), "need: Required value"),
        (
            json!({"need": "x"}),
            r#"need: Invalid value: "string": need in body must be of type boolean: "string""#,
        ),
        (json!({"need": true, "i": 9}), "i: Invalid value: 9: i in body should be less than or equal to 5"),
        (json!({"need": true, "s": "b"}), "s: Invalid value: \"b\": s in body should match '^a+$'"),
        (json!({"need": true, "s": "aaaa"}), "s: Too long: may not be more than 3 bytes"),
        (json!({"need": true, "e": "z"}), r#"e: Unsupported value: "z": supported values: "x", "y""#),
        (
            json!({"need": true, "p": true}),
            r#"p: Invalid value: "boolean": p in body must be of type integer,string: "boolean""#,
        ),
        (json!({"need": true, "l": ["a", "a"]}), r#"l[1]: Duplicate value: "a""#),
        (json!({"need": true, "l": ["a", "b", "c"]}), "l: Too many: 3: must have at most 2 items"),
        (json!({"need": true, "ip": "x"}), r#"ip: Invalid value: "x": ip in body must be of type ipv4: "x""#),
        (json!({"need": true, "n": true}), r#"n: Invalid value: "": n in body must be of type int32: """#),
        (
            json!({"need": true, "n": 1_i64 << 31}),
            r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in n"#,
        ),
        (
            json!({"need": null}),
            r#"need: Invalid value: "null": need in body must be of type boolean: "null""#,
        ),
        (
            json!({"need": true, "o": {"a": "", "b": ""}}),
            r#"<nil>: Invalid value: "": "o" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ),
    ] {
        assert_eq!(validate(&value, &schema, &Path::root()).to_string(), wanted, "{value}");
    }
}

#[test]
fn what_is_not_structural_is_refused() {
    let mut errors = ErrorList::new();
    let schema = json!({"type": "object", "properties": {"a": {}, "l": {"type": "array"}}});
    Structural::parse(&schema, &Path::new("s"), &mut errors);
    assert_eq!(
        errors.to_string(),
        "[s.properties[a].type: Required value: must not be empty for specified object fields, \
         s.properties[l].items: Required value: must be specified]"
    );
}
