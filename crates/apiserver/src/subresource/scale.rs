//! The scale subresource, the same for every kind that has one.

use coxswain_api::scale;
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value, json};
use http::{Request, StatusCode};

use crate::body::Body;
use crate::handler::{Call, FieldManager, Part, Patch, render};
use crate::object::{MANAGED_FIELDS, Meta, read_managers};
use crate::resource::{Forms, Resource};
use crate::respond::{self, Outcome};

/// What a request wants a scale to be.
enum Wanted {
    Document(Value),
    Patch(Patch),
}

/// GET, PUT and PATCH of a `Scale`.
pub async fn answer(call: &Call, request: Request<Body>) -> Outcome {
    if call.info.verb == "get" {
        let stored = call.server.served_one(&call.kind, call.stored()?).await?;
        let object = render::document(&call.kind, &stored.bytes);
        return Ok(respond::json(StatusCode::OK, &call.kind.scale_of(&object)));
    }
    let view = Call { kind: Resource::BuiltIn(&scale::KIND), ..call.clone() };
    let mut warnings = Vec::new();
    let wanted = if call.info.verb == "patch" {
        Wanted::Patch(Patch::read(call, request).await?)
    } else {
        let (document, faults) = view.read_update(request).await?;
        warnings = faults;
        Wanted::Document(document)
    };
    let mut change = call.change(Part::Main)?;
    let applies = matches!(&wanted, Wanted::Patch(patch) if patch.is_apply());
    if applies {
        change.manager = None;
    }
    let bytes = call
        .server
        .update(&change, |old| {
            let new_scale = match &wanted {
                Wanted::Document(document) => document.clone(),
                Wanted::Patch(patch) if applies => view.applied(patch, &scale_with_managers(call, old))?,
                Wanted::Patch(patch) => {
                    view.patched(patch, &scale_with_managers(call, old), &mut warnings)?
                }
            };
            if matches!(wanted, Wanted::Patch(_)) {
                check_uid(call, &new_scale, old)?;
            }
            let errors = scale::validate(&new_scale);
            if !errors.is_empty() {
                return Err(Status::invalid("autoscaling", "Scale", &call.info.name, &errors));
            }
            let mut new = old.clone();
            new.meta_mut().remove("resourceVersion");
            if applies {
                new = FieldManager::of(call).apply(
                    &Forms::of(&call.kind),
                    &new,
                    &configuration(call, &new_scale),
                    true,
                )?;
            }
            call.kind.set_scale(&mut new, &new_scale);
            if let Some(uid) = new_scale.meta().get("uid") {
                new.meta_mut().insert("uid", uid.clone());
            }
            Ok(new)
        })
        .await?;
    let object: Value = render::document(&call.kind, &bytes);
    let mut response = respond::json(StatusCode::OK, &call.kind.scale_of(&object));
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// The replicas alone, as a configuration of the object.
fn configuration(call: &Call, scale: &Value) -> Value {
    let mut out = json!({});
    call.kind.set_scale(&mut out, scale);
    out["apiVersion"] = call.kind.api_version().into();
    out["kind"] = call.kind.kind().into();
    out["metadata"] = json!({ "name": call.info.name });
    out
}

/// The scale of an object, owned by those who own the replicas.
fn scale_with_managers(call: &Call, object: &Value) -> Value {
    let mut scale = call.kind.scale_of(object);
    let mut object = object.clone();
    read_managers(&mut object);
    let mut owned = &configuration(call, &json!({ "spec": { "replicas": 1 } }));
    let mut way = Vec::new();
    while let Some((name, inner)) = owned.as_object().and_then(|members| replicas_lie_in(members)) {
        way.push(format!("f:{name}"));
        owned = inner;
    }
    let entries = object.meta()[MANAGED_FIELDS].as_array().into_iter().flatten();
    let owners: Vec<Value> = entries
        .filter(|entry| way.iter().try_fold(&entry["fieldsV1"], |at, name| at.get(name)).is_some())
        .map(|entry| {
            let mut entry = entry.clone();
            entry["apiVersion"] = "autoscaling/v1".into();
            entry["fieldsV1"] = json!({ "f:spec": { "f:replicas": {} } });
            entry
        })
        .collect();
    if !owners.is_empty() {
        scale.meta_mut().insert(MANAGED_FIELDS, owners.into());
    }
    scale
}

/// The one member of a configuration that does not say what it is of.
fn replicas_lie_in(members: &Map) -> Option<(&str, &Value)> {
    members.iter().find(|(name, _)| !matches!(*name, "apiVersion" | "kind" | "metadata"))
}

/// 409 for a patch that makes it the scale of another object.
fn check_uid(call: &Call, scale: &Value, old: &Value) -> Result<(), Status> {
    let (sent, uid) = (scale.meta_str("uid"), old.meta_str("uid"));
    if sent.is_empty() || sent == uid {
        return Ok(());
    }
    let kind = &call.kind;
    let why = format!("Precondition failed: UID in precondition: {sent}, UID in object meta: {uid}");
    Err(Status::conflict(kind.group(), &format!("{}/scale", kind.plural()), &call.info.name, &why))
}
