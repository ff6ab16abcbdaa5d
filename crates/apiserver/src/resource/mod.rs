//! The handle of a served resource in one version: a row of the catalogue, or a version of a CustomResourceDefinition.
//!
//! Every handler works through [`Resource`] and none asks which of the two it holds: both take the same road.

mod columns;
mod convert;
mod definition;
mod forms;
mod place;
mod registry;

use std::sync::Arc;

use bytes::Bytes;
use coxswain_api::{Kind, catalogue, objectmeta, schema, time};
use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, Status, golang};

pub use definition::{Conversion, Custom};
pub use forms::{Forms, reform};
pub use place::Place;
pub use registry::{COLLECTION as DEFINITIONS, Registry};

use crate::cel;
use crate::handler::Validation;

/// A served resource in one version.
#[derive(Clone)]
pub enum Resource {
    /// A row of the catalogue.
    BuiltIn(&'static Kind),
    /// A version of a definition.
    Custom(Arc<Custom>),
}

/// What is below a resource in its paths.
pub struct Sub<'a> {
    /// Path segment, such as `status`.
    pub name: &'a str,
    /// Group, version and kind of what is read and written there.
    pub gvk: (&'a str, &'a str, &'a str),
    /// The verbs that are served.
    pub verbs: &'a [&'static str],
}

/// In upstream's order, which is not that of built-in kinds.
const CUSTOM_VERBS: &[&str] =
    &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const GET_UPDATE: &[&str] = &["get", "patch", "update"];

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $custom:expr;)*) => {
        $($(#[$doc])* pub fn $name(&self) -> &str {
            match self {
                Self::BuiltIn(kind) => kind.$name,
                Self::Custom(custom) => {
                    let read: fn(&Custom) -> &str = $custom;
                    read(custom)
                }
            }
        })*
    };
}

/// What a document repeats, with its text where that is JSON, whose faults are told in its order.
#[derive(Debug, Clone, Default)]
pub struct Repeated {
    /// A fault for each field.
    pub faults: Vec<String>,
    /// The text.
    pub json: Bytes,
}

/// Brings a document into the form of a type, of this version and kind; returns what to warn of.
pub fn decode_typed(
    object: &mut Value,
    mut repeated: Repeated,
    (type_ref, version, kind): (schema::TypeRef, &str, &str),
    validation: Validation,
) -> Result<Vec<String>, Status> {
    let schema::Decoded { unknown, errors } = schema::check(object, type_ref);
    if let Some(first) = errors.first() {
        return Err(schema::decode_error(version, kind, first));
    }
    schema::forget_unnoticed(&mut repeated.faults, object, type_ref, &unknown);
    // A reader of YAML stumbles over repeated keys before anything is decoded.
    let mut faults = repeated.faults;
    faults.extend(unknown);
    schema::sort_by_place(&mut faults, &repeated.json);
    faults.truncate(schema::MOST_FAULTS);
    let told = told(faults, (version, kind), validation)?;
    schema::normalise(object, type_ref);
    Ok(told)
}

/// What to warn of, unless it is to be refused or not to be told.
fn told(
    faults: Vec<String>,
    (version, kind): (&str, &str),
    validation: Validation,
) -> Result<Vec<String>, Status> {
    match validation {
        Validation::Strict if !faults.is_empty() => {
            let what = format!("strict decoding error: {}", faults.join(", "));
            Err(schema::decode_error(version, kind, &what))
        }
        Validation::Warn => Ok(faults),
        _ => Ok(Vec::new()),
    }
}

impl Resource {
    names! {
        /// API group, empty for the core group.
        group |c| &c.definition.group;
        /// Version within the group.
        version |c| &c.version().name;
        /// Kind of one object.
        kind |c| &c.definition.kind;
        /// Kind of a list.
        list_kind |c| &c.definition.list_kind;
        /// Resource name in paths.
        plural |c| &c.definition.plural;
        /// Lower-case name of one.
        singular |c| &c.definition.singular;
    }

    /// The built-in resource of a path's group, version and plural.
    pub fn built_in(group: &str, version: &str, plural: &str) -> Option<Self> {
        catalogue::find(group, version, plural).map(Self::BuiltIn)
    }

    /// The definition behind a custom resource.
    pub fn custom(&self) -> Option<&Custom> {
        match self {
            Self::BuiltIn(_) => None,
            Self::Custom(custom) => Some(custom),
        }
    }

