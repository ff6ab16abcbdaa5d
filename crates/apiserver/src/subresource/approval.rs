//! Approval of certificate signing requests: only the conditions of the status change. Who may is admission's to say.

use coxswain_meta::Status;
use coxswain_meta::field::{ErrorList, FieldError, Path};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::handler::{Call, Part, Patch, check_type, read_document, render};
use crate::object::{Meta, now};
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
        call.decode(&mut sent, Vec::new())?;
        let mut new = old.clone();
        new["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
        for list in ["annotations", "labels", "managedFields"] {
            match sent.meta().get(list) {
                Some(kept) => new["metadata"][list] = kept.clone(),
                None => drop(new.meta_mut().remove(list)),
            }
        }
        let mut conditions = sent["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let errors = validate(&conditions, old);
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

fn validate(new: &[Value], old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status").child("conditions");
    for (at, condition) in new.iter().enumerate() {
        let path = path.index(at);
        let (kind, status) = (condition["type"].as_str().unwrap_or_default(), condition["status"].as_str());
        if kind.is_empty() {
            errors.push(FieldError::required(&path.child("type"), ""));
        }
        match (kind, status) {
            (_, None | Some("")) => errors.push(FieldError::required(&path.child("status"), "")),
            ("Approved" | "Denied" | "Failed", Some(status)) if status != "True" => {
                errors.push(FieldError::not_supported(&path.child("status"), status, &["True"]));
            }
            _ => {}
        }
        if matches!(kind, "Approved" | "Denied") {
            let other = if kind == "Approved" { "Denied" } else { "Approved" };
            if of_kind(&new[..at], other).is_some() {
                errors.push(FieldError::invalid(
                    &path.child("type"),
                    kind,
                    "Approved and Denied conditions are mutually exclusive",
                ));
            }
        }
    }
    for kind in ["Approved", "Denied", "Failed"] {
        if of_kind(conditions(old), kind).is_some() && of_kind(new, kind).is_none() {
            errors.push(FieldError::forbidden(
                &path,
                format!("updates may not remove a condition of type {kind:?}"),
            ));
        }
    }
    errors
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
