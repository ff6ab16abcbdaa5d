//! Update: the guarded read-modify-write that PUT, PATCH and subresources share.

use bytes::Bytes;
use coxswain_meta::json::Value;
use coxswain_meta::status::OBJECT_MODIFIED;
use coxswain_meta::{ErrorList, Status};
use coxswain_store::{CommitError, Expect, View, Write};
use http::{Request, StatusCode};

use super::create::unavailable;
use super::{Call, FieldManager, Stored, key, read_object, render};
use crate::admission::{Admission, Operation};
use crate::authn::UserInfo;
use crate::body::Body;
use crate::object::{Attributes, Meta, ObjectView, attributes, encode, same_content};
use crate::resource::Resource;
use crate::respond::{self, Outcome};
use crate::webhook::{Asked, Verb};
use crate::{Server, allocate, sent};

/// A change without a resourceVersion of its own is tried again this often when others write in between.
const ATTEMPTS: usize = 64;

/// Which part of an object a request may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
    /// What the change function did, unchecked: subresources that the server itself implements.
    Verbatim,
}

/// A guarded change of one object.
pub struct Change<'a> {
    /// The row of the object.
    pub kind: &'a Resource,
    /// Who changes it.
    pub user: &'a UserInfo,
    /// Its namespace; empty for the cluster scope.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The part that may change.
    pub part: Part,
    /// Whether nothing is written.
    pub dry_run: bool,
    /// Who owns what changes; none where the change itself says so.
    pub manager: Option<FieldManager>,
}

impl Call {
    /// The part of the object that the path means.
    pub(super) fn part(&self) -> Part {
        if self.info.subresource == "status" { Part::Status } else { Part::Main }
    }

    /// A change of the object that the path names.
    pub fn change(&self, part: Part) -> Result<Change<'_>, Status> {
        Ok(Change {
            kind: &self.kind,
            user: &self.user,
            namespace: if self.kind.namespaced() { &self.info.namespace } else { "" },
            name: &self.info.name,
            part,
            dry_run: self.dry_run()?,
            manager: Some(FieldManager::of(self)),
        })
    }

    /// Whether a PUT here makes what is not there.
    fn creates_on_update(&self) -> bool {
        self.info.subresource.is_empty()
            && self.kind.row_of_catalogue().is_some_and(|row| row.create_on_update)
    }

    /// Refuses a document that names another object than the path.
    pub(super) fn check_name(&self, object: &Value) -> Result<(), Status> {
        let (named, wanted) = (object.name(), &self.info.name);
        match named {
            "" => Err(Status::bad_request(format!(
                "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
            ))),
            named if named != wanted => Err(Status::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({wanted})"
            ))),
            _ => Ok(()),
        }
    }

    /// What a PUT brings, in the form of its schema, and what to warn of.
    pub async fn read_update(&self, request: Request<Body>) -> Result<(Value, Vec<String>), Status> {
        self.check_write_options("UpdateOptions")?;
        let (mut object, repeated) = read_object(&self.kind, request).await?;
        let warnings = self.decode(&mut object, repeated)?;
        self.place(&mut object)?;
        self.check_name(&object)?;
        Ok((object, warnings))
    }

    /// PUT of an object or its status.
    pub async fn put(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        let (object, warnings) = self.read_update(request).await?;
        let changed = self.server.update(&self.change(self.part())?, |_| Ok(object.clone())).await;
        let (code, bytes) = match changed {
            Err(missing) if missing.code == 404 && self.creates_on_update() => {
                self.may_create().await?;
                self.check_no_uid(&object)?;
                let new = self.new_object(Some(FieldManager::of(self)))?;
                (StatusCode::CREATED, self.server.create(new, object).await?)
            }
            changed => (StatusCode::OK, changed?),
        };
        let mut response = render::object(&self.kind, form, code, &bytes, self.include_object());
        respond::warn(&mut response, &warnings);
        Ok(response)
    }
}

