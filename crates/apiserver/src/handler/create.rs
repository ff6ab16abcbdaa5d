//! Create: decode, default, admit, validate, commit.

use bytes::Bytes;
use coxswain_meta::Status;
use coxswain_meta::json::{Map, Value};
use coxswain_store::{CommitError, Expect, Write};
use http::{Request, StatusCode};
use rand::Rng;
use uuid::Uuid;

use super::{Call, FieldManager, display_name, key, read_object, render};
use crate::admission::{Admission, Operation};
use crate::authn::UserInfo;
use crate::body::Body;
use crate::object::{Meta, attributes, encode, now};
use crate::request::Query;
use crate::resource::{Repeated, Resource};
use crate::respond::{self, Outcome};
use crate::webhook::{Asked, Verb};
use crate::{Server, allocate, sent};

/// Characters of generated names: no vowels, so no words.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const LONGEST_PREFIX: usize = 63 - SUFFIX_LENGTH;
const GENERATE_ATTEMPTS: usize = 8;

/// What is done about fields that the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Drop them.
    Ignore,
    /// Drop them and say so in `Warning` headers.
    Warn,
    /// Refuse the request.
    Strict,
}

impl Validation {
    /// The `fieldValidation` parameter.
    pub fn of(query: &Query) -> Result<Self, Status> {
        match query.get("fieldValidation") {
            None | Some("Warn") => Ok(Validation::Warn),
            Some("Ignore") => Ok(Validation::Ignore),
            Some("Strict") => Ok(Validation::Strict),
            Some(other) => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

impl Call {
    /// The `fieldValidation` parameter.
    pub fn validation(&self) -> Result<Validation, Status> {
        Validation::of(&self.query)
    }

    /// Brings a document into the form of its schema; returns what a client is to be warned of.
    pub fn decode(&self, object: &mut Value, repeated: Repeated) -> Result<Vec<String>, Status> {
        if self.kind.schema().is_some() {
            sent::note(object);
        }
        self.kind.decode(object, repeated, self.validation()?)
    }

    /// A creation by this request; the manager is none where the object says already who owns what.
    pub fn new_object(&self, manager: Option<FieldManager>) -> Result<New<'_>, Status> {
        Ok(New { kind: &self.kind, user: &self.user, manager, dry_run: self.dry_run()? })
    }

    /// POST to a collection.
    pub async fn post(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        self.check_write_options("CreateOptions")?;
        let (mut object, repeated) = read_object(&self.kind, request).await?;
        let warnings = self.decode(&mut object, repeated)?;
        self.place(&mut object)?;
        let new = self.new_object(Some(FieldManager::of(self)))?;
        let bytes = self.server.create(new, object).await?;
        let mut response =
            render::object(&self.kind, form, StatusCode::CREATED, &bytes, self.include_object());
        respond::warn(&mut response, &warnings);
        Ok(response)
    }

    /// Puts the namespace of the path into the object, which may not name another. Where there are none, a name means nothing.
    pub fn place(&self, object: &mut Value) -> Result<(), Status> {
        if !self.kind.namespaced() {
            object.meta_mut().remove("namespace");
            return Ok(());
        }
        let sent = object.namespace();
        if !sent.is_empty() && sent != self.info.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        object.meta_mut().insert("namespace", self.info.namespace.as_str().into());
        Ok(())
    }
}

/// A creation.
pub struct New<'a> {
    /// The resource of the object.
    pub kind: &'a Resource,
    /// Who creates it.
    pub user: &'a UserInfo,
    /// Who owns its fields; none where its `managedFields` say so already.
    pub manager: Option<FieldManager>,
    /// Whether nothing is written.
    pub dry_run: bool,
}

/// A name from a prefix.
fn generate(prefix: &str) -> String {
    let mut rng = rand::rng();
    let suffix = (0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX[rng.random_range(0..SUFFIX.len())]));
    prefix.chars().take(LONGEST_PREFIX).chain(suffix).collect()
}

