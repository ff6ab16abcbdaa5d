//! The scale subresource, the same for every kind that has one.

use coxswain_api::scale;
use coxswain_meta::Status;
use http::{Request, StatusCode};
use serde_json::Value;

use crate::body::Body;
use crate::handler::{Call, Part, Patch, read_document, render};
use crate::respond::{self, Outcome};

/// GET, PUT and PATCH of a `Scale`.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    if call.info.verb == "get" {
        let stored = call.server.served_one(&call.kind, call.stored()?).await?;
        let object = render::document(&call.kind, &stored.bytes);
        return Ok(respond::json(StatusCode::OK, &call.kind.scale_of(&object)));
    }
    let patch = if call.info.verb == "patch" {
        Err(Patch::read(call, request).await?)
    } else {
        Ok(read_document(request).await?.0)
    };
    let bytes = call
        .server
        .update(&call.change(Part::Main)?, |old| {
            let wanted = match &patch {
                Ok(document) => document.clone(),
                Err(patch) => patch.apply(call, &call.kind.scale_of(old))?,
            };
            let errors = scale::validate(&wanted);
            if !errors.is_empty() {
                return Err(Status::invalid("autoscaling", "Scale", &call.info.name, &errors));
            }
            let mut new = old.clone();
            if let Some(metadata) = new["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            call.kind.set_scale(&mut new, &wanted);
            Ok(new)
        })
        .await?;
    let object: Value = render::document(&call.kind, &bytes);
    Ok(respond::json(StatusCode::OK, &call.kind.scale_of(&object)))
}
