//! Who may do what: the node authorizer, role-based access control over the roles and bindings in the store, and a webhook.

mod chain;
pub mod escalation;
pub mod node;
mod rules;
mod webhook;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_store::{Revision, Store};
use futures::FutureExt;

pub use chain::{Authorizer, Chain};
pub use rules::{Rule, Verdict};
pub use webhook::{AuthorizationWebhook, AuthorizationWebhookConfig, WebhookError};

use crate::authn::UserInfo;
use crate::handler::Stored;
use crate::object::ObjectView;
use crate::request::RequestInfo;
use crate::rows::Rows;
use crate::{Server, audit};
use rules::{Binding, Grants, Role, Subject};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The members of this group may do everything, even before any role exists.
const SUPERUSERS: &str = "system:masters";

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is.
    AlwaysDeny,
    /// Kubelets may do what their pods need.
    Node,
    /// Roles and bindings.
    Rbac,
    /// A webhook.
    Webhook,
}

#[derive(Default)]
struct Known {
    cluster_roles: Rows<Arc<Role>>,
    roles: Rows<Arc<Role>>,
    cluster_bindings: Rows<Arc<Binding>>,
    bindings: Rows<Arc<Binding>>,
}

fn refreshed<T>(rows: &mut Rows<Arc<T>>, stored: &[Stored], read: fn(&Value) -> T) -> Vec<Arc<T>> {
    let parse = |object: &Stored| serde_json::from_slice(&object.bytes).unwrap_or_default();
    rows.refresh(stored, |object, _| Arc::new(read(&parse(object))));
    rows.values().cloned().collect()
}

/// The roles and bindings, indexed by subject; indexed anew when one of them changed.
#[derive(Default)]
pub struct Rbac {
    built: RwLock<Option<([Revision; 4], Arc<Grants>)>>,
    known: Mutex<Known>,
}

const KINDS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

impl Rbac {
    /// The grants as of now.
    pub fn grants(&self, store: &Store<ObjectView>) -> Arc<Grants> {
        let collections = KINDS.map(|kind| store.collection(&format!("{kind}.{GROUP}")));
        let now = || [0, 1, 2, 3].map(|i: usize| collections[i].newest());
        let built = |now: [Revision; 4]| {
            let built = self.built.read().unwrap_or_else(PoisonError::into_inner);
            built.as_ref().filter(|(at, _)| *at == now).map(|(_, grants)| grants.clone())
        };
        if let Some(grants) = built(now()) {
            return grants;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have done it meanwhile.
        let now = now();
        if let Some(grants) = built(now) {
            return grants;
        }
        let [cluster_roles, cluster_bindings, roles, bindings] =
            [0, 1, 2, 3].map(|i: usize| collections[i].list(""));
        let cluster_roles = refreshed(&mut known.cluster_roles, &cluster_roles, Role::read);
        let roles = refreshed(&mut known.roles, &roles, Role::read);
        let mut all = refreshed(&mut known.cluster_bindings, &cluster_bindings, Binding::read);
        all.extend(refreshed(&mut known.bindings, &bindings, Binding::read));
        let grants = Arc::new(Grants::build(&cluster_roles, &roles, &all));
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
    /// API version; empty where it does not matter.
    pub version: &'a str,
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
    /// The field selector of a request for many.
    pub field_selector: &'a str,
}

impl<'a> Attributes<'a> {
    /// The question a request poses.
    pub fn of(info: &'a RequestInfo) -> Self {
        Self {
            verb: info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            name: &info.name,
            namespace: if info.resource == "namespaces" { "" } else { &info.namespace },
            path: if info.is_resource { "" } else { &info.path },
            field_selector: &info.field_selector,
        }
    }

    /// Whether only objects are asked for whose field has this value.
    pub fn selects(&self, field: &str, value: &str) -> bool {
        let mut terms = self.field_selector.split(',').filter_map(|term| term.trim().strip_prefix(field));
        terms.any(|term| term.strip_prefix("==").or_else(|| term.strip_prefix('=')) == Some(value))
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
    /// Whether a user may do it, and why, where no future can wait. A webhook is waited for by this thread; others take
    /// over its tasks.
    pub(crate) fn decide(&self, user: &UserInfo, asked: &Attributes) -> Verdict {
        let chain = self.config.access.authorizers.get();
        if chain.asks_others() && !is_superuser(user) {
            let runtime = tokio::runtime::Handle::current();
            return tokio::task::block_in_place(|| runtime.block_on(self.ask_chain(&chain, user, asked)));
        }
        // Without webhooks, nothing of it waits.
        self.ask_chain(&chain, user, asked).now_or_never().unwrap_or_default()
    }

    /// Whether a user may do it, and why.
    pub(crate) async fn ask(&self, user: &UserInfo, asked: &Attributes<'_>) -> Verdict {
        let chain = self.config.access.authorizers.get();
        self.ask_chain(&chain, user, asked).await
    }

    async fn ask_chain(&self, chain: &Chain, user: &UserInfo, asked: &Attributes<'_>) -> Verdict {
        if is_superuser(user) {
            return Verdict::allowed();
        }
        let mut verdict = Verdict::default();
        for authorizer in chain.iter() {
            let opinion = match authorizer {
                Authorizer::Webhook(webhook) => webhook.decide(user, asked).await,
                Authorizer::Local(mode) => self.decide_by(*mode, user, asked),
            };
            if verdict.follow(opinion) {
                break;
            }
        }
        verdict
    }

    fn decide_by(&self, mode: Mode, user: &UserInfo, asked: &Attributes) -> Verdict {
        match mode {
            Mode::AlwaysAllow => Verdict::allowed(),
            Mode::AlwaysDeny => {
                Verdict { reason: "Everything is forbidden.".to_owned(), ..Verdict::default() }
            }
            Mode::Node => match node::node_of(user).map(|node| self.decide_for_node(node, asked)) {
                Some(Ok(())) => Verdict::allowed(),
                Some(Err(reason)) => Verdict { reason, ..Verdict::default() },
                None => Verdict::default(),
            },
            Mode::Rbac => self.rbac.grants(&self.store).decide(&subjects(user), asked),
            Mode::Webhook => Verdict::default(),
        }
    }

    /// The rules that hold for a user in a namespace.
    pub(crate) fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules = self.rbac.grants(&self.store).rules_of(&subjects(user), namespace);
        if is_superuser(user) {
            rules.extend(Rule::everything());
        }
        rules
    }

    /// The authorization layer: every request passes here once.
    pub(crate) async fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
        let asked = Attributes::of(info);
        let verdict = self.ask(user, &asked).await;
        let decision = if verdict.allowed { "allow" } else { "forbid" };
        audit::annotate("authorization.k8s.io/decision", || decision.to_owned());
        audit::annotate("authorization.k8s.io/reason", || verdict.reason.clone());
        if verdict.allowed {
            return Ok(());
        }
        let mut status = match info.is_resource {
            true => Status::forbidden_to_user(
                &user.name,
                asked.verb,
                asked.group,
                &asked.full_resource(),
                asked.namespace,
                asked.name,
            ),
            false => Status::forbidden_path(&user.name, asked.verb, &info.path),
        };
        if !verdict.reason.is_empty() {
            status.message = format!("{}: {}", status.message, verdict.reason);
        }
        Err(status)
    }
}

fn is_superuser(user: &UserInfo) -> bool {
    user.groups.iter().any(|group| group == SUPERUSERS)
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
