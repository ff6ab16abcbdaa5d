//! What the server does for CustomResourceDefinitions: accepts their names, and clears up after them.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use coxswain_store::Revision;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::Server;
use crate::authn::UserInfo;
use crate::handler::{Change, FieldManager, Options, Part, Stored};
use crate::object::{Meta, collection, now};
use crate::resource::{Custom, DEFINITIONS, Resource};
use crate::rows::Rows;

/// Where a definition in a group of the community says who approved of it.
const APPROVAL: &str = "api-approved.kubernetes.io";
const APPROVAL_POLICY: &str = "https://github.com/kubernetes/enhancements/pull/1111";
/// The finalizer that holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const GROUP: &str = "apiextensions.k8s.io";

fn user() -> UserInfo {
    UserInfo::new("system:apiserver", &["system:masters"])
}

/// Settles definitions whenever one changes, until the server stops.
pub async fn run(server: Arc<Server>) {
    let mut cleaning: HashMap<String, ()> = HashMap::new();
    let mut cleaners = FuturesUnordered::new();
    let definitions = server.store.collection(DEFINITIONS);
    let mut from = Revision(0);
    let mut known = Known::default();
    loop {
        // After a compaction the state is read anew, which is all that counts here.
        let at = server.store.revision();
        known.refresh(&definitions.list(""));
        for name in known.unsettled() {
            let Some(Row { definition, .. }) = known.0.get(&name) else { continue };
            if definition.is_deleting() && definition.finalizers().iter().any(|held| held == CLEANUP) {
                if cleaning.insert(name.to_string(), ()).is_none() {
                    cleaners.push(clean(server.clone(), name.to_string()));
                }
            } else if let Err(status) = known.settle(&server, &name).await {
                tracing::warn!(%status, definition = &*name, "a definition was not settled");
            }
        }
        from = from.max(at);
        let Ok(mut changes) = definitions.watch("", from) else {
            from = server.store.revision();
            continue;
        };
        tokio::select! {
            changed = changes.next() => {
                if let Ok(events) = changed {
                    from = events.last().map_or(from, |event| event.object.revision);
                }
            }
            Some(name) = cleaners.next() => { cleaning.remove(&name); }
            () = server.shutdown.cancelled() => return,
        }
    }
}

fn change<'a>(kind: &'a Resource, user: &'a UserInfo, name: &'a str) -> Change<'a> {
    let manager = FieldManager { subresource: "status".into(), ..FieldManager::server() };
    Change { kind, user, namespace: "", name, part: Part::Verbatim, dry_run: false, manager: Some(manager) }
}

fn definition_kind() -> Option<Resource> {
    Resource::built_in(GROUP, "v1", "customresourcedefinitions")
}

/// A definition without its versions.
struct Row {
    definition: Value,
    /// Whether its status says what it must say, whatever becomes of others.
    settled: bool,
}

/// The definitions.
#[derive(Default)]
struct Known(Rows<Row>);

impl Known {
    /// Takes in what is stored now.
    fn refresh(&mut self, stored: &[Stored]) {
        self.0.refresh(stored, |object, _| {
            let mut definition: Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
            if let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("versions");
            }
            Row { definition, settled: false }
        });
    }

    /// Those that have changed, and those whose names somebody else had.
    fn unsettled(&self) -> Vec<Arc<str>> {
        self.0.iter().filter(|(_, row)| !row.settled).map(|(name, _)| name.clone()).collect()
    }

    /// Accepts the names of a definition where nobody else has them, and says so in its status.
    async fn settle(&mut self, server: &Arc<Server>, name: &str) -> Result<(), Status> {
        let (Some(kind), Some(row)) = (definition_kind(), self.0.get(name)) else {
            return Ok(());
        };
        let others = self.0.iter().filter(|(other, _)| &***other != name);
        let others: Vec<&Value> = others.map(|(_, row)| &row.definition).collect();
        let mut settled = row.definition.clone();
        decide(&mut settled, &others);
        if settled == row.definition {
            let accepted = is_true(&settled, "NamesAccepted");
            self.0.get_mut(name).into_iter().for_each(|row| row.settled = accepted);
            return Ok(());
        }
        let user = user();
        let change = change(&kind, &user, name);
        let written = server.update(&change, |old| {
            let mut new = old.clone();
            new.meta_mut().remove("resourceVersion");
            decide(&mut new, &others);
            Ok(new)
        });
        match written.await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }
}

