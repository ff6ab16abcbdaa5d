//! TokenRequest: short-lived tokens of a service account, bound to an object.

use coxswain_meta::Status;
use coxswain_meta::field::{ErrorList, FieldError, Path};
use coxswain_meta::json::{Value, json};
use http::{Request, StatusCode};
use uuid::Uuid;

use super::read_option_document;
use crate::authn::{Claims, epoch_seconds};
use crate::body::Body;
use crate::handler::Call;
use crate::object::{Meta, time_after};
use crate::respond::{self, Outcome};
use crate::webhook::Verb;

const SHORTEST_SECONDS: i64 = 600;
const LONGEST_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 3600;
/// Kubelets ask for this odd span; their tokens live a year so that old clients that do not reload survive an upgrade.
const KUBELET_SECONDS: i64 = 3607;

/// POST of a `TokenRequest`.
pub async fn request(call: &Call, request: Request<Body>) -> Outcome {
    let mut review = read_option_document(request, "authentication", "TokenRequest").await?;
    let own = ("authentication.k8s.io", "v1", "TokenRequest");
    super::admit(call, Verb::Create, own, review.clone()).await?;
    let account = call
        .server
        .read("", "serviceaccounts", &call.info.namespace, &call.info.name)
        .ok_or_else(|| call.not_found())?;
    let seconds = review["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let path = Path::new("spec").child("expirationSeconds");
    let mut errors = ErrorList::new();
    if seconds < SHORTEST_SECONDS {
        errors.push(FieldError::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    } else if seconds > LONGEST_SECONDS {
        errors.push(FieldError::invalid(
            &path,
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", &call.info.name, &errors));
    }
    let issuer = call.server.tokens.issuer.clone();
    let audiences = review["spec"]["audiences"].as_array().filter(|list| !list.is_empty());
    let audiences: Vec<String> = match audiences {
        Some(list) => list.iter().filter_map(|audience| audience.as_str().map(str::to_owned)).collect(),
        None => vec![issuer.clone()],
    };
    let life = if seconds == KUBELET_SECONDS { 365 * 24 * 3600 } else { seconds };
    let now = epoch_seconds();
    let mut claims = Claims {
        aud: audiences.clone(),
        exp: Some(now + life),
        iat: now,
        nbf: now,
        iss: issuer,
        jti: Some(Uuid::new_v4().to_string()),
        sub: format!("system:serviceaccount:{}:{}", call.info.namespace, call.info.name),
        ..Claims::default()
    };
    claims.kubernetes.namespace = call.info.namespace.clone();
    claims.kubernetes.serviceaccount.name = call.info.name.clone();
    claims.kubernetes.serviceaccount.uid = account.meta_str("uid").to_owned();
    bind(call, &review["spec"]["boundObjectRef"], &mut claims)?;
    let token = call.server.tokens.sign(&claims).map_err(|error| Status::internal(&error.to_string()))?;
    review["kind"] = "TokenRequest".into();
    review["apiVersion"] = "authentication.k8s.io/v1".into();
    review["metadata"] = json!({ "name": call.info.name, "namespace": call.info.namespace, "creationTimestamp": time_after(0) });
    review["spec"]["audiences"] = json!(audiences);
    review["spec"]["expirationSeconds"] = seconds.into();
    review["status"] = json!({ "token": token, "expirationTimestamp": time_after(seconds) });
    Ok(respond::json(StatusCode::CREATED, &review))
}

fn bind(call: &Call, reference: &Value, claims: &mut Claims) -> Result<(), Status> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let (plural, slot) = match kind {
        "" => return Ok(()),
        "Pod" => ("pods", &mut claims.kubernetes.pod),
        "Secret" => ("secrets", &mut claims.kubernetes.secret),
        "Node" => ("nodes", &mut claims.kubernetes.node),
        other => return Err(Status::bad_request(format!("cannot bind token to object of type {other}"))),
    };
    let namespace = if kind == "Node" { "" } else { &call.info.namespace };
    let object =
        call.server.read("", plural, namespace, name).ok_or_else(|| Status::not_found("", plural, name))?;
    if !text("uid").is_empty() && text("uid") != object.meta_str("uid") {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict("", plural, name, &why));
    }
    let bound = slot.insert(Default::default());
    (bound.name, bound.uid) = (name.to_owned(), object.meta_str("uid").to_owned());
    if kind == "Pod" {
        let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        if account != call.info.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                call.info.name
            )));
        }
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if let Some(node) = call.server.read("", "nodes", "", node) {
            let bound = claims.kubernetes.node.insert(Default::default());
            (bound.name, bound.uid) = (node.name().to_owned(), node.meta_str("uid").to_owned());
        }
    }
    Ok(())
}
