//! Kinds that are asked, not stored: access, rules, token and self reviews.

use std::sync::Arc;

use axum::body::Body;
use coxswain_meta::Status;
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::read_option_document;
use crate::Server;
use crate::authn::UserInfo;
use crate::authz::Attributes;
use crate::handler::{Form, Shape, render};
use crate::request::RequestInfo;
use crate::respond::{self, Outcome};

/// A kind of review.
pub struct Review {
    /// Group; the version is always v1.
    pub group: &'static str,
    /// Plural.
    pub plural: &'static str,
    /// Singular.
    pub singular: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether it is asked in a namespace.
    pub namespaced: bool,
    decide: fn(&Server, &UserInfo, &RequestInfo, &Value) -> Result<Value, Status>,
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// Every review.
pub static KINDS: &[Review] = &[
    Review {
        group: AUTHENTICATION,
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        namespaced: false,
        decide: myself,
    },
    Review {
        group: AUTHENTICATION,
        plural: "tokenreviews",
        singular: "tokenreview",
        kind: "TokenReview",
        namespaced: false,
        decide: token,
    },
    Review {
        group: AUTHORIZATION,
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        kind: "LocalSubjectAccessReview",
        namespaced: true,
        decide: subject_access,
    },
    Review {
        group: AUTHORIZATION,
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        namespaced: false,
        decide: my_access,
    },
    Review {
        group: AUTHORIZATION,
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        namespaced: false,
        decide: my_rules,
    },
    Review {
        group: AUTHORIZATION,
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        kind: "SubjectAccessReview",
        namespaced: false,
        decide: subject_access,
    },
];

/// The review that a request asks for.
pub fn find(info: &RequestInfo) -> Option<&'static Review> {
    KINDS
        .iter()
        .find(|review| review.group == info.group && info.version == "v1" && review.plural == info.resource)
}

impl Review {
    /// Answers a POST of a review.
    pub async fn answer(
        &self,
        server: &Arc<Server>,
        user: &UserInfo,
        info: &RequestInfo,
        request: Request<Body>,
    ) -> Outcome {
        if info.verb != "create" || !info.name.is_empty() {
            return Err(Status::method_not_allowed_here());
        }
        // A review is no object of a collection: there are no columns and no metadata of it to show.
        if Form::accepted(request.headers(), true)?.shape != Shape::Object {
            return Err(Status::not_acceptable(&["application/json", "application/yaml", render::PROTOBUF]));
        }
        let mut review = read_option_document(request, self.kind).await?;
        if !review.is_object() {
            return Err(Status::bad_request(format!("the body is no {}", self.kind)));
        }
        review["status"] = (self.decide)(server, user, info, &review["spec"])?;
        review["kind"] = self.kind.into();
        review["apiVersion"] = format!("{}/v1", self.group).into();
        if !review["metadata"].is_object() {
            review["metadata"] = json!({ "creationTimestamp": null });
        }
        Ok(respond::json(StatusCode::CREATED, &review))
    }
}

fn attributes(spec: &Value) -> Result<Attributes<'_>, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        return Err(Status::bad_request(
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    fn of<'a>(value: &'a Value, field: &str) -> &'a str {
        value[field].as_str().unwrap_or_default()
    }
    Ok(if path.is_object() {
        Attributes { verb: of(path, "verb"), path: of(path, "path"), ..Attributes::default() }
    } else {
        Attributes {
            verb: of(resource, "verb"),
            group: of(resource, "group"),
            resource: of(resource, "resource"),
            subresource: of(resource, "subresource"),
            name: of(resource, "name"),
            namespace: of(resource, "namespace"),
            path: "",
        }
    })
}

fn verdict(server: &Server, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let verdict = server.decide(user, &attributes(spec)?);
    let mut status = json!({ "allowed": verdict.allowed });
    if !verdict.reason.is_empty() {
        status["reason"] = verdict.reason.into();
    }
    Ok(status)
}

fn my_access(server: &Server, user: &UserInfo, _: &RequestInfo, spec: &Value) -> Result<Value, Status> {
    verdict(server, user, spec)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn subject_access(server: &Server, _: &UserInfo, info: &RequestInfo, spec: &Value) -> Result<Value, Status> {
    let namespace = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    if !info.namespace.is_empty() && namespace != info.namespace {
        return Err(Status::bad_request("spec.resourceAttributes.namespace must match metadata.namespace"));
    }
    let name = spec["user"].as_str().unwrap_or_default().to_owned();
    let user = UserInfo { name, groups: strings(&spec["groups"]), ..UserInfo::default() };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Status::bad_request(
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    verdict(server, &user, spec)
}

fn my_rules(server: &Server, user: &UserInfo, _: &RequestInfo, spec: &Value) -> Result<Value, Status> {
    let namespace = spec["namespace"].as_str().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.ok_or_else(|| Status::bad_request("no namespace on request"))?;
    let (paths, resources): (Vec<_>, Vec<_>) =
        server.rules_of(user, namespace).into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
    Ok(json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false }))
}

fn myself(_: &Server, user: &UserInfo, _: &RequestInfo, _: &Value) -> Result<Value, Status> {
    Ok(json!({ "userInfo": user.to_json() }))
}

fn token(server: &Server, _: &UserInfo, _: &RequestInfo, spec: &Value) -> Result<Value, Status> {
    let audiences = strings(&spec["audiences"]);
    let found = server.user_of_token(spec["token"].as_str().unwrap_or_default(), &audiences);
    Ok(match found {
        Some(user) => {
            let audiences = if audiences.is_empty() { vec![server.tokens.issuer.clone()] } else { audiences };
            json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
        }
        None => json!({ "user": {}, "error": "invalid bearer token" }),
    })
}
