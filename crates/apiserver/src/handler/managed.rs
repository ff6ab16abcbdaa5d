//! Field managers: who wrote what, kept in `metadata.managedFields` (server-side apply, KEP-555).

use coxswain_api::schema;
use coxswain_meta::Status;
use coxswain_meta::apply::{self, Conflict, FIELDS, Manager, Refusal, Set, Versions};
use coxswain_meta::json::{Map, Value, json};
use coxswain_meta::status::{Cause, Details};
use http::HeaderMap;
use http::header::USER_AGENT;

use super::Call;
use crate::Server;
use crate::object::{Meta, now};
use crate::resource::{Forms, Place, Resource};
use crate::sent;

const LONGEST_NAME: usize = 128;
/// kubectl's own manager: it may take over what its client-side apply wrote.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes.
#[derive(Clone, Debug)]
pub struct FieldManager {
    /// The name of the manager.
    pub name: String,
    /// The subresource it writes through; empty for the object itself.
    pub subresource: String,
}

impl FieldManager {
    /// What the server itself writes.
    pub fn server() -> Self {
        Self { name: "kube-apiserver".into(), subresource: String::new() }
    }

    /// The manager of a request: the one it names, or else its client.
    pub fn of(call: &Call) -> Self {
        let named = call.query.get("fieldManager").map(str::to_owned);
        let name = named.unwrap_or_else(|| from_user_agent(&call.headers));
        Self { name, subresource: call.info.subresource.clone() }
    }

    fn manager<'a>(&'a self, version: &'a str, now: &'a str) -> Manager<'a> {
        Manager { name: &self.name, api_version: version, subresource: &self.subresource, now }
    }

    /// What a write through this path resets and so never owns.
    fn reset(&self, kind: &Resource, object: &Value) -> Set {
        match self.subresource.as_str() {
            // What somebody asks to have signed stays what it was.
            "" if kind.plural() == "certificatesigningrequests" && kind.row_of_catalogue().is_some() => {
                Set::from_json(&json!({ "f:spec": {}, "f:status": {} }))
            }
            "" if kind.status() => Set::from_json(&json!({ "f:status": {} })),
            "status" => {
                let others = object.as_object().into_iter().flatten().map(|(name, _)| name);
                let others = others.filter(|name| !matches!(*name, "metadata" | "status"));
                Set::from_json(&others.map(|name| (format!("f:{name}"), json!({}))).collect())
            }
            _ => Set::default(),
        }
    }

    /// Records a write that is no apply. What the client itself says of managers counts. Where the object cannot be had in the
    /// version of an entry, all entries go: what they say is not known to be true any more.
    pub async fn record(&self, server: &Server, kind: &Resource, old: &Value, new: &mut Value) {
        let forms = Forms::of(kind);
        while let Err(why) = self.try_record(&forms, old, new) {
            if !forms.fetch(server).await {
                tracing::debug!(kind = kind.kind(), why, "managed fields are dropped");
                new.meta_mut().remove("managedFields");
                return;
            }
        }
    }

    fn try_record(&self, forms: &Forms, old: &Value, new: &mut Value) -> Result<(), String> {
        let kind = forms.kind;
        let (version, now) = (kind.api_version(), now());
        let (place, manager, reset) =
            (Place::root(kind), self.manager(&version, &now), self.reset(kind, new));
        let (named, is_new) = (take_sent(new), old.as_object().is_some_and(Map::is_empty));
        if named.is_none() && is_new {
            // What is empty is owned too, if Go writes it.
            let seen = sent::owned(new);
            let seen = seen.as_ref().unwrap_or(new);
            let entries = apply::create(place, (&blank(kind), seen), &reset, &manager);
            store(new, entries);
            return Ok(());
        }
        let was_sent = named.is_some();
        let mut entries = named.unwrap_or_else(|| entries(old));
        let blank = is_new.then(|| blank(kind));
        let old = blank.as_ref().unwrap_or(old);
        let changes = apply::changes(place, old, new);
        let in_version = |version: &str| forms.changes(old, new, version);
        let done = apply::update(&mut entries, changes, &reset, &manager, in_version);
        // What was sent is wanted again where something has to be asked first.
        if done.is_ok() || was_sent {
            store(new, entries);
        }
        done
    }

    /// The object that an applied configuration makes of the live one.
    pub fn apply(
        &self,
        forms: &Forms,
        live: &Value,
        configuration: &Value,
        force: bool,
    ) -> Result<Value, Status> {
        let kind = forms.kind;
        let (version, now) = (kind.api_version(), now());
        let reset = self.reset(kind, configuration);
        let attempt = |force: bool| {
            let (mut bare, mut entries) = (live.clone(), entries(live));
            apply::thaw(&mut entries);
            bare.meta_mut().remove("managedFields");
            let manager = self.manager(&version, &now);
            let applied = apply::apply(
                (Place::root(kind), forms),
                (&bare, &blank(kind)),
                configuration,
                &mut entries,
                &manager,
                (&reset, force),
            );
            applied.map(|mut object| {
                store(&mut object, entries);
                object
            })
        };
        let mut object = match attempt(force) {
            Err(Refusal::Conflicts(conflicts))
                if self.name == KUBECTL && self.all_last_applied(kind, live, &conflicts) =>
            {
                attempt(true)
            }
            other => other,
        }
        .map_err(|refusal| match refusal {
            Refusal::Conflicts(conflicts) => refuse(&conflicts),
            Refusal::Conversion(why) => Status::failure(500, "", why),
        })?;
        if self.name == KUBECTL && live.meta()["annotations"][LAST_APPLIED].is_string() {
            let text = format!("{configuration}\n");
            if let Some(annotations) = object.meta_mut().get_mut("annotations") {
                annotations[LAST_APPLIED] = text.into();
            }
        }
        Ok(object)
    }

    /// Whether every conflict is about a field that kubectl's client-side apply wrote.
    fn all_last_applied(&self, kind: &Resource, live: &Value, conflicts: &[Conflict]) -> bool {
        let last = live.meta()["annotations"][LAST_APPLIED].as_str();
        let Some(last) = last.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return false };
        let written = apply::changes(Place::root(kind), &json!({}), &last).written.paths();
        conflicts.iter().all(|conflict| written.contains(&conflict.path))
    }
}