/// Writes down which names are accepted and whether the definition is served.
fn decide(definition: &mut Value, others: &[&Value]) {
    let group = definition["spec"]["group"].clone();
    let taken = |field: &str, name: &str| {
        others.iter().filter(|other| other["spec"]["group"] == group).any(|other| {
            let accepted = &other["status"]["acceptedNames"];
            let named = |field: &str| accepted[field] == name;
            match field {
                "kind" | "listKind" => named("kind") || named("listKind"),
                _ => {
                    let short = accepted["shortNames"].as_array().into_iter().flatten();
                    named("plural") || named("singular") || short.into_iter().any(|other| other == name)
                }
            }
        })
    };
    let wanted = definition["spec"]["names"].clone();
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let mut conflict = None;
    for (field, reason) in [
        ("plural", "PluralConflict"),
        ("singular", "SingularConflict"),
        ("shortNames", "ShortNamesConflict"),
        ("kind", "KindConflict"),
        ("listKind", "ListKindConflict"),
    ] {
        let names = match &wanted[field] {
            Value::Array(names) => names.clone(),
            Value::Null => Vec::new(),
            name => vec![name.clone()],
        };
        let clash = names.iter().filter_map(Value::as_str).find(|name| taken(field, name));
        match clash {
            // The last one is told.
            Some(name) => conflict = Some((reason, format!("{name:?} is already in use"))),
            None if wanted[field].is_null() => {
                drop(accepted.as_object_mut().and_then(|map| map.remove(field)))
            }
            None => accepted[field] = wanted[field].clone(),
        }
    }
    match &wanted["categories"] {
        Value::Null => drop(accepted.as_object_mut().and_then(|map| map.remove("categories"))),
        categories => accepted["categories"] = categories.clone(),
    }
    definition["status"]["acceptedNames"] = accepted;
    decide_approval(definition);
    match conflict {
        None => {
            set_condition(definition, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            let why = "the initial names have been accepted";
            set_condition(definition, "Established", true, "InitialNamesAccepted", why);
        }
        Some((reason, message)) => {
            set_condition(definition, "NamesAccepted", false, reason, &message);
            // Once served, a definition stays so.
            if !is_true(definition, "Established") {
                let why = "not all names are accepted";
                set_condition(definition, "Established", false, "NotAccepted", why);
            }
        }
    }
}

/// Whether the community has approved of a definition in one of its groups.
fn decide_approval(definition: &mut Value) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let of =
        |domain: &str| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if !of("k8s.io") && !of("kubernetes.io") {
        return;
    }
    let said = definition["metadata"]["annotations"][APPROVAL].as_str().unwrap_or_default().to_owned();
    let must = format!("protected groups must have approval annotation {APPROVAL:?}");
    let (holds, reason, message) = match said.as_str() {
        "" => (false, "MissingAnnotation", format!("{must}, see {APPROVAL_POLICY}")),
        said if said.starts_with("unapproved") => {
            (false, "UnapprovedAnnotation", format!("not approved: {said:?}"))
        }
        said if said.parse::<http::Uri>().is_ok_and(|url| url.host().is_some() && url.scheme().is_some()) => {
            (true, "ApprovedAnnotation", format!("approved in {said}"))
        }
        _ => {
            let either = "with either a URL or a reason starting with \"unapproved\"";
            (false, "InvalidAnnotation", format!("{must} {either}, see {APPROVAL_POLICY}"))
        }
    };
    set_condition(definition, "KubernetesAPIApprovalPolicyConformant", holds, reason, &message);
}

fn is_true(definition: &Value, name: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == name && c["status"] == "True")
}

