//! Kinds that are asked, not stored: access, rules, token and self reviews.

use std::sync::Arc;

use coxswain_meta::Status;
use coxswain_meta::field::{ErrorList, FieldError, Path};
use coxswain_meta::json::{Value, json};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, StatusCode};

use super::read_option_document;
use crate::Server;
use crate::authn::UserInfo;
use crate::authz::Attributes;
use crate::body::Body;
use crate::handler::{Form, Shape, render};
use crate::request::RequestInfo;
use crate::respond::{self, Outcome};

/// What a review finds: its status.
type Decide = for<'a> fn(&'a Server, &'a UserInfo, &'a RequestInfo, &'a Value) -> Finding<'a>;
type Finding<'a> = BoxFuture<'a, Result<Value, Status>>;

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
    decide: Decide,
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
        // A list may name its object too.
        let is_list = matches!(info.verb, "list" | "watch" | "deletecollection");
        if !info.name.is_empty() && !is_list {
            return Err(Status::unknown_path());
        }
        if info.verb != "create" {
            return Err(Status::method_not_allowed_here());
        }
        // A review is no object of a collection: there are no columns and no metadata of it to show.
        if Form::accepted(request.headers(), true)?.shape != Shape::Object {
            return Err(Status::not_acceptable(&["application/json", "application/yaml", render::PROTOBUF]));
        }
        let package = self.group.split('.').next().unwrap_or_default();
        let mut review = read_option_document(request, package, self.kind).await?;
        if !review.is_object() {
            return Err(Status::bad_request(format!("the body is no {}", self.kind)));
        }
        review["status"] = (self.decide)(server, user, info, &review).await?;
        review["kind"] = self.kind.into();
        review["apiVersion"] = format!("{}/v1", self.group).into();
        let is_bare = matches!(self.kind, "SelfSubjectReview" | "SelfSubjectRulesReview");
        if !review["metadata"].is_object() || is_bare {
            review["metadata"] = json!({ "creationTimestamp": null });
        }
        Ok(respond::json(StatusCode::CREATED, &review))
    }
}

/// What is wrong with a question about access.
fn validate(spec: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let at = Path::new("spec");
    match (resource.is_object(), path.is_object()) {
        (true, true) => {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid(&at.child("nonResourceAttributes"), internal(path), why));
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid(&at.child("resourceAttributes"), Value::Null, why));
        }
        _ => {}
    }
    errors
}

/// A question is no object: nothing is to be said of it but where it is asked.
fn validate_metadata(review: &Value, is_local: bool, errors: &mut ErrorList) {
    let said = |(key, value): (&str, &Value)| !(value.is_null() || is_local && key == "namespace");
    if review["metadata"].as_object().is_some_and(|metadata| metadata.iter().any(said)) {
        let why = if is_local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid(&Path::new("metadata"), review["metadata"].clone(), why));
    }
}

/// A path in the form upstream shows it.
fn internal(path: &Value) -> Value {
    let text = |key: &str| path[key].as_str().unwrap_or_default();
    json!({ "Path": text("path"), "Verb": text("verb") })
}

/// The question a review poses; a selector is given as text.
fn attributes<'a>(spec: &'a Value, selector: &'a str) -> Attributes<'a> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    fn of<'a>(value: &'a Value, field: &str) -> &'a str {
        value[field].as_str().unwrap_or_default()
    }
    if path.is_object() {
        Attributes { verb: of(path, "verb"), path: of(path, "path"), ..Attributes::default() }
    } else {
        Attributes {
            verb: of(resource, "verb"),
            group: of(resource, "group"),
            version: of(resource, "version"),
            resource: of(resource, "resource"),
            subresource: of(resource, "subresource"),
            name: of(resource, "name"),
            namespace: of(resource, "namespace"),
            path: "",
            field_selector: selector,
        }
    }
}