/// An object that nobody has filled: its structs are there already.
fn blank(kind: &Resource) -> Value {
    kind.schema().map_or_else(|| json!({}), schema::zero_object)
}

/// The entries of an object.
fn entries(object: &Value) -> Vec<Value> {
    object.meta()["managedFields"].as_array().cloned().unwrap_or_default()
}

/// Takes the entries that a client sent out of the object, where they are any; one empty entry clears them all.
fn take_sent(object: &mut Value) -> Option<Vec<Value>> {
    let Some(Value::Array(entries)) = object.meta_mut().remove("managedFields") else { return None };
    let empty = |entry: &Value| entry.as_object().is_some_and(Map::is_empty);
    if let [only] = entries.as_slice()
        && empty(only)
    {
        return Some(Vec::new());
    }
    let sound = |entry: &Value| {
        matches!(entry["operation"].as_str(), Some("Apply" | "Update"))
            && matches!(entry[FIELDS], Value::Object(_) | Value::Raw(_))
            && entry["apiVersion"].is_string()
    };
    (!entries.is_empty() && entries.iter().all(sound)).then_some(entries)
}

fn store(object: &mut Value, entries: Vec<Value>) {
    if entries.is_empty() {
        object.meta_mut().remove("managedFields");
    } else {
        object.meta_mut().insert("managedFields", entries.into());
    }
}

/// The client's name, as its `User-Agent` begins.
fn from_user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// 409 with every conflict.
fn refuse(conflicts: &[Conflict]) -> Status {
    let message = match conflicts {
        [only] => format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path),
        _ => {
            let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
            managers.sort_unstable();
            managers.dedup();
            let mut lines = Vec::new();
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                let own = conflicts.iter().filter(|conflict| conflict.manager == manager);
                lines.extend(own.map(|conflict| format!("- {}", conflict.path)));
            }
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        }
    };
    let causes = conflicts.iter().map(|conflict| Cause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {}", conflict.manager),
        field: conflict.path.clone(),
    });
    Status::failure(409, "Conflict", message)
        .with_details(Details { causes: causes.collect(), ..Details::default() })
}
