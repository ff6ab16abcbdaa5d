//! The patch types: JSON patch, merge patch and strategic merge patch. Apply lives with field ownership.

pub mod strategic;

use serde_json::Value;

use crate::status::Status;

/// Applies an RFC 6902 patch in place; `doc` is unspecified after an error.
pub fn json_patch(doc: &mut Value, patch: &Value) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    json_patch::patch_unsafe(doc, &patch).map_err(|_| Status::unprocessable())
}

/// Applies an RFC 7386 patch in place.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), Status> {
    if !patch.is_object() {
        return Err(Status::bad_request("json: cannot unmarshal patch into an object"));
    }
    json_patch::merge(doc, patch);
    Ok(())
}
