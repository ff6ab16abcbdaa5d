//! Admission policies: what writes must hold, and what is changed in them, in CEL.

mod base;
mod mutating;
pub mod status;
mod validating;

use std::sync::{Arc, PoisonError, RwLock};

use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_meta::labels::Selector;
use coxswain_store::Revision;

use crate::Server;
use crate::object::{self, Meta};
use crate::resource::Resource;
use crate::webhook::Asked;

const GROUP: &str = "admissionregistration.k8s.io";

/// A kind of policy.
pub trait Kind: Send + Sync {
    /// The resource of the policies.
    const POLICIES: &'static str;
    /// The resource of their bindings.
    const BINDINGS: &'static str;
    /// Compiles a policy.
    fn parse(policy: &Value) -> Self;
}

/// The policies of a kind that are in force, read anew when a policy or binding changed.
pub struct Policies<K>(RwLock<(Revision, Arc<Vec<Bound<K>>>)>);

/// A policy with the bindings that put it to work.
type Bound<K> = (K, Vec<Value>);

impl<K> Default for Policies<K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Kind> Policies<K> {
    fn current(&self, server: &Server) -> Arc<Vec<Bound<K>>> {
        let newest = |plural: &str| server.store.collection(&object::collection((GROUP, plural))).newest();
        let newest = newest(K::POLICIES).max(newest(K::BINDINGS));
        {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if known.0 == newest {
                return known.1.clone();
            }
        }
        let bindings = server.read_all(GROUP, K::BINDINGS, "");
        let mut policies = server.read_all(GROUP, K::POLICIES, "");
        policies.sort_by(|a, b| a.name().cmp(b.name()));
        let bound = policies.iter().filter_map(|policy| {
            let own = bindings.iter().filter(|binding| binding["spec"]["policyName"] == policy.name());
            let own: Vec<Value> = own.cloned().collect();
            (!own.is_empty()).then(|| (K::parse(policy), own))
        });
        let bound = Arc::new(bound.collect::<Vec<_>>());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (newest, bound.clone());
        bound
    }
}

/// The policies of both kinds.
#[derive(Default)]
pub struct AllPolicies {
    mutating: Policies<mutating::Policy>,
    validating: Policies<validating::Policy>,
}

impl Server {
    /// Everything that users may put between a write and its validation.
    pub async fn admit_mutating(
        &self,
        asked: &Asked<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let policies = self.policies.mutating.current(self);
        if !policies.is_empty() && !asked.is_exempt() && object.is_object() {
            for (policy, bindings) in policies.iter() {
                Box::pin(policy.mutate(bindings, asked, object, old)).await?;
            }
        }
        self.mutate_by_webhooks(asked, object, old).await
    }

    /// Everything that users may put between a write and its commit.
    pub async fn admit_validating(
        &self,
        asked: &Asked<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let policies = self.policies.validating.current(self);
        if !policies.is_empty() && !asked.is_exempt() {
            for (policy, bindings) in policies.iter() {
                Box::pin(policy.validate(bindings, asked, object, old)).await?;
            }
        }
        self.validate_by_webhooks(asked, object, old).await
    }

    /// The parameters that a binding names; one empty entry where it needs none.
    fn params(
        &self,
        kind: Option<&(String, String)>,
        reference: &Value,
        namespace: &str,
    ) -> Result<Vec<Value>, String> {
        let (Some((version, kind)), true) = (kind, reference.is_object()) else {
            return Ok(vec![Value::Null]);
        };
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = self.find_kind(group, version, kind).ok_or_else(|| {
            format!("failed to configure binding: failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'")
        })?;
        let own = reference["namespace"].as_str().unwrap_or(namespace);
        let namespace = if resource.namespaced() { own } else { "" };
        if resource.namespaced() && namespace.is_empty() {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        let mut found = match reference["name"].as_str() {
            Some(name) => {
                self.read(resource.storage().0, resource.storage().1, namespace, name).into_iter().collect()
            }
            None => {
                let selector =
                    Selector::from_label_selector(&reference["selector"]).map_err(|error| error.0)?;
                let mut all = self.read_all(resource.storage().0, resource.storage().1, namespace);
                all.retain(|param| selector.matches_json(&param.meta()["labels"]));
                all
            }
        };
        found.iter_mut().for_each(|param: &mut Value| drop(param.meta_mut().remove("managedFields")));
        if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }

    fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Resource> {
        let built_in = coxswain_api::catalogue::by_gvk(group, version, kind).map(Resource::BuiltIn);
        built_in.or_else(|| {
            let served = self.customs.current(&self.store).served();
            served.into_iter().find(|r| r.kind() == kind && r.group() == group && r.version() == version)
        })
    }
}
