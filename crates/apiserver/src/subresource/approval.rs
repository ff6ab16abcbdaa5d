//! Approval of certificate signing requests: only the conditions of the status change. Who may is admission's to say.

use coxswain_api::certificates;
use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use http::{Request, StatusCode};

use crate::body::Body;
use crate::handler::{Call, Part, Patch, check_type, read_document, render};
use crate::object::{Meta, now};
use crate::resource::Repeated;
use crate::respond::{self, Outcome};

/// GET, PUT and PATCH of `approval`.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    if call.info.verb == "get" {
        return call.get().await;
    }
    let patch = if call.info.verb == "patch" {
        Err(Patch::read(call, request).await?)
    } else {
        Ok(read_document(request).await?.0)
    };
    let change = |old: &Value| {
        let mut sent = match &patch {
            Ok(document) => document.clone(),
            Err(patch) => patch.apply(call, old)?,
        };
        check_type(&call.kind, &mut sent)?;
        call.decode(&mut sent, Repeated::default())?;
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
        for list in ["annotations", "labels", "managedFields"] {
            match sent.meta().get(list) {
                Some(kept) => new["metadata"][list] = kept.clone(),
                None => drop(new.meta_mut().remove(list)),
            }
        }
        let mut conditions = sent["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let errors = certificates::conditions(&sent, old);
        if !errors.is_empty() {
            return Err(Status::invalid(call.kind.group(), call.kind.kind(), &call.info.name, &errors));
        }
        stamp(&mut conditions, old);
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    };
    let bytes = call.server.update(&call.change(Part::Verbatim)?, change).await?;
    Ok(respond::json_bytes(StatusCode::OK, render::bytes(&call.kind, &bytes)))
}

fn of_kind<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|condition| condition["type"] == *kind)
}

fn conditions(request: &Value) -> &[Value] {
    request["status"]["conditions"].as_array().map_or(&[], Vec::as_slice)
}

/// Conditions carry the time they were given, and the time their status last changed.
fn stamp(conditions: &mut [Value], old: &Value) {
    for condition in conditions {
        let before = condition["type"].as_str().and_then(|kind| of_kind(self::conditions(old), kind));
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now().into();
        }
        if condition["lastTransitionTime"].is_null() {
            let kept = before.filter(|before| before["status"] == condition["status"]);
            condition["lastTransitionTime"] =
                kept.map_or_else(|| now().into(), |before| before["lastTransitionTime"].clone());
        }
    }
}
