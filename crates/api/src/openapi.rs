//! OpenAPI documents, built on demand from the packed definitions.

use serde_json::Value;

/// `/openapi/v3`: path → document URL with its hash.
pub fn v3_index() -> Value {
    Value::Null
}

/// `/openapi/v3/<path>` for `api/v1`, `apis/apps/v1`, …; `None` for an unknown path.
pub fn v3_document(_path: &str) -> Option<Vec<u8>> {
    None
}

/// `/openapi/v2` as JSON.
pub fn v2_json() -> Vec<u8> {
    Vec::new()
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf() -> Vec<u8> {
    Vec::new()
}
