//! The condition `Dangling` of flow schemas: whether the priority level that they name is there.

use std::sync::Arc;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};

use super::COLLECTIONS;
use crate::Server;
use crate::authn::UserInfo;
use crate::handler::{Change, FieldManager, Part};
use crate::object::{Meta, now};
use crate::resource::{Forms, Resource};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
const DANGLING: &str = "Dangling";

/// Writes the condition where it is not as it should be, until the server stops.
pub async fn run(server: Arc<Server>) {
    if server.flow.is_none() {
        return;
    }
    let collections = COLLECTIONS.map(|name| server.store.collection(name));
    loop {
        let at = server.store.revision();
        let levels = server.read_all(GROUP, "prioritylevelconfigurations", "");
        for schema in server.read_all(GROUP, "flowschemas", "") {
            let wanted = condition(&schema, &levels);
            if !has(&schema, &wanted)
                && let Err(status) = settle(&server, schema.name(), &wanted).await
            {
                tracing::debug!(%status, schema = schema.name(), "the status of a flow schema was not written");
            }
        }
        let [Ok(mut schemas), Ok(mut levels)] = collections.each_ref().map(|one| one.watch("", at)) else {
            continue;
        };
        tokio::select! {
            _ = schemas.next() => {}
            _ = levels.next() => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// The condition without its time, in upstream's words.
fn condition(schema: &Value, levels: &[Value]) -> Value {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let which = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    match levels.iter().any(|known| known.name() == level) {
        true => {
            json!({ "type": DANGLING, "status": "False", "reason": "Found", "message": format!("{which} and it exists") })
        }
        false => json!({ "type": DANGLING, "status": "True", "reason": "NotFound",
            "message": format!("{which} but there is no such object") }),
    }
}

fn conditions(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["status"]["conditions"].as_array().into_iter().flatten()
}

fn has(schema: &Value, wanted: &Value) -> bool {
    let same = |known: &Value| {
        ["type", "status", "reason", "message"].iter().all(|field| known[field] == wanted[field])
    };
    conditions(schema).any(same)
}

async fn settle(server: &Arc<Server>, name: &str, wanted: &Value) -> Result<(), Status> {
    let Some(kind) = Resource::built_in(GROUP, "v1", "flowschemas") else { return Ok(()) };
    let user = UserInfo::new("system:apiserver", &["system:masters"]);
    let manager = FieldManager { name: MANAGER.into(), subresource: "status".into() };
    let change = Change {
        kind: &kind,
        user: &user,
        namespace: "",
        name,
        part: Part::Verbatim,
        dry_run: false,
        manager: None,
    };
    let forms = Forms::of(&kind);
    let settled = server.update(&change, |old| {
        let before = conditions(old).find(|known| known["type"] == DANGLING);
        let since = before.filter(|known| known["status"] == wanted["status"]);
        let mut condition = wanted.clone();
        condition["lastTransitionTime"] =
            since.map_or_else(|| now().into(), |known| known["lastTransitionTime"].clone());
        let applied = json!({ "apiVersion": kind.api_version(), "kind": kind.kind(),
            "metadata": { "name": name }, "status": { "conditions": [condition] } });
        let mut new = manager.apply(&forms, old, &applied, true)?;
        new.meta_mut().remove("resourceVersion");
        Ok(new)
    });
    settled.await.map(drop)
}
