//! Binding, eviction and the parts of a pod that are written by subresources of their own.

use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use coxswain_meta::status::Cause;
use coxswain_meta::{ErrorList, Status};
use http::{Request, StatusCode};
use serde::Deserialize;

use super::{admit, read_option_document};
use crate::body::Body;
use crate::handler::{Call, Change, Deleted, Options, Part, Patch, check_type, read_document, render};
use crate::object::{Meta, now};
use crate::resource::Repeated;
use crate::respond::{self, Outcome};
use crate::webhook::Verb;

/// POST of a `Binding`: the scheduler's decision.
pub async fn bind(call: &Call, request: Request<Body>) -> Outcome {
    let binding = read_option_document(request, "core", "Binding").await?;
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    if node.is_empty() {
        let path = coxswain_meta::field::Path::new("target").child("name");
        let mut errors = ErrorList::new();
        errors.push(coxswain_meta::field::FieldError::required(&path, ""));
        return Err(Status::invalid("", "Binding", &call.info.name, &errors));
    }
    admit(call, Verb::Create, ("", "v1", "Binding"), binding.clone()).await?;
    let (wanted_uid, name) = (binding.meta_str("uid").to_owned(), &call.info.name);
    let conflict = |why: &str| Status::conflict("", "pods/binding", name, why);
    call.server
        .update(&call.change(Part::Verbatim)?, |old| {
            let bound = old["spec"]["nodeName"].as_str().unwrap_or_default();
            if !wanted_uid.is_empty() && wanted_uid != old.meta_str("uid") {
                return Err(conflict("the UID in the binding does not match the pod's"));
            }
            if old.is_deleting() {
                return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if !bound.is_empty() {
                return Err(conflict(&format!("pod {name} is already assigned to node \"{bound}\"")));
            }
            if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut new = old.clone();
            new.meta_mut().remove("resourceVersion");
            new["spec"]["nodeName"] = node.as_str().into();
            for (key, value) in binding.meta()["annotations"].as_object().into_iter().flatten() {
                let annotations = new.meta_mut().entry("annotations").or_insert_with(|| json!({}));
                annotations[key] = value.clone();
            }
            set_scheduled(&mut new);
            Ok(new)
        })
        .await?;
    let mut status = Status::success(None);
    status.code = 201;
    Ok(respond::json(StatusCode::CREATED, &status))
}

fn set_scheduled(pod: &mut Value) {
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now() }));
    pod["status"]["conditions"] = conditions.into();
}

/// POST of an `Eviction`: a delete that the disruption budgets may refuse.
pub async fn evict(call: &Call, request: Request<Body>) -> Outcome {
    let eviction = read_option_document(request, "policy", "Eviction").await?;
    let options = Options::deserialize(&eviction["deleteOptions"]).unwrap_or_default();
    admit(call, Verb::Create, ("policy", "v1", "Eviction"), eviction).await?;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let pod = call.server.read("", "pods", namespace, name).ok_or_else(|| call.not_found())?;
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if !ended && !pod.is_deleting() {
        disrupt(call, &pod).await?;
    }
    if options.dry_run.is_empty() && !call.dry_run()? {
        mark_disrupted(call).await?;
    }
    match call.server.delete(&call.kind, &call.user, namespace, name, &options).await? {
        Deleted::Gone(_) | Deleted::Pending(_) => {
            let mut status = Status::success(None);
            status.code = 201;
            Ok(respond::json(StatusCode::CREATED, &status))
        }
    }
}

/// Says in the pod's status that it ends by no fault of its own (KEP-3329).
async fn mark_disrupted(call: &Call) -> Result<(), Status> {
    let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": now() });
    let marked = |pod: &Value| {
        let mut new = pod.clone();
        let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|other| other["type"] != condition["type"]);
        conditions.push(condition.clone());
        new["status"]["conditions"] = conditions.into();
        Ok(new)
    };
    call.server.update(&call.change(Part::Verbatim)?, marked).await.map(drop)
}

