//! ResourceQuota: a write and its charge to the namespace's quotas are one commit, so that writes side by side never go
//! beyond a limit, and a write that fails was never charged. What is freed again is counted by the controller.

use std::sync::Arc;

use coxswain_api::catalogue;
use coxswain_api::quota::{self, Consumer};
use coxswain_api::resources::{self, ResourceList};
use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_store::{CommitError, Expect, Key, Object, Write};

use super::{Admission, Operation};
use crate::object::{self, Attributes, Meta};
use crate::resource::Resource;

/// Kinds that no quota counts: they are many and end by themselves.
const UNCOUNTED: &[&str] = &["events"];
/// Kinds of which a changed object may consume more than before.
const GROWING: &[&str] = &["pods", "services", "persistentvolumeclaims"];
/// A charge is worked out again this often when the controller counts in between.
const ATTEMPTS: usize = 64;
const QUOTAS: (&str, &str) = ("", "resourcequotas");

/// What became of a write: the object as it is stored, or why it is not.
pub type Committed = Result<Arc<Object<Attributes>>, CommitError<Attributes>>;

impl Admission<'_> {
    /// Whether there is room for a write in the quotas of its namespace.
    pub fn fits(&self, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        self.charges(new, old).map(drop)
    }

    /// Commits `write`, which brings `new` in the place of `old`, together with what it claims and its charge. A claim that
    /// another server was faster with is a conflict that shows the object as it was expected.
    ///
    /// # Errors
    /// There is no room for it.
    pub async fn commit(
        &self,
        write: impl Fn() -> Write<Attributes>,
        claim: impl Fn() -> Option<Write<Attributes>>,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<Committed, Status> {
        let mut turn = None;
        for _ in 0..ATTEMPTS {
            let charges = self.charges(new, old)?;
            if !charges.is_empty() && turn.is_none() {
                // Those who charge wait for each other here rather than try against each other.
                turn = Some(self.server.charging.lock().await);
                continue;
            }
            let write = write();
            let key = write.key.clone();
            let own: Vec<_> = std::iter::once(write).chain(claim()).collect();
            let claimed = own.len();
            let writes = own.into_iter().chain(charges).collect();
            match self.server.store.commit(writes).await {
                Ok(mut objects) => return Ok(Ok(objects.swap_remove(0))),
                Err((0, error)) => return Ok(Err(error)),
                Err((failed, _)) if failed < claimed => {
                    return Ok(Err(CommitError::Conflict(self.server.store.get(&key))));
                }
                Err(_) => {}
            }
        }
        Err(self.forbidden(new, "its quotas change too often to be charged; try again"))
    }

    /// The quotas of the namespace as they are to be once the write is done.
    fn charges(&self, new: &Value, old: Option<&Value>) -> Result<Vec<Write<Attributes>>, Status> {
        let (group, plural) = (self.kind.group(), self.kind.plural());
        let grows = self.operation == Operation::Create || (group.is_empty() && GROWING.contains(&plural));
        if !grows || UNCOUNTED.contains(&plural) || !self.kind.namespaced() {
            return Ok(Vec::new());
        }
        let Some(kind) = catalogue::by_gvk("", "v1", "ResourceQuota").map(Resource::BuiltIn) else {
            return Ok(Vec::new());
        };
        let collection = object::collection(QUOTAS);
        let consumer = Consumer::new(group, plural);
        let mut writes = Vec::new();
        for stored in self.server.store.collection(&collection).list(&format!("{}/", new.namespace())) {
            let mut quota: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
            let more = quota::charge(&quota, &consumer, new, old).map_err(|why| self.forbidden(new, &why))?;
            if more.is_empty() {
                continue;
            }
            book(&mut quota, &more);
            writes.push(Write {
                key: Key::new(collection.as_str(), format!("{}/{}", quota.namespace(), quota.name())),
                expect: Expect::At(stored.revision),
                value: Some((object::encode(&quota), object::attributes(&kind, &quota))),
            });
        }
        Ok(writes)
    }
}

fn book(quota: &mut Value, more: &ResourceList) {
    quota.meta_mut().remove("resourceVersion");
    for (resource, amount) in resources::list(&quota["status"], "used") {
        if let Some(more) = more.get(&resource) {
            quota["status"]["used"][resource] = (amount + *more).to_string().into();
        }
    }
}
