//! The `Status` object: how every failure is told to a client, worded as upstream words it.

use std::ops::{Deref, DerefMut};

use crate::json::Map;
use serde::{Deserialize, Serialize};

use crate::field::ErrorList;

/// Message of a lost optimistic lock (a stale `resourceVersion` in an update).
pub const OBJECT_MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// A v1 `Status` object; boxed, since it is the error half of every result on the request path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(transparent)]
#[error("{}", .0.message)]
pub struct Status(Box<Body>);

impl Deref for Status {
    type Target = Body;
    fn deref(&self) -> &Body {
        &self.0
    }
}

impl DerefMut for Status {
    fn deref_mut(&mut self) -> &mut Body {
        &mut self.0
    }
}

/// The fields of a [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    pub api_version: String,
    /// List metadata, empty for statuses.
    #[serde(default)]
    pub metadata: Map,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: String,
    /// Human-readable text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Machine-readable reason, such as `NotFound`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the failure is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP code.
    #[serde(default)]
    pub code: u16,
}

/// What a `Status` is about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Object name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (plural), or kind for validation failures.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// UID, where one object is meant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The single causes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds to wait before another attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One cause of a failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// Such as `FieldValueRequired`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Text without the field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Field path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// `pods`, `deployments.apps`: a resource or kind with its group, as messages show it.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { [resource, ".", group].concat() }
}

impl Status {
    /// A failure with the given code, reason and message, and no details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status(Box::new(Body {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }))
    }

    /// A success, as deletion answers it.
    pub fn success(details: Option<Details>) -> Self {
        let mut success = Status::failure(200, "", "");
        success.status = "Success".into();
        success.details = details;
        success
    }

    /// The same status with these details.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    fn about(self, group: &str, kind: &str, name: &str) -> Self {
        self.with_details(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Details::default()
        })
    }

    fn retry(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_with(Details::default).retry_after_seconds = seconds;
        self
    }

    /// 404: the named object does not exist.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Status::failure(404, "NotFound", message).about(group, resource, name)
    }

    /// 404: there is no such path.
    pub fn unknown_path() -> Self {
        Status::failure(404, "NotFound", "the server could not find the requested resource")
            .with_details(Details::default())
    }

    /// 409: an object of that name exists.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Status::failure(409, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409: a precondition or the optimistic lock failed; see [`OBJECT_MODIFIED`].
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource));
        Status::failure(409, "Conflict", message).about(group, resource, name)
    }

    /// 422: validation failed.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let message = format!("{} \"{name}\" is invalid: {errors}", qualified(group, kind));
        Status::failure(422, "Invalid", message).with_details(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes: errors
                .iter()
                .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.field.clone() })
                .collect(),
            ..Details::default()
        })
    }

    /// 400 with the given text.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::failure(400, "BadRequest", message)
    }

    /// 403: `why` is the part after `is forbidden: `, such as `User "u" cannot get resource "pods" …`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let subject = qualified(group, resource);
        let message = if subject.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{subject} is forbidden: {why}")
        } else {
            format!("{subject} \"{name}\" is forbidden: {why}")
        };
        Status::failure(403, "Forbidden", message).about(group, resource, name)
    }

    /// 403 as the authorizer words it; an empty namespace means the cluster scope, `resource` may carry `/subresource`.
    pub fn forbidden_to_user(
        user: &str,
        verb: &str,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Self {
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let why =
            format!("User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {scope}");
        let main = resource.split('/').next().unwrap_or(resource);
        Status::forbidden(group, main, name, &why)
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Status::forbidden("", "", "", &format!("User \"{user}\" cannot {verb} path \"{path}\""))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Status::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 405: `action` is the API verb, such as `create`.
    pub fn method_not_allowed(group: &str, resource: &str, action: &str) -> Self {
        let message =
            format!("{action} is not supported on resources of kind \"{}\"", qualified(group, resource));
        Status::failure(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    /// 405 for a path that takes other HTTP methods only.
    pub fn method_not_allowed_here() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Status::failure(405, "MethodNotAllowed", message).with_details(Details::default())
    }

    /// 415: the body's content type is none of `accepted`.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::failure(415, "UnsupportedMediaType", message)
    }

    /// 406: none of the types the client accepts can be produced.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::failure(406, "NotAcceptable", message)
    }

    /// 406 or 415, in the words of upstream's router, which refuses before a handler looks.
    pub fn not_routed(code: u16, what: &str) -> Self {
        let reason = if code == 406 { "NotAcceptable" } else { "UnsupportedMediaType" };
        Status::failure(code, reason, format!("{code}: {what}")).with_details(Details::default())
    }

    /// 413: the body is larger than `limit_bytes`.
    pub fn too_large(limit_bytes: u64) -> Self {
        let message = format!("Request entity too large: limit is {limit_bytes}");
        Status::failure(413, "RequestEntityTooLarge", message)
    }

    /// 410: the asked-for revision is compacted.
    pub fn too_old(requested: u64, oldest: u64) -> Self {
        Status::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 410 with reason `Expired`, such as for an old continue token.
    pub fn expired(message: impl Into<String>) -> Self {
        Status::failure(410, "Expired", message)
    }

    /// 410 with reason `Gone`.
    pub fn gone(message: impl Into<String>) -> Self {
        Status::failure(410, "Gone", message)
    }

    /// 504 with a hint when to try again.
    pub fn timeout(why: &str, retry_seconds: u32) -> Self {
        Status::failure(504, "Timeout", format!("Timeout: {why}")).retry(retry_seconds)
    }

    /// 504: the asked-for revision is newer than the store's.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let mut status =
            Status::timeout(&format!("Too large resource version: {requested}, current: {current}"), 1);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                ..Cause::default()
            });
        }
        status
    }

    /// 429 with a hint when to try again.
    pub fn too_many_requests(message: impl Into<String>, retry_seconds: u32) -> Self {
        Status::failure(429, "TooManyRequests", message).retry(retry_seconds)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Status::failure(503, "ServiceUnavailable", message)
    }

    /// 500 with a text fit for clients; log the detail, do not pass it here.
    pub fn internal(why: &str) -> Self {
        Status::failure(500, "InternalError", format!("Internal error occurred: {why}")).with_details(
            Details { causes: vec![Cause { message: why.into(), ..Cause::default() }], ..Details::default() },
        )
    }

    /// 422 for a patch that cannot be applied; upstream's answer does not say why.
    pub fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Status::failure(422, "Invalid", message).with_details(Details::default())
    }
}
