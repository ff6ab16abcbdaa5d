//! Patch: JSON patch, merge patch, strategic merge patch and apply on the current object.

use bytes::Bytes;
use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::golang::{self, shown};
use coxswain_meta::json::{Map, Value, json};
use coxswain_meta::patch::{json_patch, merge_patch, strategic};
use coxswain_meta::{ErrorList, FieldError, Path};
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};

use super::{Call, FieldManager, check_type, parse, read_body, render};
use crate::authz::Attributes;
use crate::body::Body;
use crate::object::{MANAGED_FIELDS, Meta, read_managers};
use crate::resource::{Forms, Repeated, Resource};
use crate::respond::{self, Outcome};

/// Custom resources have no strategic merge patch.
const CUSTOM_MEDIA_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// A patch as it was sent.
pub struct Patch {
    dialect: Dialect,
    body: Value,
    duplicates: Vec<String>,
}

impl Patch {
    /// Reads the body of a PATCH, and checks the options that come with it.
    pub async fn read(call: &Call, request: Request<Body>) -> Result<Self, Status> {
        let media =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let dialect = match media.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Dialect::Json,
            "application/merge-patch+json" => Dialect::Merge,
            "application/strategic-merge-patch+json" if call.kind.custom().is_none() => Dialect::Strategic,
            "application/apply-patch+yaml" => Dialect::Apply,
            _ if call.kind.custom().is_none() => {
                return Err(Status::not_routed(415, "Unsupported Media Type"));
            }
            _ => return Err(Status::unsupported_media_type(CUSTOM_MEDIA_TYPES)),
        };
        let body = read_body(request).await?;
        let (body, duplicates) = match dialect {
            Dialect::Apply => {
                let (value, duplicates) = read_configuration(&body)?;
                (value, super::repeated_keys(&body, &duplicates))
            }
            _ => parse(&body).map_err(|why| match (call.stored(), dialect) {
                (Err(missing), _) => missing,
                (Ok(_), Dialect::Strategic) => why,
                (Ok(_), _) => Status::bad_request(format!("error decoding patch: {}", why.message)),
            })?,
        };
        let duplicates = if dialect == Dialect::Json { faults(&body, duplicates) } else { duplicates };
        call.check_write_options("PatchOptions")?;
        call.check_patch_options(dialect)?;
        Ok(Self { dialect, body, duplicates })
    }

    /// Whether this is an applied configuration.
    pub fn is_apply(&self) -> bool {
        self.dialect == Dialect::Apply
    }

    /// The patched document.
    pub fn apply(&self, call: &Call, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        if self.sees_managers() {
            read_managers(&mut new);
        }
        match (self.dialect, call.kind.schema()) {
            (Dialect::Json, _) => json_patch(&mut new, &self.body)?,
            (Dialect::Strategic, Some(schema)) => {
                strategic::apply(&mut new, &self.body, schema)?;
                schema::narrow(&mut new, schema);
            }
            (Dialect::Merge | Dialect::Strategic | Dialect::Apply, _) => merge_patch(&mut new, &self.body)?,
        }
        if let Some(Value::Object(metadata)) = new.get_mut("metadata")
            && !self.insists()
        {
            metadata.remove("resourceVersion");
        }
        Ok(new)
    }

    /// 422 for what the patch makes of an object where that cannot be decoded.
    fn undecodable(&self, call: &Call, old: &Value, why: &Status) -> Result<Status, Status> {
        let mut old = old.clone();
        read_managers(&mut old);
        let patched = self.apply(call, &old)?;
        let strict = why.message.find("strict decoding error: ").map(|at| &why.message[at..]);
        let (value, detail) = match (self.dialect, call.kind.schema()) {
            (Dialect::Strategic, Some(schema)) => {
                let converted = schema::conversion_error(&patched, schema);
                let own = || schema::in_own_words(&undecorated(&why.message));
                let plain = || strict.map_or_else(own, str::to_owned);
                (shown(&self.body), converted.unwrap_or_else(plain))
            }
            (_, schema) => (
                schema::patched(&old, schema, &self.body),
                strict.map_or_else(|| undecorated(&why.message), str::to_owned),
            ),
        };
        let mut errors = ErrorList::new();
        errors.push(FieldError::invalid(&Path::new("patch"), value, detail));
        Ok(Status::invalid("", "", "", &errors))
    }

    /// Whether a patch may concern what managers own, which is text as long as nobody asks.
    fn sees_managers(&self) -> bool {
        const PLACE: &str = "/metadata/managedFields";
        let sees = |pointer: &Value| {
            pointer
                .as_str()
                .is_none_or(|at| at.starts_with(PLACE) || PLACE.starts_with(at.trim_end_matches('/')))
        };
        match &self.body {
            Value::Array(steps) => {
                steps.iter().any(|step| sees(&step["path"]) || step.get("from").is_some_and(sees))
            }
            body => body.meta().get(MANAGED_FIELDS).is_some(),
        }
    }

    /// A patch insists on a resourceVersion only by naming one.
    fn insists(&self) -> bool {
        match &self.body {
            Value::Array(steps) => steps.iter().any(|step| step["path"] == "/metadata/resourceVersion"),
            body => body.meta().get("resourceVersion").is_some(),
        }
    }
}

