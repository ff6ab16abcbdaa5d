//! ResourceQuota: a write is charged to its namespace's quotas before it is committed, one write at a time, so that writes
//! side by side never go beyond a limit. What is freed again is counted by the controller.

use coxswain_api::catalogue;
use coxswain_api::quota::{self, Consumer};
use coxswain_api::resources::{self, ResourceList};
use coxswain_meta::Status;
use coxswain_meta::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{Admission, Operation};
use crate::Server;
use crate::bootstrap;
use crate::handler::{Change, Part};
use crate::object::Meta;
use crate::resource::Resource;

/// Kinds that no quota counts: they are many and end by themselves.
const UNCOUNTED: &[&str] = &["events"];
/// Kinds of which a changed object may consume more than before.
const GROWING: &[&str] = &["pods", "services", "persistentvolumeclaims"];

/// What a write was charged, by quota.
#[derive(Default)]
pub struct Charge {
    namespace: String,
    quotas: Vec<(String, ResourceList)>,
}

impl Admission<'_> {
    /// Charges a write to the quotas of its namespace; in a dry run it only has to fit in.
    pub async fn charge(&self, new: &Value, old: Option<&Value>, dry_run: bool) -> Result<Charge, Status> {
        let (group, plural) = (self.kind.group(), self.kind.plural());
        let grows = self.operation == Operation::Create || (group.is_empty() && GROWING.contains(&plural));
        let namespace = new.namespace();
        if !grows || UNCOUNTED.contains(&plural) || !self.kind.namespaced() {
            return Ok(Charge::default());
        }
        if self.server.read_all("", "resourcequotas", namespace).is_empty() {
            return Ok(Charge::default());
        }
        let consumer = Consumer::new(group, plural);
        let _turn = self.server.charging.lock().await;
        let mut charge = Charge { namespace: namespace.to_owned(), quotas: Vec::new() };
        for quota in self.server.read_all("", "resourcequotas", namespace) {
            let more = quota::charge(&quota, &consumer, new, old).map_err(|why| self.forbidden(new, &why))?;
            if !more.is_empty() {
                charge.quotas.push((quota.name().to_owned(), more));
            }
        }
        if dry_run {
            charge.quotas.clear();
        }
        charge.book(self.server, |used, more| *used + *more).await?;
        Ok(charge)
    }
}

impl Charge {
    /// Gives back what was charged for a write that was not committed.
    pub async fn refund(&self, server: &Server) {
        if self.quotas.is_empty() {
            return;
        }
        let _turn = server.charging.lock().await;
        let less = |used: &Quantity, more: &Quantity| (*used - *more).max(Quantity::from_units(0));
        if let Err(status) = self.book(server, less).await {
            tracing::debug!(namespace = self.namespace, %status, "a quota keeps its charge until it is counted again");
        }
    }

    async fn book(&self, server: &Server, sum: fn(&Quantity, &Quantity) -> Quantity) -> Result<(), Status> {
        let Some(kind) = catalogue::by_gvk("", "v1", "ResourceQuota").map(Resource::BuiltIn) else {
            return Ok(());
        };
        let user = bootstrap::user();
        for (name, more) in &self.quotas {
            let target = Change {
                kind: &kind,
                user: &user,
                namespace: &self.namespace,
                name,
                part: Part::Verbatim,
                dry_run: false,
                manager: None,
            };
            let book = |old: &Value| {
                let mut new = old.clone();
                new.meta_mut().remove("resourceVersion");
                let mut used: Map<String, Value> =
                    old["status"]["used"].as_object().cloned().unwrap_or_default();
                for (resource, amount) in resources::list(&old["status"], "used") {
                    if let Some(more) = more.get(&resource) {
                        used.insert(resource, sum(&amount, more).to_string().into());
                    }
                }
                new["status"]["used"] = json!(used);
                Ok(new)
            };
            Box::pin(server.update(&target, book)).await?;
        }
        Ok(())
    }
}
