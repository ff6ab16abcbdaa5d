//! The forms that objects of a kind have in its other versions, as entries of `managedFields` were recorded in them.
//!
//! Conversion of custom resources may be a call, and managed fields are a pure matter: what has to be asked for is noted, and what
//! needed it starts anew when [`Forms::fetch`] has brought it.

use std::sync::{Mutex, PoisonError};

use coxswain_api::{Kind, catalogue};
use coxswain_meta::apply::Versions;
use coxswain_meta::json::Value;

use super::{Conversion, Custom, Place, Resource};
use crate::Server;
use crate::object::Meta;

/// The versions of a kind.
pub struct Forms<'a> {
    /// The kind, in the version of the request.
    pub kind: &'a Resource,
    calls: Mutex<Calls>,
}

/// What was asked of a webhook, and what it said.
#[derive(Default)]
struct Calls {
    wanted: Option<(Value, String)>,
    answered: Vec<((Value, String), Result<Value, String>)>,
}

/// Brings an object of one row of the catalogue into the form of another.
pub fn reform(object: &mut Value, from: &Kind, to: &Kind) {
    if from.version == to.version && from.group == to.group {
        return;
    }
    from.to_storage(object);
    to.from_storage(object);
    object["apiVersion"] = to.api_version().into();
    object["kind"] = to.kind.into();
}

impl<'a> Forms<'a> {
    /// Those of a kind.
    pub fn of(kind: &'a Resource) -> Self {
        Self { kind, calls: Mutex::default() }
    }

    /// Asks for the conversion that was missing; false where none was.
    pub async fn fetch(&self, server: &Server) -> bool {
        let wanted = self.calls.lock().unwrap_or_else(PoisonError::into_inner).wanted.take();
        let (Some((object, version)), Resource::Custom(custom)) = (wanted, self.kind) else { return false };
        let name = version.rsplit('/').next().unwrap_or_default();
        let Some(to) = Custom::any(&custom.definition, name) else { return false };
        // Rare, and larger than what every request should hold.
        let converted = Box::pin(server.convert(&to, vec![object.clone()])).await;
        let converted = converted.map(|mut objects| objects.pop().unwrap_or_default());
        let converted = converted.map_err(|why| {
            why.message.strip_prefix("Internal error occurred: ").unwrap_or(&why.message).to_owned()
        });
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.answered.push(((object, version), converted));
        true
    }

    /// The row of the kind in another version; the core group and the others do not know each other.
    fn row(&self, version: &str) -> Option<&'static Kind> {
        if let Resource::BuiltIn(kind) = self.kind
            && kind.api_version() == version
        {
            return Some(kind);
        }
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let same = group == self.kind.group();
        same.then(|| catalogue::find(group, version, self.kind.plural())).flatten()
    }

    /// What the webhook said, or a note that it has to be asked.
    fn ask(&self, object: Value, version: &str) -> Result<Value, String> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let known = calls.answered.iter().find(|((asked, to), _)| to == version && *asked == object);
        if let Some((_, answer)) = known {
            return answer.clone();
        }
        calls.wanted = Some((object, version.to_owned()));
        Err("the webhook has not been asked yet".into())
    }
}

impl<'a> Versions for Forms<'a> {
    type Node = Place<'a>;

    fn root(&self, version: &str) -> Option<Place<'a>> {
        match self.kind {
            Resource::BuiltIn(_) => Resource::BuiltIn(self.row(version)?).schema().map(Place::Object),
            Resource::Custom(custom) => {
                let definition = &custom.definition;
                let name = version.strip_prefix(definition.group.as_str())?.strip_prefix('/')?;
                let known = definition.versions.iter().find(|version| version.name == name)?;
                Some(Place::Custom(known.schema(), true))
            }
        }
    }

    fn convert(&self, object: &Value, version: &str) -> Result<Value, String> {
        let mut object = object.clone();
        object.meta_mut().remove("managedFields");
        if object["apiVersion"] == version {
            return Ok(object);
        }
        match self.kind {
            Resource::BuiltIn(kind) => {
                let from = object["apiVersion"].as_str().and_then(|from| self.row(from)).unwrap_or(kind);
                let to = self.row(version).ok_or_else(|| format!("no version {version}"))?;
                reform(&mut object, from, to);
                Ok(object)
            }
            Resource::Custom(custom) => {
                let name = version.rsplit('/').next().unwrap_or_default();
                let to =
                    Custom::any(&custom.definition, name).ok_or_else(|| format!("no version {version}"))?;
                let converted = match custom.definition.conversion {
                    Conversion::None => {
                        object["apiVersion"] = version.into();
                        object
                    }
                    Conversion::Webhook(..) => self.ask(object, version)?,
                };
                match to.typed_error(&converted) {
                    Some(error) => Err(error),
                    None => Ok(converted),
                }
            }
        }
    }
}
