//! The scale subresource: autoscaling/v1 `Scale` from and to the kinds that scale.

use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Kind, kind};
use crate::prepare;
use crate::value::{child, int, present, set, text};

/// What is read and written there; no collection has it.
pub const KIND: Kind = kind!("autoscaling", "v1", "Scale", "scales", "scale");

/// The `Scale` of a Deployment, ReplicaSet, ReplicationController or StatefulSet.
pub fn from_object(object: &Value) -> Value {
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            set(&mut metadata, key, value.clone());
        }
    }
    let selector = &object["spec"]["selector"];
    let selector = if text(object, "kind") == "ReplicationController" {
        Selector::from_map(selector).to_string()
    } else {
        Selector::from_label_selector(selector).map_or_else(|_| String::new(), |s| s.to_string())
    };
    let count = |part: &str| int(&object[part], "replicas").unwrap_or(0);
    let mut status = json!({"replicas": count("status")});
    if !selector.is_empty() {
        set(&mut status, "selector", selector);
    }
    // Go leaves a zero out of the spec.
    let spec = if count("spec") == 0 { json!({}) } else { json!({"replicas": count("spec")}) };
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// Writes the `Scale`'s replicas, and its resourceVersion when it has one, into the object.
pub fn into_object(object: &mut Value, scale: &Value) {
    let old = object.clone();
    if let Some(spec) = child(object, "spec") {
        set(spec, "replicas", int(&scale["spec"], "replicas").unwrap_or(0));
    }
    let version = text(&scale["metadata"], "resourceVersion");
    if let Some(metadata) = present(object, "metadata").filter(|_| !version.is_empty()) {
        set(metadata, "resourceVersion", version);
    }
    prepare::raise_generation(object, &old);
}

/// What is wrong with a `Scale`.
pub fn validate(scale: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(replicas) = int(&scale["spec"], "replicas").filter(|n| *n < 0) {
        let at = Path::new("spec").child("replicas");
        errors.push(FieldError::invalid(&at, replicas, "must be greater than or equal to 0"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut object = json!({"kind": "Deployment", "metadata": {"name": "d", "namespace": "n", "generation": 1,
            "labels": {"a": "b"}}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}},
            "status": {"replicas": 2}});
        let mut scale = from_object(&object);
        assert_eq!(scale["metadata"], json!({"name": "d", "namespace": "n"}));
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
        scale["spec"]["replicas"] = json!(10);
        into_object(&mut object, &scale);
        assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(10), &json!(2)));
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(
            validate(&scale).to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }
}
