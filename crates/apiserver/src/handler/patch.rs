//! Patch: JSON patch, merge patch and strategic merge patch on the current object.

use axum::body::Body;
use coxswain_meta::Status;
use coxswain_meta::patch::{json_patch, merge_patch, strategic};
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde_json::Value;

use super::{Call, check_type, parse, read_body, render};
use crate::respond::{self, Outcome};

const MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

#[derive(Clone, Copy)]
enum Dialect {
    Json,
    Merge,
    Strategic,
}

/// A patch as it was sent.
pub struct Patch {
    dialect: Dialect,
    body: Value,
}

impl Patch {
    /// Reads the body of a PATCH.
    pub async fn read(request: Request<Body>) -> Result<Self, Status> {
        let media =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let dialect = match media.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Dialect::Json,
            "application/merge-patch+json" => Dialect::Merge,
            "application/strategic-merge-patch+json" => Dialect::Strategic,
            _ => return Err(Status::unsupported_media_type(MEDIA_TYPES)),
        };
        let (body, _) = parse(&read_body(request).await?)?;
        Ok(Self { dialect, body })
    }

    /// The patched document.
    pub fn apply(&self, call: &Call, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        // A patch insists on a resourceVersion only by naming one.
        if let Some(metadata) = new["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        match (self.dialect, call.kind.schema()) {
            (Dialect::Json, _) => json_patch(&mut new, &self.body)?,
            (Dialect::Strategic, Some(schema)) => strategic::apply(&mut new, &self.body, schema)?,
            (Dialect::Merge | Dialect::Strategic, _) => merge_patch(&mut new, &self.body)?,
        }
        Ok(new)
    }
}

impl Call {
    /// PATCH of an object or its status.
    pub async fn patch(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        let patch = Patch::read(request).await?;
        let mut warnings = Vec::new();
        let bytes = self
            .server
            .update(&self.change(self.part())?, |old| {
                let mut new = patch.apply(self, old)?;
                check_type(self.kind, &mut new)?;
                warnings = self.decode(&mut new, Vec::new())?;
                self.place(&mut new)?;
                if new["metadata"]["name"] != old["metadata"]["name"] {
                    return Err(Status::bad_request("the name of the object may not be changed by a patch"));
                }
                Ok(new)
            })
            .await?;
        let mut response = render::object(self.kind, form, StatusCode::OK, &bytes, self.include_object());
        respond::warn(&mut response, &warnings);
        Ok(response)
    }
}
