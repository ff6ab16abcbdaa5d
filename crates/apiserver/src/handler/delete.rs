//! Delete: preconditions, propagation, finalizers and grace, then the commit.

use bytes::Bytes;
use coxswain_api::schema;
use coxswain_meta::json::Value;
use coxswain_meta::status::{Details, OBJECT_MODIFIED};
use coxswain_meta::{ErrorList, FieldError, Path, Status};
use coxswain_store::{CommitError, Expect, View};
use http::{Request, StatusCode};
use serde::Deserialize;

use super::create::unavailable;
use super::list_options::check_dry_run;
use super::update::finished;
use super::{Call, Stored, document, key, read_body, render};
use crate::admission::{Admission, Operation};
use crate::authn::UserInfo;
use crate::body::Body;
use crate::object::{Meta, ObjectView, attributes, encode, now, same_content, time_after, unread};
use crate::resource::Resource;
use crate::respond::{self, Outcome};
use crate::webhook::{Asked, Verb};
use crate::{Server, definitions};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// `DeleteOptions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    /// Seconds the object may take to end.
    pub grace_period_seconds: Option<i64>,
    /// What must hold of the object.
    pub preconditions: Option<Preconditions>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// The older way to say `Orphan`.
    pub orphan_dependents: Option<bool>,
    /// `All`, or nothing.
    pub dry_run: Vec<String>,
}

impl Options {
    /// All that is wrong with them.
    fn errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("propagationPolicy");
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(FieldError::invalid(&path, policy.as_str(), why));
            }
            let known = ["Foreground", "Background", "Orphan", "nil"];
            if !known[..3].contains(&policy.as_str()) {
                errors.push(FieldError::not_supported(&path, policy.as_str(), &known));
            }
        }
        errors.extend(check_dry_run(&self.dry_run));
        errors
    }
}

/// Conditions on the object's identity.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// Its uid.
    pub uid: Option<String>,
    /// Its resourceVersion.
    pub resource_version: Option<String>,
}

/// What a deletion came to.
pub enum Deleted {
    /// The object is gone; its last state.
    Gone(Bytes),
    /// The object waits for its grace period or finalizers.
    Pending(Bytes),
}