/// Sets a condition of a definition; its time changes only with its status.
pub fn set_condition(definition: &mut Value, name: &str, holds: bool, reason: &str, message: &str) {
    let status = if holds { "True" } else { "False" };
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    let conditions = &mut definition["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    let known = conditions.iter_mut().find(|condition| condition["type"] == name);
    if let Some(condition) = known {
        if condition["status"] != status {
            condition["lastTransitionTime"] = now().into();
        }
        condition["status"] = status.into();
        condition["reason"] = reason.into();
        condition["message"] = message.into();
        return;
    }
    conditions.push(json!({ "type": name, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now() }));
}

/// Deletes the objects of a definition, waits until they are gone and lets the definition go. Returns its name.
async fn clean(server: Arc<Server>, name: String) -> String {
    if let Err(status) = clean_objects(&server, &name).await {
        tracing::warn!(%status, definition = name, "the objects of a definition were not cleared up");
    }
    name
}

async fn clean_objects(server: &Arc<Server>, name: &str) -> Result<(), Status> {
    let user = user();
    let customs = server.customs.current(&server.store);
    let storage = customs.definitions().find(|known| known.name == name).and_then(Custom::stored);
    if let Some(custom) = storage {
        let kind = Resource::Custom(Arc::new(custom));
        let objects = server.store.collection(&collection(kind.storage()));
        loop {
            let at = server.store.revision();
            let left = objects.list("");
            if left.is_empty() {
                break;
            }
            for object in &left {
                let (namespace, name) = object.name.split_once('/').unwrap_or(("", &object.name));
                match server.delete(&kind, &user, namespace, name, &Options::default()).await {
                    Err(status) if status.code != 404 => return Err(status),
                    _ => {}
                }
            }
            if objects.is_empty() {
                break;
            }
            let Ok(mut changes) = objects.watch("", at) else { continue };
            tokio::select! {
                _ = changes.next() => {}
                () = server.shutdown.cancelled() => return Ok(()),
            }
        }
    }
    let Some(kind) = definition_kind() else { return Ok(()) };
    let change = change(&kind, &user, name);
    let released = server.update(&change, |old| {
        let mut new = old.clone();
        new.meta_mut().remove("resourceVersion");
        let left: Vec<String> = old.finalizers().into_iter().filter(|held| held != CLEANUP).collect();
        if left.is_empty() {
            new.meta_mut().remove("finalizers");
        } else {
            new.meta_mut().insert("finalizers", left.into());
        }
        let why = "removed all instances";
        set_condition(&mut new, "Terminating", false, "InstanceDeletionCompleted", why);
        Ok(new)
    });
    match released.await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// What the deletion of a definition begins with: the finalizer, and a condition that says so.
pub fn begin_deletion(definition: &mut Value) {
    let mut finalizers = definition.finalizers();
    if !finalizers.iter().any(|held| held == CLEANUP) {
        finalizers.push(CLEANUP.into());
        definition.meta_mut().insert("finalizers", finalizers.into());
    }
    let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set_condition(definition, "Terminating", true, "InstanceDeletionPending", why);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, plural: &str, kind: &str) -> Value {
        json!({ "metadata": { "name": name }, "spec": { "group": "e.io",
            "names": { "plural": plural, "kind": kind, "listKind": format!("{kind}List") } } })
    }

    #[test]
    fn groups_of_the_community_need_approval() {
        let told = |group: &str, approval: &str| {
            let mut definition = definition("a", "foos", "Foo");
            definition["spec"]["group"] = group.into();
            definition["metadata"]["annotations"] = json!({ APPROVAL: approval });
            decide(&mut definition, &[]);
            let first = &definition["status"]["conditions"][0];
            let is_told = first["type"] == "KubernetesAPIApprovalPolicyConformant";
            is_told.then(|| first["message"].as_str().map(str::to_owned)).flatten().unwrap_or_default()
        };
        assert_eq!(told("e.io", ""), "");
        assert_eq!(told("a.k8s.io", "https://e.io/1"), "approved in https://e.io/1");
        assert_eq!(told("k8s.io", "unapproved, a try"), "not approved: \"unapproved, a try\"");
    }

    #[test]
    fn the_second_of_a_name_is_not_accepted() {
        let mut first = definition("a", "foos", "Foo");
        decide(&mut first, &[]);
        assert!(is_true(&first, "Established"));
        let mut second = definition("b", "foos", "Bar");
        decide(&mut second, &[&first]);
        assert!(!is_true(&second, "Established"));
        assert_eq!(second["status"]["conditions"][0]["message"], "\"foos\" is already in use");
        assert_eq!(second["status"]["acceptedNames"], json!({ "kind": "Bar", "listKind": "BarList" }));
    }
}
