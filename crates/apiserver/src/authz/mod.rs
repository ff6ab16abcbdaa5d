//! Who may do what: role-based access control over the roles and bindings in the store.

pub mod escalation;
mod rules;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use coxswain_meta::Status;
use coxswain_store::{Revision, Store};
use serde_json::Value;

pub use rules::{Rule, Verdict};

use crate::Server;
use crate::authn::UserInfo;
use crate::object::{Meta, ObjectView};
use crate::request::RequestInfo;
use rules::{Grants, Subject};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The members of this group may do everything, even before any role exists.
const SUPERUSERS: &str = "system:masters";

/// The roles and bindings, indexed by subject; rebuilt when one of them changed.
#[derive(Default)]
pub struct Rbac {
    built: RwLock<Option<([Revision; 4], Arc<Grants>)>>,
}

const KINDS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

impl Rbac {
    /// The grants as of now.
    pub fn grants(&self, store: &Store<ObjectView>) -> Arc<Grants> {
        let collections = KINDS.map(|kind| store.collection(&format!("{kind}.{GROUP}")));
        let now = [0, 1, 2, 3].map(|i: usize| collections[i].newest());
        if let Some((at, grants)) = &*self.built.read().unwrap_or_else(PoisonError::into_inner)
            && *at == now
        {
            return grants.clone();
        }
        let [cluster_roles, cluster_bindings, roles, bindings] = collections.map(|collection| {
            let objects = collection.list("");
            objects
                .iter()
                .filter_map(|object| serde_json::from_slice(&object.bytes).ok())
                .collect::<Vec<Value>>()
        });
        let grants = Arc::new(Grants::build(&cluster_roles, &cluster_bindings, &roles, &bindings));
        *self.built.write().unwrap_or_else(PoisonError::into_inner) = Some((now, grants.clone()));
        grants
    }
}

/// What is to be decided.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a> {
    /// The verb.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural, without subresource; empty for paths.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Object name.
    pub name: &'a str,
    /// Namespace; empty for the cluster scope.
    pub namespace: &'a str,
    /// The path of a request that is no resource.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// The question a request poses.
    pub fn of(info: &'a RequestInfo) -> Self {
        Self {
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            name: &info.name,
            namespace: if info.resource == "namespaces" { "" } else { &info.namespace },
            path: if info.is_resource { "" } else { &info.path },
        }
    }

    /// `resource/subresource`.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

impl Server {
    /// Whether a user may do it, and why.
    pub(crate) fn decide(&self, user: &UserInfo, asked: &Attributes) -> Verdict {
        if user.groups.iter().any(|group| group == SUPERUSERS) {
            return Verdict { allowed: true, reason: String::new() };
        }
        self.rbac.grants(&self.store).decide(&subjects(user), asked)
    }

    /// Decides for a user, as of now, apart from the server.
    pub(crate) fn decider(
        &self,
        user: &UserInfo,
    ) -> impl Fn(&Attributes) -> (bool, String) + Send + Sync + 'static {
        let (grants, subjects) = (self.rbac.grants(&self.store), subjects(user));
        let super_user = user.groups.iter().any(|group| group == SUPERUSERS);
        move |asked| {
            let verdict = grants.decide(&subjects, asked);
            (super_user || verdict.allowed, verdict.reason)
        }
    }

    /// The rules that hold for a user in a namespace.
    pub(crate) fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules = self.rbac.grants(&self.store).rules_of(&subjects(user), namespace);
        if user.groups.iter().any(|group| group == SUPERUSERS) {
            rules.extend(Rule::everything());
        }
        rules
    }

    /// The authorization layer: every request passes here once.
    pub(crate) fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
        let asked = Attributes::of(info);
        if self.decide(user, &asked).allowed {
            return Ok(());
        }
        if user.name == "system:anonymous"
            && user.groups.iter().all(|group| group == "system:unauthenticated")
            && !info.is_resource
        {
            return Err(Status::forbidden_path(&user.name, asked.verb, &info.path));
        }
        Err(match info.is_resource {
            true => Status::forbidden_to_user(
                &user.name,
                asked.verb,
                asked.group,
                &asked.full_resource(),
                asked.namespace,
                asked.name,
            ),
            false => Status::forbidden_path(&user.name, asked.verb, &info.path),
        })
    }
}

fn subjects(user: &UserInfo) -> Vec<Subject> {
    let mut subjects = vec![Subject::User(user.name.clone())];
    if let Some((namespace, name)) =
        user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    {
        subjects.push(Subject::ServiceAccount(namespace.to_owned(), name.to_owned()));
    }
    subjects.extend(user.groups.iter().cloned().map(Subject::Group));
    subjects
}

/// Collects what selectors of an aggregated role match.
fn labels_of(role: &Value) -> &Value {
    &role.meta()["labels"]
}

type RoleRules = HashMap<String, Arc<[Rule]>>;