/// The field selector of a review, whichever way it is written.
fn selector(spec: &Value) -> String {
    let selector = &spec["resourceAttributes"]["fieldSelector"];
    if let Some(raw) = selector["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    let equal =
        requirements.into_iter().filter(|term| term["operator"] == "In" && term["values"][1].is_null());
    let terms =
        equal.filter_map(|term| Some(format!("{}={}", term["key"].as_str()?, term["values"][0].as_str()?)));
    terms.collect::<Vec<_>>().join(",")
}

async fn verdict(server: &Server, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let verdict = server.ask(user, &attributes(spec, &selector(spec))).await;
    let mut status = json!({ "allowed": verdict.allowed });
    if verdict.denied {
        status["denied"] = true.into();
    }
    if !verdict.reason.is_empty() {
        status["reason"] = verdict.reason.into();
    }
    Ok(status)
}

fn refused(kind: &str, errors: &ErrorList) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(AUTHORIZATION, kind, "", errors)) }
}

fn my_access<'a>(
    server: &'a Server,
    user: &'a UserInfo,
    _: &'a RequestInfo,
    review: &'a Value,
) -> Finding<'a> {
    async move {
        let mut errors = validate(&review["spec"]);
        validate_metadata(review, false, &mut errors);
        refused("SelfSubjectAccessReview", &errors)?;
        verdict(server, user, &review["spec"]).await
    }
    .boxed()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn subject_access<'a>(
    server: &'a Server,
    _: &'a UserInfo,
    info: &'a RequestInfo,
    review: &'a Value,
) -> Finding<'a> {
    async move {
        let spec = &review["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
        let extra = spec["extra"].as_object().into_iter().flatten();
        let extra = extra.map(|(key, values)| (key.to_owned(), strings(values))).collect();
        let user = UserInfo { name: text("user"), uid: text("uid"), groups: strings(&spec["groups"]), extra };
        let local = !info.namespace.is_empty();
        let mut errors = validate(spec);
        if user.name.is_empty() && user.groups.is_empty() {
            let why = "at least one of user or group must be specified";
            errors.push(FieldError::invalid(&Path::new("spec").child("user"), "", why));
        }
        validate_metadata(review, local, &mut errors);
        if local {
            validate_local(review, &info.namespace, &mut errors);
        }
        refused(if local { "LocalSubjectAccessReview" } else { "SubjectAccessReview" }, &errors)?;
        verdict(server, &user, spec).await
    }
    .boxed()
}

/// A question asked in a namespace is about that namespace.
fn validate_local(review: &Value, namespace: &str, errors: &mut ErrorList) {
    let spec = &review["spec"];
    let asked = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    if spec["resourceAttributes"].is_object() && asked != namespace {
        let at = Path::new("spec.resourceAttributes.namespace");
        errors.push(FieldError::invalid(&at, asked, "must match metadata.namespace"));
    }
    if spec["nonResourceAttributes"].is_object() {
        let shown = internal(&spec["nonResourceAttributes"]);
        let at = Path::new("spec.nonResourceAttributes");
        errors.push(FieldError::invalid(&at, shown, "disallowed on this kind of request"));
    }
}

fn my_rules<'a>(
    server: &'a Server,
    user: &'a UserInfo,
    _: &'a RequestInfo,
    review: &'a Value,
) -> Finding<'a> {
    let found = || {
        let namespace = review["spec"]["namespace"].as_str().filter(|namespace| !namespace.is_empty());
        let namespace = namespace.ok_or_else(|| Status::bad_request("no namespace on request"))?;
        let (paths, resources): (Vec<_>, Vec<_>) =
            server.rules_of(user, namespace).into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        Ok(json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false }))
    };
    std::future::ready(found()).boxed()
}

fn myself<'a>(_: &'a Server, user: &'a UserInfo, _: &'a RequestInfo, _: &'a Value) -> Finding<'a> {
    std::future::ready(Ok(json!({ "userInfo": user.to_json() }))).boxed()
}

fn token<'a>(server: &'a Server, _: &'a UserInfo, _: &'a RequestInfo, review: &'a Value) -> Finding<'a> {
    async move {
        let spec = &review["spec"];
        let audiences = strings(&spec["audiences"]);
        let found = server.user_of_token(spec["token"].as_str().unwrap_or_default(), &audiences).await;
        Ok(match found {
            Some(user) => {
                let audiences =
                    if audiences.is_empty() { vec![server.tokens.issuer.clone()] } else { audiences };
                json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
            }
            None => json!({ "user": {}, "error": "invalid bearer token" }),
        })
    }
    .boxed()
}
