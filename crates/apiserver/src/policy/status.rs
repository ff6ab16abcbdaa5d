//! The status of validating policies: what was found wrong with their expressions.

use std::sync::Arc;

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};

use super::validating::warnings_of;
use super::{GROUP, Kind, validating};
use crate::Server;
use crate::authn::UserInfo;
use crate::handler::{Change, FieldManager, Part};
use crate::object::Meta;
use crate::resource::Resource;

/// Writes the status of policies when they change, until the server stops.
pub async fn run(server: Arc<Server>) {
    let policies = server.store.collection(&format!("{}.{GROUP}", validating::Policy::POLICIES));
    loop {
        let at = server.store.revision();
        for policy in server.read_all(GROUP, validating::Policy::POLICIES, "") {
            if policy["status"]["observedGeneration"] != policy.meta()["generation"]
                && let Err(status) = settle(&server, &policy).await
            {
                tracing::debug!(%status, policy = policy.name(), "the status of a policy was not written");
            }
        }
        let Ok(mut changes) = policies.watch("", at) else { continue };
        tokio::select! {
            _ = changes.next() => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

async fn settle(server: &Arc<Server>, policy: &Value) -> Result<(), Status> {
    let Some(kind) = Resource::built_in(GROUP, "v1", validating::Policy::POLICIES) else { return Ok(()) };
    let user = UserInfo::new("system:apiserver", &["system:masters"]);
    let manager = FieldManager { subresource: "status".into(), ..FieldManager::server() };
    let change = Change {
        kind: &kind,
        user: &user,
        namespace: "",
        name: policy.name(),
        part: Part::Verbatim,
        dry_run: false,
        manager: Some(manager),
    };
    let settled = server.update(&change, |old| {
        let mut new = old.clone();
        new.meta_mut().remove("resourceVersion");
        let warnings = warnings_of(old);
        let checking =
            if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        new["status"]["typeChecking"] = checking;
        new["status"]["observedGeneration"] = old.meta()["generation"].clone();
        Ok(new)
    });
    settled.await.map(drop)
}