/// Takes one disruption from the pod's budget, or refuses.
async fn disrupt(call: &Call, pod: &Value) -> Result<(), Status> {
    let budgets: Vec<Value> = call
        .server
        .read_all("policy", "poddisruptionbudgets", &call.info.namespace)
        .into_iter()
        .filter(|budget| {
            Selector::from_label_selector(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches_json(&pod.meta()["labels"]))
        })
        .collect();
    let (budget, kind) = match (budgets.as_slice(), call.server.find("policy", "v1", "poddisruptionbudgets"))
    {
        ([], _) | (_, None) => return Ok(()),
        ([budget], Some(kind)) => (budget, kind),
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let change = Change {
        kind: &kind,
        user: &call.user,
        namespace: &call.info.namespace,
        name: budget.name(),
        part: Part::Verbatim,
        dry_run: call.dry_run()?,
        manager: None,
    };
    let taken = |budget: &Value| {
        let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
        if allowed <= 0 {
            let mut status = Status::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                0,
            );
            status.details.get_or_insert_default().causes.push(Cause {
                reason: "DisruptionBudget".into(),
                message: format!(
                    "The disruption budget {} needs {} healthy pods and has {} currently",
                    budget.name(),
                    budget["status"]["desiredHealthy"].as_i64().unwrap_or(0),
                    budget["status"]["currentHealthy"].as_i64().unwrap_or(0)
                ),
                field: String::new(),
            });
            return Err(status);
        }
        let mut new = budget.clone();
        new["status"]["disruptionsAllowed"] = (allowed - 1).into();
        new["status"]["disruptedPods"][pod.name()] = now().into();
        Ok(new)
    };
    call.server.update(&change, taken).await.map(drop)
}

/// PUT and PATCH of `ephemeralcontainers` and `resize`: one part of the spec, everything else stays.
pub async fn replace_part(call: &Call, request: Request<Body>) -> Outcome {
    if call.info.verb == "get" {
        return call.get().await;
    }
    let patch = if call.info.verb == "patch" {
        Err(Patch::read(call, request).await?)
    } else {
        Ok(read_document(request).await?.0)
    };
    let ephemeral = call.info.subresource == "ephemeralcontainers";
    let bytes = call
        .server
        .update(&call.change(Part::Verbatim)?, |old| {
            let mut sent = match &patch {
                Ok(document) => document.clone(),
                Err(patch) => patch.apply(call, old)?,
            };
            check_type(&call.kind, &mut sent)?;
            call.decode(&mut sent, Repeated::default())?;
            call.kind.default(&mut sent)?;
            let mut new = old.clone();
            new["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
            if ephemeral {
                add_ephemeral(call, &mut new, &sent)?;
            } else {
                for list in ["containers", "initContainers"] {
                    copy_resources(new["spec"].get_mut(list), &sent["spec"][list]);
                }
            }
            let generation = old.meta()["generation"].as_i64().unwrap_or(0);
            if new["spec"] != old["spec"] {
                new.meta_mut().insert("generation", (generation + 1).into());
            }
            let errors = call.kind.validate_create(&new);
            if !errors.is_empty() {
                return Err(Status::invalid("", "Pod", &call.info.name, &errors));
            }
            Ok(new)
        })
        .await?;
    Ok(respond::json_bytes(StatusCode::OK, render::bytes(&call.kind, &bytes)))
}

/// Ephemeral containers are added, never changed or removed.
fn add_ephemeral(call: &Call, new: &mut Value, sent: &Value) -> Result<(), Status> {
    let before = new["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let after = sent["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    if before.iter().any(|container| !after.contains(container)) {
        let path = coxswain_meta::field::Path::new("spec").child("ephemeralContainers");
        let mut errors = ErrorList::new();
        errors.push(coxswain_meta::field::FieldError::forbidden(
            &path,
            "existing ephemeral containers may not be changed or removed",
        ));
        return Err(Status::invalid("", "Pod", &call.info.name, &errors));
    }
    if !after.is_empty() {
        new["spec"]["ephemeralContainers"] = after.into();
    }
    Ok(())
}

fn copy_resources(new: Option<&mut Value>, sent: &Value) {
    for container in new.and_then(Value::as_array_mut).into_iter().flatten() {
        let same = sent.as_array().into_iter().flatten().find(|other| other["name"] == container["name"]);
        if let Some(same) = same {
            for field in ["resources", "resizePolicy"] {
                if !same[field].is_null() {
                    container[field] = same[field].clone();
                }
            }
        }
    }
}
