//! The scale subresource, the same for every kind that has one.

use axum::body::Body;
use coxswain_api::scale;
use coxswain_meta::Status;
use http::{Request, StatusCode};
use serde_json::Value;

use crate::handler::{Call, Part, Patch, read_document, render};
use crate::respond::{self, Outcome};

/// GET, PUT and PATCH of a `Scale`.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    if call.info.verb == "get" {
        let object = render::document(call.kind, &call.stored()?.bytes);
        return Ok(respond::json(StatusCode::OK, &scale::from_object(&object)));
    }
    let patch = if call.info.verb == "patch" {
        Err(Patch::read(request).await?)
    } else {
        Ok(read_document(request).await?.0)
    };
    let bytes = call
        .server
        .update(&call.change(Part::Main)?, |old| {
            let wanted = match &patch {
                Ok(document) => document.clone(),
                Err(patch) => patch.apply(call, &scale::from_object(old))?,
            };
            let errors = scale::validate(&wanted);
            if !errors.is_empty() {
                return Err(Status::invalid("autoscaling", "Scale", &call.info.name, &errors));
            }
            let mut new = old.clone();
            if let Some(metadata) = new["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            scale::into_object(&mut new, &wanted);
            Ok(new)
        })
        .await?;
    let object: Value = render::document(call.kind, &bytes);
    Ok(respond::json(StatusCode::OK, &scale::from_object(&object)))
}