impl Call {
    /// The options of a deletion: what the body says, or else the query.
    async fn delete_options(&self, request: Request<Body>) -> Result<Options, Status> {
        let headers = request.headers().clone();
        let body = read_body(request).await?;
        let options = if body.is_empty() {
            Options {
                grace_period_seconds: self.query.integer("gracePeriodSeconds")?,
                preconditions: None,
                propagation_policy: self.query.get("propagationPolicy").map(str::to_owned),
                orphan_dependents: self
                    .query
                    .get("orphanDependents")
                    .map(|_| self.query.is_true("orphanDependents")),
                dry_run: self.query.all("dryRun").map(str::to_owned).collect(),
            }
        } else {
            let (value, _) = document(&headers, &body)?;
            let wrong = schema::by_name(DELETE_OPTIONS)
                .and_then(|of| schema::check(&value, of).errors.into_iter().next());
            if let Some(wrong) = wrong {
                return Err(Status::bad_request(wrong));
            }
            Options::deserialize(&value).map_err(|error| {
                Status::bad_request(format!(
                    "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: {error}"
                ))
            })?
        };
        let errors = options.errors();
        match errors.is_empty() {
            true => Ok(options),
            false => Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)),
        }
    }

    /// DELETE of an object.
    pub async fn delete(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        let options = self.delete_options(request).await?;
        let namespace = if self.kind.namespaced() { &self.info.namespace } else { "" };
        match self.server.delete(&self.kind, &self.user, namespace, &self.info.name, &options).await? {
            Deleted::Pending(bytes) => {
                Ok(render::object(&self.kind, form, StatusCode::OK, &bytes, self.include_object()))
            }
            Deleted::Gone(bytes) => {
                if self.kind.graceful() || self.kind.plural() == "namespaces" {
                    return Ok(render::object(
                        &self.kind,
                        form,
                        StatusCode::OK,
                        &bytes,
                        self.include_object(),
                    ));
                }
                let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let details = Details {
                    name: self.info.name.clone(),
                    group: self.kind.group().into(),
                    kind: self.kind.plural().into(),
                    uid: object.meta_str("uid").into(),
                    ..Details::default()
                };
                Ok(respond::json(StatusCode::OK, &Status::success(Some(details))))
            }
        }
    }

    /// DELETE of a collection.
    pub async fn delete_collection(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        let options = self.delete_options(request).await?;
        self.check_list_options(false)?;
        let selection = self.selection()?;
        let mut objects = self.collection().list(&selection.prefix);
        objects.retain(|object| selection.may_take(object));
        let mut objects = self.server.served(&self.kind, objects).await?;
        objects.retain(|object| selection.takes(object));
        for object in &objects {
            let (namespace, name) = object.name.split_once('/').unwrap_or(("", &object.name));
            match self.server.delete(&self.kind, &self.user, namespace, name, &options).await {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        let meta = render::list_meta(self.server.store.revision(), None);
        Ok(render::list(&self.kind, form, &objects, meta, self.include_object()))
    }
}

impl Server {
    /// Deletes an object, or marks it to be deleted. The one road for requests and for the server itself.
    pub async fn delete(
        &self,
        kind: &Resource,
        user: &UserInfo,
        namespace: &str,
        name: &str,
        options: &Options,
    ) -> Result<Deleted, Status> {
        let key = key(kind, namespace, name);
        let not_found = || Status::not_found(kind.group(), kind.plural(), name);
        let mut current = self.store.get(&key).ok_or_else(not_found)?;
        loop {
            let old = unread(&current.bytes);
            check_preconditions(kind, name, &old, &current, options)?;
            let target = (namespace, name);
            Admission { server: self, kind, user, operation: Operation::Delete, subresource: "", target }
                .validate(&old, Some(&old))?;
            let asked = Asked {
                server: self,
                kind,
                subresource: "",
                own_kind: None,
                verb: Verb::Delete,
                user,
                namespace,
                name,
                dry_run: !options.dry_run.is_empty(),
            };
            self.admit_mutating(&asked, &mut Value::Null, &old).await?;
            self.admit_validating(&asked, &Value::Null, &old).await?;
            let marked = mark(kind, old, options);
            let dry_run = !options.dry_run.is_empty();
            let committed = match &marked {
                Some(object) if dry_run => {
                    let bytes = ObjectView.stamp(&encode(object), current.revision);
                    return Ok(if finished(kind, object) {
                        Deleted::Gone(bytes)
                    } else {
                        Deleted::Pending(bytes)
                    });
                }
                None => return Ok(Deleted::Pending(current.bytes.clone())),
                Some(object) if finished(kind, object) => self
                    .store
                    .delete(key.clone(), current.revision)
                    .await
                    .map(|gone| Deleted::Gone(gone.bytes.clone())),
                Some(object) => {
                    let put = self.store.put(
                        key.clone(),
                        Expect::At(current.revision),
                        encode(object),
                        attributes(kind, object),
                    );
                    put.await.map(|object| Deleted::Pending(object.bytes.clone()))
                }
            };
            match committed {
                Ok(deleted) => return Ok(deleted),
                Err(CommitError::Conflict(newer)) => current = newer.ok_or_else(not_found)?,
                Err(CommitError::Unavailable(error)) => return Err(unavailable(&error)),
            }
        }
    }
}

fn check_preconditions(
    kind: &Resource,
    name: &str,
    old: &Value,
    current: &Stored,
    options: &Options,
) -> Result<(), Status> {
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let refuse = |what: &str, wanted: &str, found: &str, then: &str| {
        if has_own_road(kind) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(Status::conflict(kind.group(), kind.plural(), name, &why));
        }
        let why = format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {then}"
        );
        Err(Status::conflict(kind.storage().0, kind.kind(), name, &why))
    };
    match (&wanted.uid, &wanted.resource_version) {
        (Some(uid), _) if uid != old.meta_str("uid") => {
            refuse("UID", uid, old.meta_str("uid"), "deleted and then recreated")
        }
        (_, Some(version)) if *version != current.revision.to_string() => {
            if version.is_empty() {
                return Err(Status::conflict(kind.group(), kind.plural(), name, OBJECT_MODIFIED));
            }
            refuse("ResourceVersion", version, &current.revision.to_string(), "modified")
        }
        _ => Ok(()),
    }
}