/// A configuration and the fields it repeats.
fn read_configuration(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    if body.trim_ascii().is_empty() {
        return Ok((Value::Object(Map::new()), Vec::new()));
    }
    let wrong = |why: String| Status::bad_request(format!("error decoding YAML: {why}"));
    let (value, duplicates) = schema::parse_yaml_strict(body)
        .map_err(|why| wrong(format!("error converting YAML to JSON: yaml: {why}")))?;
    match value {
        Value::Null => Ok((Value::Object(Map::new()), duplicates)),
        Value::Object(_) => Ok((value, duplicates)),
        other => {
            Err(wrong(format!("error unmarshaling JSON: while decoding JSON: {}", golang::no_map(&other))))
        }
    }
}

/// What strict decoding minds in the operations of a JSON patch.
fn faults(body: &Value, duplicates: Vec<String>) -> Vec<String> {
    const KNOWN: &[&str] = &["op", "path", "from", "value"];
    let steps = body.as_array().map_or(&[][..], Vec::as_slice).iter().enumerate();
    let names = steps.flat_map(|(i, step)| {
        step.as_object().into_iter().flat_map(|map| map.keys()).map(move |name| (i, name))
    });
    let unknown = names
        .filter(|(_, name)| !KNOWN.contains(name))
        .map(|(i, name)| format!("unknown field \"[{i}].{name}\""));
    unknown.chain(duplicates).map(|fault| format!("json patch {fault}")).collect()
}

/// What is wrong with a document, without the kind that it is no document of.
fn undecorated(message: &str) -> String {
    message.split_once(": ").map_or(message, |(_, rest)| rest).to_owned()
}

/// What is wrong with a value that decodes itself, as it says so.
fn in_own_words(why: &Status) -> String {
    schema::in_own_words(&undecorated(&why.message))
}

/// Refuses a patch that makes another object of the one that it changes.
fn check_uid(kind: &Resource, new: &Value, old: &Value) -> Result<(), Status> {
    let uid = new.meta_str("uid");
    if uid.is_empty() || uid == old.meta_str("uid") {
        return Ok(());
    }
    let mut errors = ErrorList::new();
    errors.push(FieldError::invalid(&Path::new("metadata").child("uid"), uid, "field is immutable"));
    Err(Status::invalid(kind.group(), kind.kind(), old.name(), &errors))
}

/// Takes the parts of a document out that it has from another, but for those that say what it is: `changes` tells which may
/// differ.
fn take_same(document: &mut Value, other: &Value, changes: impl Fn(&str) -> bool) -> Map {
    let is_same = |name: &str, value: &Value| {
        !matches!(name, "apiVersion" | "kind" | "metadata")
            && (!changes(name) || other.get(name) == Some(value))
    };
    let members = document.as_object_mut().map(std::mem::take).unwrap_or_default();
    let (same, others) = members.into_iter().partition(|(name, value)| is_same(name, value));
    *document = Value::Object(others);
    same
}

impl Call {
    /// PATCH of an object or its status.
    pub async fn patch(&self, request: Request<Body>) -> Outcome {
        let form = self.form()?;
        let patch = Patch::read(self, request).await?;
        let mut warnings = Vec::new();
        let (code, bytes) = match patch.dialect {
            Dialect::Apply => self.apply(patch, &mut warnings).await?,
            _ => (StatusCode::OK, self.patch_live(&patch, &mut warnings).await?),
        };
        let mut response = render::object(&self.kind, form, code, &bytes, self.include_object());
        respond::warn(&mut response, &warnings);
        Ok(response)
    }