impl Server {
    /// Creates an object of a kind for a user and returns the stored bytes. The one road for requests and for the server itself.
    pub async fn create(&self, new: New<'_>, mut object: Value) -> Result<Bytes, Status> {
        let New { kind, user, manager, dry_run } = new;
        if kind.custom().is_some_and(|custom| custom.definition.terminating) {
            return Err(Status::method_not_allowed(kind.group(), kind.plural(), "create"));
        }
        let generated = object.name().is_empty() && !object.meta_str("generateName").is_empty();
        let metadata = object.meta_mut();
        let version = metadata.remove("resourceVersion");
        let versioned = version.as_ref().and_then(Value::as_str).is_some_and(|version| !version.is_empty());
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata.remove(field);
        }
        metadata.insert("uid", Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp", now().into());
        if generated {
            let name = generate(object.meta_str("generateName"));
            object.meta_mut().insert("name", name.into());
        }
        kind.default(&mut object)?;
        if let Some(manager) = manager {
            manager.record(self, kind, &Value::Object(Map::new()), &mut object).await;
        }
        let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
        let admission = Admission {
            server: self,
            kind,
            user,
            operation: Operation::Create,
            subresource: "",
            target: (&namespace, &name),
        };
        admission.mutate(&mut object, None)?;
        let asked = Asked {
            server: self,
            kind,
            subresource: "",
            own_kind: None,
            verb: Verb::Create,
            user,
            namespace: &namespace,
            name: &name,
            dry_run,
        };
        self.admit_mutating(&asked, &mut object, &Value::Null).await?;
        kind.prepare_create(&mut object);
        loop {
            let allocation = allocate::lock(self, kind).await;
            let unallocated = allocation.claim().map(|_| object.clone());
            allocation.create(&mut object)?;
            let errors = kind.validate_create(&object);
            let errors = sent::worded(errors, &object, |object| kind.validate_create(object));
            if !errors.is_empty() {
                return Err(Status::invalid(kind.group(), kind.kind(), display_name(&object), &errors));
            }
            admission.validate(&object, None)?;
            self.admit_validating(&asked, &object, &Value::Null).await?;
            if versioned && !dry_run {
                let why = "resourceVersion should not be set on objects to be created";
                return Err(Status::failure(500, "", why));
            }
            // What is not stored is told as it was sent, in its version.
            let told = (dry_run && kind.custom().is_some()).then(|| encode(&object));
            let stored = self.to_storage(kind, object).await?;
            match self.commit_new(&admission, stored, &allocation, generated, dry_run).await? {
                Some(bytes) => return Ok(told.unwrap_or(bytes)),
                // Another server has given out addresses meanwhile: choose again.
                None => object = unallocated.unwrap_or_default(),
            }
        }
    }

    /// Writes a new object; none where its allocation was not the first.
    async fn commit_new(
        &self,
        admission: &Admission<'_>,
        mut object: Value,
        allocation: &allocate::Allocation<'_>,
        generated: bool,
        dry_run: bool,
    ) -> Result<Option<Bytes>, Status> {
        let kind = admission.kind;
        let exists = |name: &str| Status::already_exists(kind.group(), kind.plural(), name);
        for _ in 0..GENERATE_ATTEMPTS {
            let key = key(kind, object.namespace(), object.name());
            let stored = encode(&object);
            if dry_run {
                admission.fits(&object, None)?;
                return match self.store.get(&key) {
                    Some(_) => Err(exists(object.name())),
                    None => Ok(Some(stored)),
                };
            }
            let write = || Write {
                key: key.clone(),
                expect: Expect::Absent,
                value: Some((stored.clone(), attributes(kind, &object))),
            };
            match admission.commit(write, || allocation.claim(), &object, None).await? {
                Ok(object) => return Ok(Some(self.served_one(kind, object).await?.bytes.clone())),
                Err(CommitError::Conflict(None)) => return Ok(None),
                Err(CommitError::Conflict(_)) if generated => {
                    let name = generate(object.meta_str("generateName"));
                    object.meta_mut().insert("name", name.into());
                }
                Err(CommitError::Conflict(_)) => return Err(exists(object.name())),
                Err(CommitError::Unavailable(error)) => return Err(unavailable(&error)),
            }
        }
        Err(exists(object.name()))
    }
}

/// 503: the store takes no writes; the reason is for the log alone.
pub fn unavailable(error: &str) -> Status {
    tracing::error!(error, "the store takes no writes");
    Status::unavailable(format!("the datastore does not take writes now: {error}"))
}