impl Server {
    /// Changes an object: `change` makes the new document of the current one, and is called again when others write in
    /// between, unless the new document insists on a resourceVersion. Returns the stored bytes.
    pub async fn update(
        &self,
        target: &Change<'_>,
        mut change: impl FnMut(&Value) -> Result<Value, Status>,
    ) -> Result<Bytes, Status> {
        let kind = target.kind;
        let key = key(kind, target.namespace, target.name);
        let not_found = || Status::not_found(kind.group(), kind.plural(), target.name);
        let modified = || Status::conflict(kind.group(), kind.plural(), target.name, OBJECT_MODIFIED);
        let mut current = self.store.get(&key).ok_or_else(not_found)?;
        for _ in 0..ATTEMPTS {
            let served = self.served_one(kind, current.clone()).await?;
            let old = render::unread(kind, &served.bytes);
            let mut new = change(&old)?;
            let insists = !new.meta_str("resourceVersion").is_empty();
            check_version(new.meta_str("resourceVersion"))?;
            if insists && new.meta_str("resourceVersion") != current.revision.to_string() {
                return Err(modified());
            }
            if !new.meta_str("uid").is_empty() && new.meta_str("uid") != old.meta_str("uid") {
                return Err(Status::conflict(
                    kind.group(),
                    kind.plural(),
                    target.name,
                    &format!(
                        "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {}, UID in object meta: {}",
                        upstreams_key(target),
                        new.meta_str("uid"),
                        old.meta_str("uid")
                    ),
                ));
            }
            let asked = target.asked(self);
            self.mutate(target, &asked, &mut new, &old).await?;
            let allocation = allocate::lock(self, kind).await;
            self.validate(target, asked.subresource, &mut new, &old, &allocation)?;
            match asked.subresource {
                // What was sent to these has been asked about already.
                "binding" => {}
                "scale" => {
                    let scales = (kind.scale_of(&new), kind.scale_of(&old));
                    self.admit_validating(&asked, &scales.0, &scales.1).await?;
                }
                _ => self.admit_validating(&asked, &new, &old).await?,
            }
            match self.commit_change(target, &current, &allocation, new, &old).await? {
                Err(CommitError::Conflict(Some(_))) if insists => return Err(modified()),
                Err(CommitError::Conflict(Some(newer))) => current = newer,
                Err(CommitError::Conflict(None)) => return Err(not_found()),
                Err(CommitError::Unavailable(error)) => return Err(unavailable(&error)),
                Ok(Committed::Kept) => return Ok(served.bytes.clone()),
                Ok(Committed::Dry(bytes)) => return Ok(bytes),
                Ok(Committed::Stored(object)) => {
                    return Ok(self.served_one(kind, object).await?.bytes.clone());
                }
            }
        }
        Err(modified())
    }

    /// Brings a change into the form in which it may be validated.
    async fn mutate(
        &self,
        target: &Change<'_>,
        asked: &Asked<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let kind = target.kind;
        keep_identity(new, old);
        if target.part != Part::Verbatim {
            kind.default(new)?;
        }
        if let Some(manager) = &target.manager {
            manager.record(self, kind, old, new).await;
        }
        match target.part {
            Part::Status => kind.prepare_status_update(new, old),
            Part::Main => {
                target.admission(self, "").mutate(new, Some(old))?;
            }
            Part::Verbatim => return Ok(()),
        }
        match asked.own_kind {
            Some(_) => Ok(()),
            None => self.admit_mutating(asked, new, old).await,
        }
    }

    /// Refuses a change that may not be committed.
    fn validate(
        &self,
        target: &Change<'_>,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        allocation: &allocate::Allocation<'_>,
    ) -> Result<(), Status> {
        let kind = target.kind;
        let errors = match target.part {
            // What the server itself changes is not for the plugins either.
            Part::Verbatim if subresource.is_empty() => return Ok(()),
            Part::Verbatim => ErrorList::new(),
            Part::Status => kind.validate_status(new, old),
            Part::Main => {
                kind.prepare_update(new, old);
                allocation.update(new, old)?;
                let errors = kind.validate_update(new, old);
                sent::worded(errors, new, |new| kind.validate_update(new, old))
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid(kind.group(), kind.kind(), target.name, &errors));
        }
        target.admission(self, subresource).validate(new, Some(old))
    }