/// Namespaces and definitions are marked as they are: what is in them goes first.
fn has_own_road(kind: &Resource) -> bool {
    kind.is_core("namespaces")
        || kind.plural() == "customresourcedefinitions" && kind.group() == "apiextensions.k8s.io"
}

/// The object as the deletion leaves it; none where it changes nothing.
fn mark(kind: &Resource, mut object: Value, options: &Options) -> Option<Value> {
    let before = object.is_deleting().then(|| object.clone());
    propagate(kind, &mut object, options);
    let grace = grace_seconds(kind, &object, options);
    if let Some(before) = before {
        let left = object.meta()["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if grace < left {
            object.meta_mut().insert("deletionGracePeriodSeconds", grace.into());
            object.meta_mut().insert("deletionTimestamp", time_after(grace).into());
        }
        object.meta_mut().remove("resourceVersion");
        return (finished(kind, &object) || !same_content(&object, &before)).then_some(object);
    }
    let metadata = object.meta_mut();
    metadata.insert("deletionTimestamp", if grace > 0 { time_after(grace) } else { now() }.into());
    if !has_own_road(kind) {
        metadata.insert("deletionGracePeriodSeconds", grace.into());
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
            metadata.insert("generation", (generation + 1).into());
        }
    }
    if kind.plural() == "namespaces" && kind.group().is_empty() {
        object["status"]["phase"] = "Terminating".into();
    }
    if kind.plural() == "customresourcedefinitions" && kind.group() == "apiextensions.k8s.io" {
        definitions::begin_deletion(&mut object);
    }
    Some(object)
}

/// How long the object has to end: only pods that run somewhere get any time.
fn grace_seconds(kind: &Resource, object: &Value, options: &Options) -> i64 {
    if !kind.graceful() {
        return 0;
    }
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    if ended || unscheduled {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
    let grace = options.grace_period_seconds.or(own).unwrap_or(30);
    if grace < 0 { 1 } else { grace }
}

/// Sets the finalizers that the garbage collector answers to.
fn propagate(kind: &Resource, object: &mut Value, options: &Options) {
    let policy = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some(policy), _) => policy,
        (None, Some(true)) => "Orphan",
        (None, Some(false)) => "Background",
        // Two kinds are older than garbage collection and keep what they did before it.
        (None, None) => match (kind.group(), kind.plural()) {
            ("", "replicationcontrollers") | ("batch", "jobs") => "Orphan",
            _ => return,
        },
    };
    let mut finalizers = object.finalizers();
    let wanted = match policy {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    finalizers.retain(|name| !matches!(name.as_str(), ORPHAN | FOREGROUND) || Some(name.as_str()) == wanted);
    if let Some(wanted) = wanted.filter(|wanted| !finalizers.iter().any(|name| name == wanted)) {
        finalizers.push(wanted.to_owned());
    }
    let metadata = object.meta_mut();
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers", finalizers.into());
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn grace_and_finalizers_keep_an_object() {
        let pods = &Resource::built_in("", "v1", "pods").unwrap();
        let bound =
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        let marked = mark(pods, bound.clone(), &Options::default()).unwrap();
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 5);
        assert!(!finished(pods, &marked));
        assert!(mark(pods, marked.clone(), &Options::default()).is_none(), "a second delete changes nothing");
        let now = Options { grace_period_seconds: Some(0), ..Options::default() };
        assert!(finished(pods, &mark(pods, marked, &now).unwrap()));
        assert!(finished(
            pods,
            &mark(pods, json!({"metadata": {}, "spec": {}}), &Options::default()).unwrap()
        ));
        let foreground = Options { propagation_policy: Some("Foreground".into()), ..now };
        let held = mark(pods, bound, &foreground).unwrap();
        assert_eq!(held.finalizers(), [FOREGROUND]);
        assert!(!finished(pods, &held));
    }
}
