//! The node authorizer: a kubelet sees what the pods bound to its node need, and writes what is its own.
//! <https://kubernetes.io/docs/reference/access-authn-authz/node/>
//!
//! What only the content of a request can tell is left to NodeRestriction, among the admission plugins.

mod graph;
mod references;

use coxswain_meta::json::Value;
use std::sync::LazyLock;

pub use graph::Graph;
use references::Reference;
pub use references::{Kind, named_by_pod};

use super::{Attributes, Rule};
use crate::Server;
use crate::authn::UserInfo;
use crate::bootstrap;

const LEASES: &str = "kube-node-lease";

/// What every kubelet may do, whatever its pods are.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| bootstrap::rules_of_role("system:node"));

/// The node whose kubelet a user is.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:").filter(|name| !name.is_empty())?;
    user.groups.iter().any(|group| group == "system:nodes").then_some(name)
}

/// Allowed, or the reason why this authorizer has no opinion.
type Opinion = Result<(), String>;

fn none<T>(why: &str) -> Result<T, String> {
    Err(why.to_owned())
}

impl Server {
    /// What the node authorizer says to a request of a kubelet.
    pub(super) fn decide_for_node(&self, node: &str, asked: &Attributes) -> Opinion {
        let main = asked.subresource.is_empty();
        match (asked.group, asked.resource) {
            ("", "secrets") => self.may_read(node, Kind::Secret, asked),
            ("", "configmaps") => self.may_read(node, Kind::ConfigMap, asked),
            ("", "persistentvolumeclaims") if asked.subresource == "status" => match asked.verb {
                "update" | "patch" => self.is_related(node, Kind::Claim, asked),
                _ => none("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.may_get(node, Kind::Claim, asked),
            ("", "persistentvolumes") => self.may_get(node, Kind::Volume, asked),
            ("resource.k8s.io", "resourceclaims") => self.may_get(node, Kind::ResourceClaim, asked),
            ("storage.k8s.io", "volumeattachments") => self.may_get(node, Kind::Attachment, asked),
            ("", "serviceaccounts") if asked.verb == "get" && main => {
                self.may_read(node, Kind::Account, asked)
            }
            ("", "serviceaccounts") if asked.verb != "create" || asked.name.is_empty() => {
                none("can only create tokens for individual service accounts")
            }
            ("", "serviceaccounts") if asked.subresource != "token" => {
                none("can only create token subresource of serviceaccount")
            }
            ("", "serviceaccounts") => self.is_related(node, Kind::Account, asked),
            ("coordination.k8s.io", "leases") => lease(node, asked),
            ("storage.k8s.io", "csinodes") => csi_node(node, asked),
            ("resource.k8s.io", "resourceslices") => self.slice(node, asked),
            ("certificates.k8s.io", "podcertificaterequests") => self.pod_certificate(node, asked),
            ("", "nodes") => own_node(node, asked),
            ("", "pods") => self.pod(node, asked),
            _ if RULES.iter().any(|rule| rule.allows(asked)) => Ok(()),
            _ => none(""),
        }
    }

    fn may_get(&self, node: &str, kind: Kind, asked: &Attributes) -> Opinion {
        match (asked.verb, asked.subresource) {
            ("get", "") => self.is_related(node, kind, asked),
            ("get", _) => none("cannot get subresource"),
            _ => none("can only get individual resources of this type"),
        }
    }

    fn may_read(&self, node: &str, kind: Kind, asked: &Attributes) -> Opinion {
        match asked.verb {
            "get" | "list" | "watch" if !asked.subresource.is_empty() => none("cannot read subresource"),
            "get" | "list" | "watch" if asked.namespace.is_empty() => {
                none("can only read namespaced object of this type")
            }
            "get" | "list" | "watch" => self.is_related(node, kind, asked),
            _ => none("can only read resources of this type"),
        }
    }

    /// Whether pods on the node lead to the object that is asked for.
    fn is_related(&self, node: &str, kind: Kind, asked: &Attributes) -> Opinion {
        if asked.name.is_empty() {
            return none("No Object name found");
        }
        match self.leads_to(node, kind, asked.namespace, asked.name) {
            true => Ok(()),
            false => Err(format!("no relationship found between node '{node}' and this object")),
        }
    }

    fn leads_to(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let object = |group: &str, plural: &str| self.read(group, plural, namespace, name);
        let is_its =
            |object: Option<Value>, field: &str| object.is_some_and(|object| object["spec"][field] == node);
        match kind {
            Kind::Pod => is_its(object("", "pods"), "nodeName"),
            Kind::Slice => is_its(object("resource.k8s.io", "resourceslices"), "nodeName"),
            Kind::Attachment => is_its(object("storage.k8s.io", "volumeattachments"), "nodeName"),
            Kind::PodCertificate => {
                is_its(object("certificates.k8s.io", "podcertificaterequests"), "nodeName")
            }
            Kind::Volume => object("", "persistentvolumes").is_some_and(|volume| {
                let claim = references::claim_of(&volume);
                claim.is_some_and(|claim| self.graph.holds(&self.store, node, &claim))
            }),
            Kind::Secret => {
                let secret = Reference::new(kind, namespace, name);
                self.graph.holds(&self.store, node, &secret) || self.a_volume_needs(node, &secret)
            }
            _ => self.graph.holds(&self.store, node, &Reference::new(kind, namespace, name)),
        }
    }

    /// Whether a volume of a pod on the node names a secret of its own.
    fn a_volume_needs(&self, node: &str, secret: &Reference) -> bool {
        let claims = self.graph.claims(&self.store, node);
        claims.iter().filter_map(Reference::parts).any(|(namespace, name)| {
            let claim = self.read("", "persistentvolumeclaims", namespace, name);
            let volume = claim.and_then(|claim| {
                self.read("", "persistentvolumes", "", claim["spec"]["volumeName"].as_str()?)
            });
            let its = Reference::new(Kind::Claim, namespace, name);
            volume.is_some_and(|volume| {
                references::claim_of(&volume).as_ref() == Some(&its)
                    && references::secrets_of_volume(&volume, namespace).contains(secret)
            })
        })
    }

    fn slice(&self, node: &str, asked: &Attributes) -> Opinion {
        match asked.verb {
            _ if !asked.subresource.is_empty() => none("cannot authorize ResourceSlice subresources"),
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.is_related(node, Kind::Slice, asked),
            "watch" | "list" | "deletecollection" if asked.selects("spec.nodeName", node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                none("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => none(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod_certificate(&self, node: &str, asked: &Attributes) -> Opinion {
        match asked.verb {
            _ if !asked.subresource.is_empty() => {
                none("nodes may not access the status subresource of PodCertificateRequests")
            }
            "create" => Ok(()),
            "get" => self.is_related(node, Kind::PodCertificate, asked),
            "list" | "watch" if asked.selects("spec.nodeName", node) => Ok(()),
            "list" | "watch" => {
                none("can only list/watch podcertificaterequests with nodeName field selector")
            }
            verb => Err(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pod(&self, node: &str, asked: &Attributes) -> Opinion {
        match (asked.subresource, asked.verb) {
            ("", "get") => self.is_related(node, Kind::Pod, asked),
            ("", "list" | "watch") if asked.selects("spec.nodeName", node) => Ok(()),
            ("", "list" | "watch") if !asked.name.is_empty() => self.is_related(node, Kind::Pod, asked),
            ("", "list" | "watch") => none("can only list/watch pods with spec.nodeName field selector"),
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => none(""),
        }
    }
}

fn lease(node: &str, asked: &Attributes) -> Opinion {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return none("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // The name of what is created is in the body: NodeRestriction reads it.
    if asked.verb != "create" && asked.name != node {
        return none("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, asked: &Attributes) -> Opinion {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return none("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return none("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return none("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn own_node(node: &str, asked: &Attributes) -> Opinion {
    match (asked.subresource, asked.verb, asked.name) {
        ("", "create" | "update" | "patch", _) | ("status", "update" | "patch", _) => Ok(()),
        ("", "get" | "list" | "watch", name) if name == node => Ok(()),
        ("", "get" | "list" | "watch", "") => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch", name) => {
            Err(format!("node '{node}' cannot read '{name}', only its own Node object"))
        }
        _ => none(""),
    }
}
