//! The OpenAPI documents under test: whole, and in both encodings.

use super::*;

fn parse(bytes: Vec<u8>) -> Value {
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn every_listed_document_is_closed() {
    for path in v3_index(&[], &[])["paths"].as_object().expect("paths").keys() {
        let document = parse(v3_document(path, &[]).expect("listed"));
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(schemas.contains_key(name), "{path}: {name}");
        }
    }
    assert!(v3_document("apis/none/v1", &[]).is_none());
}

/// What kubectl looks for before it applies or explains.
#[test]
fn kubectl_finds_what_it_needs() {
    let document = parse(v3_document("apis/apps/v1", &[]).expect("apps/v1"));
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    assert!(
        patch["parameters"].as_array().expect("parameters").iter().any(|p| p["name"] == "fieldValidation")
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"], json!([gvk]));
    assert_eq!(
        deployment["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
    );
    assert!(deployment["description"].is_string());

    let v2 = parse(v2_json(&[], &[]));
    assert!(v2["paths"]["/api/v1/pods"]["get"].is_object());
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
}

/// Reads fields of a protobuf message: `(number, bytes)`, varints left out.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return n;
            }
        }
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => {
                varint(&mut bytes);
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                out.push((key >> 3, &bytes[..length]));
                bytes = &bytes[length..];
            }
            other => panic!("wire type {other}"),
        }
    }
    out
}

#[test]
fn protobuf_form_is_well_formed() {
    let encoded = v2_protobuf(&[], &[]);
    let document = fields(&encoded);
    assert_eq!(document[0], (1, b"2.0".as_slice()));
    let of = |number: u64| document.iter().find(|(n, _)| *n == number).expect("field").1;
    let definitions = fields(of(9));
    let pod = definitions
        .iter()
        .map(|(_, named)| fields(named))
        .find(|named| named[0].1 == b"io.k8s.api.core.v1.Pod")
        .expect("Pod");
    let extension = fields(pod[1].1).into_iter().find(|(n, _)| *n == 31).expect("extension").1;
    let extension = fields(extension);
    assert_eq!(extension[0].1, b"x-kubernetes-group-version-kind");
    let yaml = fields(extension[1].1)[0].1;
    let gvk: Value = serde_json::from_slice(yaml).expect("JSON");
    assert_eq!(gvk, json!([{"group": "", "kind": "Pod", "version": "v1"}]));
}

#[test]
fn custom_resources_are_in_the_documents() {
    let custom = CustomKind {
        group: "stable.e.io".into(),
        version: "v1".into(),
        kind: "Tab".into(),
        list_kind: "TabList".into(),
        plural: "tabs".into(),
        namespaced: true,
        subresources: vec!["scale"],
        schema: json!({"type": "object", "properties": {"spec": {"type": "object", "nullable": true, "properties": {}}}})
            .to_string()
            .into(),
        digest: 0,
    };
    let customs = [custom];
    let v3 = parse(v3_document("apis/stable.e.io/v1", &customs).expect("listed"));
    let name = "io.e.stable.v1.Tab";
    assert_eq!(v3["components"]["schemas"][name]["properties"]["spec"]["nullable"], true);
    assert!(v3["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference"].is_object());
    assert!(v3["paths"]["/apis/stable.e.io/v1/namespaces/{namespace}/tabs/{name}/scale"]["get"].is_object());
    let v2 = parse(v2_json(&customs, &[]));
    assert_eq!(v2["definitions"][name]["properties"]["spec"], json!({}));
    assert_eq!(v2["definitions"]["io.e.stable.v1.TabList"]["required"], json!(["items"]));
}

#[test]
fn documents_of_other_servers_are_merged() {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let reference = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
    let (list, object) = ("/apis/w.e.io/v1/things", "io.e.Thing");
    let get = json!({"parameters": [{"$ref": "#/parameters/pretty"}], "responses": {"200": {"schema": reference(object)}}});
    let theirs = json!({
        "paths": {list: {"get": get}, "/apis/w.e.io/v10/things": {}, "/version": {}},
        "parameters": {"pretty": {"name": "pretty", "in": "query", "type": "string"}},
        "definitions": {
            object: {"type": "object", "properties": {"metadata": reference(META), "when": reference("Time")}},
            META: {"type": "object", "properties": {"name": {"type": "string"}}},
            "Time": {"type": "string"}, "Unused": {"type": "string"},
        },
    });
    assert_eq!(below(&theirs, "/apis/other/v1"), None);
    let below = below(&theirs, "/apis/w.e.io/v1").expect("paths");
    assert_eq!(below["paths"].as_object().map(Map::len), Some(1));
    let merged = parse(v2_json(&[], &[Arc::new(below)]));
    assert_eq!(merged["paths"][list]["get"]["parameters"][0]["name"], "pretty");
    let (renamed, definitions) = (format!("{META}_v2"), &merged["definitions"]);
    assert_eq!(definitions[object]["properties"]["metadata"], reference(&renamed));
    assert!(definitions[META]["properties"]["uid"].is_object(), "the own definition keeps its name");
    assert_eq!(definitions[renamed.as_str()]["properties"], json!({"name": {"type": "string"}}));
    assert_eq!((definitions["Time"].is_object(), definitions.get("Unused")), (true, None));
}

#[test]
fn swagger_becomes_openapi_v3() {
    let swagger = json!({
        "swagger": "2.0", "info": {"title": "t"},
        "parameters": {"pretty": {"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}},
        "paths": {"/apis/a/v1/things": {"parameters": [{"$ref": "#/parameters/pretty"}], "post": {
            "operationId": "create", "schemes": ["https"], "consumes": ["*/*"], "produces": ["application/json"],
            "parameters": [{"name": "body", "in": "body", "schema": {"$ref": "#/definitions/Thing"}}],
            "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}, "401": {"description": "no"}},
            "x-kubernetes-action": "post"}}},
        "definitions": {"Thing": {"type": "object", "properties": {
            "one": {"description": "One.", "$ref": "#/definitions/Other"},
            "all": {"type": "array", "items": {"$ref": "#/definitions/Other"}}}}},
        "securityDefinitions": {"token": {"type": "oauth2", "flow": "implicit", "authorizationUrl": "https://a"}},
    });
    let other = json!({"$ref": "#/components/schemas/Other"});
    let thing = json!({"schema": {"$ref": "#/components/schemas/Thing"}});
    assert_eq!(
        converted(&swagger),
        json!({
            "openapi": "3.0.0", "info": {"title": "t"},
            "paths": {"/apis/a/v1/things": {
                "parameters": [{"name": "pretty", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
                "post": {"operationId": "create", "x-kubernetes-action": "post",
                    "requestBody": {"content": {"*/*": thing}},
                    "responses": {
                        "200": {"description": "OK", "content": {"application/json": thing}}, "401": {"description": "no"}}}}},
            "components": {
                "schemas": {"Thing": {"type": "object", "properties": {
                    "one": {"description": "One.", "allOf": [other]}, "all": {"type": "array", "items": other}}}},
                "securitySchemes": {"token": {"type": "oauth2", "flows": {"implicit": {"authorizationUrl": "https://a"}}}}},
        })
    );
}