    /// The row of a built-in resource.
    pub fn row_of_catalogue(&self) -> Option<&'static Kind> {
        match self {
            Self::BuiltIn(kind) => Some(kind),
            Self::Custom(_) => None,
        }
    }

    /// Abbreviations kubectl takes.
    pub fn short_names(&self) -> Vec<&str> {
        match self {
            Self::BuiltIn(kind) => kind.short_names.to_vec(),
            Self::Custom(custom) => custom.definition.short_names.iter().map(String::as_str).collect(),
        }
    }

    /// Groups of kinds kubectl takes, such as `all`.
    pub fn categories(&self) -> Vec<&str> {
        match self {
            Self::BuiltIn(kind) => kind.categories.to_vec(),
            Self::Custom(custom) => custom.definition.categories.iter().map(String::as_str).collect(),
        }
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        match self {
            Self::BuiltIn(kind) => kind.namespaced,
            Self::Custom(custom) => custom.definition.namespaced,
        }
    }

    /// The verbs that are served.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self {
            Self::BuiltIn(kind) => kind.verbs,
            Self::Custom(_) => CUSTOM_VERBS,
        }
    }

    /// What is served below objects.
    pub fn subresources(&self) -> Vec<Sub<'_>> {
        match self {
            Self::BuiltIn(kind) => kind
                .subresources
                .iter()
                .map(|sub| Sub { name: sub.name, gvk: (sub.group, sub.version, sub.kind), verbs: sub.verbs })
                .collect(),
            Self::Custom(custom) => {
                let version = custom.version();
                let own = (self.group(), self.version(), self.kind());
                let status = Sub { name: "status", gvk: own, verbs: GET_UPDATE };
                let scale = Sub { name: "scale", gvk: ("autoscaling", "v1", "Scale"), verbs: GET_UPDATE };
                let served = [(version.status, status), (version.scale.is_some(), scale)];
                served.into_iter().filter_map(|(served, sub)| served.then_some(sub)).collect()
            }
        }
    }

    /// Group and plural of the collection that keeps the objects.
    pub fn storage(&self) -> (&str, &str) {
        match self {
            Self::BuiltIn(kind) => kind.storage,
            Self::Custom(custom) => (&custom.definition.group, &custom.definition.plural),
        }
    }

    /// Whether status is written by its own subresource only.
    pub fn status(&self) -> bool {
        match self {
            Self::BuiltIn(kind) => kind.status,
            Self::Custom(custom) => custom.version().status,
        }
    }

    /// Whether deletion waits for a grace period.
    pub fn graceful(&self) -> bool {
        matches!(self, Self::BuiltIn(kind) if kind.graceful)
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self {
            Self::BuiltIn(kind) => kind.api_version(),
            Self::Custom(custom) => format!("{}/{}", custom.definition.group, custom.version().name),
        }
    }

    /// Whether this is the core resource of that plural.
    pub fn is_core(&self, plural: &str) -> bool {
        self.group().is_empty() && self.plural() == plural
    }

    /// The schema type of a built-in kind.
    pub fn schema(&self) -> Option<schema::TypeRef> {
        self.row_of_catalogue().and_then(Kind::schema)
    }

    /// Whether field selectors may use a field besides `metadata.name` and `metadata.namespace`.
    pub fn selects_by(&self, field: &str) -> bool {
        match self {
            Self::BuiltIn(kind) => kind.selectable.contains(&field),
            Self::Custom(custom) => custom.version().selectable.iter().any(|known| known.name == field),
        }
    }

    /// Whether there are fields besides name and namespace to select by.
    pub fn has_selectable_fields(&self) -> bool {
        match self {
            Self::BuiltIn(kind) => !kind.selectable.is_empty(),
            Self::Custom(_) => true,
        }
    }

    /// The headings of a Table.
    pub fn column_definitions(&self) -> Vec<Value> {
        match self {
            Self::BuiltIn(kind) => kind
                .columns
                .iter()
                .map(|c| {
                    json!({ "name": c.name, "type": c.type_, "format": c.format,
                        "description": c.description, "priority": c.priority })
                })
                .collect(),
            Self::Custom(custom) => columns::definitions(custom.version()),
        }
    }

    /// The Table cells of an object; `now` in seconds since the epoch.
    pub fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        match self {
            Self::BuiltIn(kind) => kind.row(object, now),
            Self::Custom(custom) => columns::row(custom.version(), object, now),
        }
    }

    /// Brings a document into the form of its schema and drops what it does not know; returns what to warn of.
    pub fn decode(
        &self,
        object: &mut Value,
        repeated: Repeated,
        validation: Validation,
    ) -> Result<Vec<String>, Status> {
        let custom = match self {
            Self::BuiltIn(_) => {
                let Some(type_ref) = self.schema() else { return Ok(Vec::new()) };
                return decode_typed(object, repeated, (type_ref, self.version(), self.kind()), validation);
            }
            Self::Custom(custom) => custom,
        };
        let mut unknown = custom.prune(object)?;
        let wrong = |why: Status| schema::decode_error(self.version(), self.kind(), &why.message);
        unknown.extend(custom.check_metadata(object).map_err(wrong)?);
        golang::whole_numbers(object);
        // What no type decodes is read for repeated keys before anything is pruned.
        let faults = repeated.faults.into_iter().chain(unknown).collect();
        let told = told(faults, (self.version(), self.kind()), validation)?;
        if let Some(type_ref) = self.schema() {
            schema::normalise(object, type_ref);
        }
        Ok(told)
    }

    /// Fills defaults in.
    pub fn default(&self, object: &mut Value) -> Result<(), Status> {
        match self {
            Self::BuiltIn(kind) => kind.default(object)?,
            Self::Custom(custom) => custom.default(object),
        }
        Ok(())
    }

    /// Before validation at creation: resets status, sets the generation, drops what only the server writes.
    pub fn prepare_create(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(kind) => kind.prepare_create(object),
            Self::Custom(custom) => custom.prepare_create(object),
        }
    }

    /// Before validation at update: keeps status and the server's metadata, raises the generation.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        match self {
            Self::BuiltIn(kind) => kind.prepare_update(new, old),
            Self::Custom(custom) => custom.prepare_update(new, old),
        }
    }

    /// Before validation of a status update: everything but status and metadata stays.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        match self {
            Self::BuiltIn(kind) => kind.prepare_status_update(new, old),
            Self::Custom(custom) => custom.prepare_status_update(new, old),
        }
    }

    /// All that is wrong with a new object.
    pub fn validate_create(&self, object: &Value) -> ErrorList {
        match self {
            Self::BuiltIn(kind) => {
                let mut errors = kind.validate_create(object);
                errors.extend(self.check_schemas(object, None));
                errors
            }
            Self::Custom(custom) => {
                let mut errors = objectmeta::validate_object_meta(
                    &object["metadata"],
                    self.namespaced(),
                    objectmeta::subdomain,
                );
                errors.extend(custom.validate(object, None));
                errors
            }
        }
    }

    /// All that is wrong with a change.
    pub fn validate_update(&self, new: &Value, old: &Value) -> ErrorList {
        match self {
            Self::BuiltIn(kind) => {
                let mut errors = kind.validate_update(new, old);
                errors.extend(self.check_schemas(new, Some(old)));
                errors
            }
            Self::Custom(custom) => {
                let mut errors = objectmeta::validate_object_meta_update(&new["metadata"], &old["metadata"]);
                errors.extend(custom.validate(new, Some(old)));
                errors
            }
        }
    }

    /// What is wrong with the schemas and expressions of an object, where they are new.
    fn check_schemas(&self, new: &Value, old: Option<&Value>) -> ErrorList {
        let is_definition =
            self.plural() == "customresourcedefinitions" && self.group() == "apiextensions.k8s.io";
        if !is_definition && !cel::check::concerns(self.group()) {
            return ErrorList::new();
        }
        let differs = |part: &str| old.is_none_or(|old| old.pointer(part) != new.pointer(part));
        if is_definition && differs("/spec/versions") {
            return definition::check_schemas(new, old);
        }
        match differs("/webhooks") || differs("/spec") {
            true => cel::check::expressions(self.group(), self.plural(), new),
            false => ErrorList::new(),
        }
    }

    /// All that is wrong with a status change.
    pub fn validate_status(&self, new: &Value, old: &Value) -> ErrorList {
        match self {
            Self::BuiltIn(kind) => kind.validate_status(new, old),
            Self::Custom(_) => self.validate_update(new, old),
        }
    }

    /// The values of selectable fields that are kept beside the stored bytes.
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.row_of_catalogue().map(|kind| kind.selectable_fields(object)).unwrap_or_default()
    }

    /// To the stored form.
    pub fn to_storage(&self, object: &mut Value) {
        if let Self::BuiltIn(kind) = self {
            kind.to_storage(object);
        }
    }

    /// The warning that comes with every request on a deprecated version.
    pub fn deprecation(&self) -> Option<String> {
        let version = self.custom()?.version();
        let usual = || format!("{} {} is deprecated", self.api_version(), self.kind());
        version.deprecated.then(|| version.deprecation_warning.clone().unwrap_or_else(usual))
    }

    /// The scale of an object.
    pub fn scale_of(&self, object: &Value) -> Value {
        match self {
            Self::BuiltIn(_) => coxswain_api::scale::from_object(object),
            Self::Custom(custom) => custom.scale_of(object),
        }
    }

    /// Writes a scale into an object.
    pub fn set_scale(&self, object: &mut Value, scale: &Value) {
        match self {
            Self::BuiltIn(_) => coxswain_api::scale::into_object(object, scale),
            Self::Custom(custom) => custom.set_scale(object, scale),
        }
    }
}

/// Text of a time as tables show it.
fn age(text: Option<&str>, now: i64) -> String {
    time::age(text, now)
}