    async fn commit_change(
        &self,
        target: &Change<'_>,
        current: &Stored,
        allocation: &allocate::Allocation<'_>,
        mut new: Value,
        old: &Value,
    ) -> Result<Result<Committed, CommitError<Attributes>>, Status> {
        let kind = target.kind;
        let key = key(kind, target.namespace, target.name);
        new.meta_mut().remove("resourceVersion");
        if finished(kind, &new) && !target.dry_run {
            return Ok(self.store.delete(key, current.revision).await.map(Committed::Stored));
        }
        if same_content(&new, old) {
            return Ok(Ok(Committed::Kept));
        }
        let admission = target.admission(self, "");
        if target.dry_run {
            admission.fits(&new, Some(old))?;
            return Ok(Ok(Committed::Dry(ObjectView.stamp(&encode(&new), current.revision))));
        }
        let new = self.to_storage(kind, new).await?;
        let stored = encode(&new);
        let write = || Write {
            key: key.clone(),
            expect: Expect::At(current.revision),
            value: Some((stored.clone(), attributes(kind, &new))),
        };
        let committed = match target.part {
            Part::Main => admission.commit(write, || allocation.claim(), &new, Some(old)).await?,
            Part::Status | Part::Verbatim => self.store.commit_one(write()).await,
        };
        Ok(committed.map(Committed::Stored))
    }
}

impl<'a> Change<'a> {
    /// The change as the plugins see it.
    fn admission<'b>(&'b self, server: &'b Server, subresource: &'b str) -> Admission<'b>
    where
        'a: 'b,
    {
        Admission {
            server,
            kind: self.kind,
            user: self.user,
            operation: Operation::Update,
            subresource,
            target: (self.namespace, self.name),
        }
    }

    /// The change as webhooks and policies see it.
    fn asked<'b>(&'b self, server: &'b Server) -> Asked<'b>
    where
        'a: 'b,
    {
        let subresource = self.manager.as_ref().map_or("", |manager| &manager.subresource);
        Asked {
            server,
            kind: self.kind,
            subresource: if self.part == Part::Status { "status" } else { subresource },
            own_kind: (subresource == "scale").then_some(("autoscaling", "v1", "Scale")),
            verb: Verb::Update,
            user: self.user,
            namespace: self.namespace,
            name: self.name,
            dry_run: self.dry_run,
        }
    }
}

/// Where upstream keeps an object, as it tells who wants another one there.
fn upstreams_key(target: &Change<'_>) -> String {
    let kind = target.kind;
    let place = match (kind.group(), kind.plural()) {
        ("", "nodes") => "minions",
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "replicationcontrollers") => "controllers",
        (_, "ingresses") if kind.custom().is_none() => "ingress",
        (_, plural) => plural,
    };
    let own_servers = ["apiextensions.k8s.io", "apiregistration.k8s.io"];
    let group = match kind.custom().is_some() || own_servers.contains(&kind.group()) {
        true => format!("/{}", kind.group()),
        false => String::new(),
    };
    let registry = if target.dry_run { "" } else { "/registry" };
    let namespace =
        if target.namespace.is_empty() { String::new() } else { format!("/{}", target.namespace) };
    format!("{registry}{group}/{place}{namespace}/{}", target.name)
}

/// 500 for a resourceVersion that is none.
fn check_version(version: &str) -> Result<(), Status> {
    if version.is_empty() || version.parse::<u64>().is_ok() {
        return Ok(());
    }
    let why =
        if version.bytes().all(|b| b.is_ascii_digit()) { "value out of range" } else { "invalid syntax" };
    Err(Status::failure(500, "", format!("strconv.ParseUint: parsing {version:?}: {why}")))
}

/// What a change came to.
enum Committed {
    /// Nothing differs: the object stays as it is.
    Kept,
    /// The object as it would be.
    Dry(Bytes),
    /// The object as it is stored now.
    Stored(Stored),
}

/// What no change may touch.
fn keep_identity(new: &mut Value, old: &Value) {
    let kept = old.meta();
    let metadata = new.meta_mut();
    for field in
        ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"]
    {
        match kept.get(field) {
            Some(value) if field != "generateName" || !metadata.contains_key(field) => {
                metadata.insert(field, value.clone());
            }
            Some(_) => {}
            None => {
                metadata.remove(field);
            }
        }
    }
    metadata.remove("selfLink");
}

/// Whether nothing holds a deleted object any longer.
pub fn finished(kind: &Resource, object: &Value) -> bool {
    let grace = object.meta()["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let held = kind.plural() == "namespaces"
        && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    object.is_deleting() && object.finalizers().is_empty() && !held && (grace == 0 || !kind.graceful())
}
