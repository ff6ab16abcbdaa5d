//! Custom resources in the OpenAPI documents: their definitions, in the form that each version of OpenAPI can hold.

use std::hash::{Hash, Hasher};

use bytes::Bytes;
use coxswain_meta::json::{Map, Value, json};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// One version of a custom resource.
#[derive(Debug, Clone, Default)]
pub struct CustomKind {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind of one object.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Resource name in paths.
    pub plural: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// `status` and `scale`, where they are served.
    pub subresources: Vec<&'static str>,
    /// The text of its `openAPIV3Schema`; empty where it has none.
    pub schema: Bytes,
    /// Another schema has another one.
    pub digest: u64,
}

impl Hash for CustomKind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.group, &self.version, &self.kind, &self.list_kind, &self.plural).hash(state);
        (self.namespaced, &self.subresources, self.digest).hash(state);
    }
}

impl CustomKind {
    /// The prefix of its definitions' names: the group backwards, and the version.
    pub(super) fn prefix(&self) -> String {
        let backwards: Vec<&str> = self.group.rsplit('.').collect();
        format!("{}.{}", backwards.join("."), self.version)
    }

    /// The definitions of an object and of a list.
    pub(super) fn definitions(&self, v2: bool) -> Vec<(String, Value)> {
        let name = format!("{}.{}", self.prefix(), self.kind);
        let reference = |name: &str| match v2 {
            true => json!({"$ref": format!("#/definitions/{name}")}),
            false => json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}),
        };
        let described = |name: &str, text: &str| {
            let mut out = reference(name);
            out["description"] = text.into();
            out
        };
        let gvk = |kind: &str| json!([{"group": self.group, "kind": kind, "version": self.version}]);
        let schema: Value = serde_json::from_slice(&self.schema).unwrap_or_default();
        let preserves = schema["x-kubernetes-preserve-unknown-fields"] == true;
        let mut object = if v2 { to_v2(&schema) } else { schema };
        if v2 && preserves || !object.is_object() {
            // With any property here, kubectl would take all others for unknown.
            object = json!({"type": "object"});
        } else {
            object["type"] = "object".into();
            object["properties"]["apiVersion"] = json!({"description": API_VERSION, "type": "string"});
            object["properties"]["kind"] = json!({"description": KIND, "type": "string"});
            object["properties"]["metadata"] = described(
                &format!("{META}.ObjectMeta"),
                "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
            );
        }
        object["x-kubernetes-group-version-kind"] = gvk(&self.kind);
        let items = match v2 {
            true => reference(&name),
            false => json!({"$ref": format!("#/components/schemas/{name}")}),
        };
        let list = json!({
            "description": format!("{} is a list of {}", self.list_kind, self.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"description": API_VERSION, "type": "string"},
                "items": {"description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", self.plural),
                    "type": "array", "items": items},
                "kind": {"description": KIND, "type": "string"},
                "metadata": described(&format!("{META}.ListMeta"), "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
            },
            "x-kubernetes-group-version-kind": gvk(&self.list_kind),
        });
        vec![(name, object), (format!("{}.{}", self.prefix(), self.list_kind), list)]
    }
}

/// What OpenAPI v2, and kubectl's reading of it, can hold of a schema.
fn to_v2(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return schema.clone() };
    let mut out = Map::new();
    for (key, value) in map {
        match key {
            "allOf" | "anyOf" | "oneOf" | "not" | "nullable" => {}
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let fields: Map = fields.map(|(k, v)| (k, to_v2(v))).collect();
                out.insert(key, fields.into());
            }
            "items" | "additionalProperties" => {
                out.insert(key, to_v2(value));
            }
            _ => {
                out.insert(key, value.clone());
            }
        }
    }
    let (nullable, preserves) =
        (schema["nullable"] == true, schema["x-kubernetes-preserve-unknown-fields"] == true);
    if nullable || preserves {
        out.remove("items");
        out.remove("properties");
    }
    let kind = out.get("type").and_then(Value::as_str).unwrap_or_default();
    let untyped =
        nullable || (kind == "array" && !out.contains_key("items")) || (preserves && kind == "object");
    if untyped {
        out.remove("type");
    }
    if let (Some(Value::Array(required)), Some(fields)) = (out.get_mut("required"), schema.get("properties"))
    {
        required.retain(|name| fields[name.as_str().unwrap_or_default()]["nullable"] != true);
        if required.is_empty() {
            out.remove("required");
        }
    }
    out.into()
}