    fn check_patch_options(&self, dialect: Dialect) -> Result<(), Status> {
        let mut errors = ErrorList::new();
        match dialect {
            Dialect::Apply if self.query.get("fieldManager").is_none() => {
                let path = Path::new("fieldManager");
                errors.push(FieldError::required(&path, "is required for apply patch"));
            }
            Dialect::Apply => {}
            _ if self.query.get("force").is_some() => {
                let path = Path::new("force");
                errors.push(FieldError::forbidden(&path, "may not be specified for non-apply patch"));
            }
            _ => {}
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &errors)),
        }
    }

    async fn patch_live(&self, patch: &Patch, warnings: &mut Vec<String>) -> Result<Bytes, Status> {
        self.server
            .update(&self.change(self.part())?, |old| {
                let new = self.patched(patch, old, warnings)?;
                check_uid(&self.kind, &new, old)?;
                Ok(new)
            })
            .await
    }

    /// What a patch that is no configuration makes of an object.
    pub fn patched(&self, patch: &Patch, old: &Value, warnings: &mut Vec<String>) -> Result<Value, Status> {
        let mut new = patch.apply(self, old)?;
        if patch.dialect == Dialect::Strategic && new.is_object() {
            // Go's types have no room for what a document says of itself.
            new["apiVersion"] = self.kind.api_version().into();
            new["kind"] = self.kind.kind().into();
        }
        check_type(&self.kind, &mut new).or_else(|why| match self.kind.schema() {
            Some(_) => Err(patch.undecodable(self, old, &why)?),
            None => Err(why),
        })?;
        // What the patch left alone has the form of its schema already.
        let changes = |name: &str| patch.dialect != Dialect::Merge || patch.body.get(name).is_some();
        let same = match self.kind.schema() {
            Some(_) => take_same(&mut new, old, changes),
            None => Map::new(),
        };
        *warnings = self
            .decode(&mut new, Repeated { faults: patch.duplicates.clone(), json: Bytes::new() })
            .or_else(|why| Err(patch.undecodable(self, old, &why)?))?;
        if let Some(new) = new.as_object_mut() {
            new.extend(same);
        }
        self.place(&mut new)?;
        self.check_name(&new)?;
        Ok(new)
    }

    /// Server-side apply: changes the object, or creates it.
    async fn apply(&self, patch: Patch, warnings: &mut Vec<String>) -> Result<(StatusCode, Bytes), Status> {
        let mut configuration = patch.body;
        let sent_to = configuration.namespace().to_owned();
        let named = configuration.name().to_owned();
        self.check_configuration(&mut configuration)?;
        self.check_shape(&configuration, (&sent_to, &named))?;
        let repeated = self.repeated(&patch.duplicates, warnings)?;
        let (manager, forms) = (FieldManager::of(self), Forms::of(&self.kind));
        let force = self.query.is_true("force");
        let mut change = self.change(self.part())?;
        change.manager = None;
        let convert = |new: &mut Value| self.convert(new, &sent_to);
        loop {
            let live = self.server.update(&change, |old| {
                let mut new = manager.apply(&forms, old, &configuration, force)?;
                repeated.clone()?;
                // Only a configuration that names a resourceVersion insists on it.
                let insisted = configuration.meta().get("resourceVersion").cloned();
                match insisted {
                    Some(version) => new.meta_mut().insert("resourceVersion", version),
                    None => new.meta_mut().remove("resourceVersion"),
                };
                convert(&mut new)?;
                self.place(&mut new)?;
                self.check_name(&new)?;
                check_uid(&self.kind, &new, old)?;
                Ok(new)
            });
            let live = live.await;
            if live.is_err() && forms.fetch(&self.server).await {
                continue;
            }
            match live {
                Err(missing) if missing.code == 404 && self.info.subresource.is_empty() => {}
                other => return other.map(|bytes| (StatusCode::OK, bytes)),
            }
            self.may_create().await?;
            let empty = json!({ "apiVersion": self.kind.api_version(), "kind": self.kind.kind() });
            let mut new = manager.apply(&forms, &empty, &configuration, force)?;
            repeated.clone()?;
            convert(&mut new)?;
            self.place(&mut new)?;
            self.check_no_uid(&configuration)?;
            match self.server.create(self.new_object(None)?, new).await {
                // Somebody was faster: what they made is changed instead.
                Err(exists) if exists.reason == "AlreadyExists" && !self.dry_run()? => {}
                other => return other.map(|bytes| (StatusCode::CREATED, bytes)),
            }
        }
    }

    /// What a configuration makes of an object that is no more than a view of another, and who owns it then.
    pub fn applied(&self, patch: &Patch, old: &Value) -> Result<Value, Status> {
        let mut configuration = patch.body.clone();
        let sent_to = configuration.namespace().to_owned();
        let named = configuration.name().to_owned();
        self.check_configuration(&mut configuration)?;
        self.check_shape(&configuration, (&sent_to, &named))?;
        let force = self.query.is_true("force");
        let mut new = FieldManager::of(self).apply(&Forms::of(&self.kind), old, &configuration, force)?;
        self.convert(&mut new, &sent_to)?;
        Ok(new)
    }

    /// Brings what a configuration made into the form of the schema.
    fn convert(&self, new: &mut Value, sent_to: &str) -> Result<(), Status> {
        if let Some(schema) = self.kind.schema() {
            schema::narrow(new, schema);
        }
        let decoded = self.kind.decode(new, Repeated::default(), super::Validation::Ignore);
        decoded.map(drop).map_err(|why| {
            let stumbled = self.kind.schema().and_then(|type_ref| schema::conversion_error(new, type_ref));
            self.inconvertible(sent_to, &stumbled.unwrap_or_else(|| in_own_words(&why)))
        })
    }

    /// What follows of keys that a configuration repeats: a refusal, yet after all conflicts, or a warning.
    fn repeated(
        &self,
        duplicates: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<Result<(), Status>, Status> {
        if duplicates.is_empty() {
            return Ok(Ok(()));
        }
        let lines = duplicates.join("\n  ");
        let what = format!("error converting YAML to JSON: yaml: unmarshal errors:\n  {lines}");
        Ok(match self.validation()? {
            super::Validation::Strict => {
                Err(Status::bad_request(format!("error strict decoding YAML: {what}")))
            }
            super::Validation::Warn => {
                warnings.push(what);
                Ok(())
            }
            super::Validation::Ignore => Ok(()),
        })
    }

    /// Who names the object that is meant does not mean a new one.
    pub(super) fn check_no_uid(&self, object: &Value) -> Result<(), Status> {
        let uid = object.meta_str("uid");
        if uid.is_empty() {
            return Ok(());
        }
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        Err(Status::conflict(self.kind.group(), self.kind.plural(), &self.info.name, &why))
    }

    /// Who may change may not therefore create.
    pub(super) async fn may_create(&self) -> Result<(), Status> {
        let asked = Attributes { verb: "create", ..Attributes::of(&self.info) };
        match self.server.ask(&self.user, &asked).await.allowed {
            true => Ok(()),
            false => Err(Status::forbidden_to_user(
                &self.user.name,
                "create",
                asked.group,
                asked.resource,
                asked.namespace,
                asked.name,
            )),
        }
    }

    /// What an applied configuration must say of itself.
    fn check_configuration(&self, configuration: &mut Value) -> Result<(), Status> {
        if !configuration.meta()["managedFields"].is_null() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let named = |key: &str| configuration[key].as_str().unwrap_or_default();
        let (version, kind) = (named("apiVersion"), named("kind"));
        if (version, kind) != (self.kind.api_version().as_str(), self.kind.kind()) {
            let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
            return Err(Status::bad_request(format!("invalid object type: {version}, Kind={kind}")));
        }
        if configuration.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null())
        {
            // The schema says what is wrong with that.
            return Ok(());
        }
        if configuration.name().is_empty() {
            configuration.meta_mut().insert("name", self.info.name.as_str().into());
        }
        self.check_name(configuration)?;
        self.place(configuration)
    }

    /// Checks a configuration against the schema; built-in kinds refuse what they do not know, whatever the client asks.
    fn check_shape(&self, configuration: &Value, sent_as: (&str, &str)) -> Result<(), Status> {
        let errors: Vec<String> = match (&self.kind, self.kind.schema()) {
            (Resource::Custom(custom), _) => custom.typed_errors(configuration),
            (_, Some(type_ref)) => schema::typed_errors(configuration, type_ref),
            _ => Vec::new(),
        };
        let Some(what) = schema::in_one(&errors) else { return Ok(()) };
        let named = self.named(sent_as);
        Err(Status::failure(500, "", format!("failed to create typed patch object ({named}): {what}")))
    }

    /// 500 for a configuration that has the right shape, yet makes an object whose values cannot be decoded.
    fn inconvertible(&self, sent_to: &str, what: &str) -> Status {
        let (named, kind) = (self.named((sent_to, &self.info.name)), self.kind.kind());
        let version = format!("{}/{}", self.kind.group(), self.kind.version());
        Status::failure(
            500,
            "",
            format!(
                "failed to convert new object ({named}) to proper version: unable to convert unstructured object to {version}, Kind={kind}: {what}"
            ),
        )
    }

    /// A configuration as messages name it: its own namespace and name, and group, version and kind.
    fn named(&self, (namespace, name): (&str, &str)) -> String {
        let (group, version, kind) = (self.kind.group(), self.kind.version(), self.kind.kind());
        format!("{namespace}/{name}; {group}/{version}, Kind={kind}")
    }
}
