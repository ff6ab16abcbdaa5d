//! A write as webhooks and policies see it: what is matched against their rules, and the request they are shown.

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use coxswain_meta::labels::Selector;
use uuid::Uuid;

use crate::Server;
use crate::authn::UserInfo;
use crate::object::{Meta, read_managers};
use crate::resource::{Custom, Resource, reform};

/// What is done, as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is deleted.
    Delete,
    /// A stream to it is opened.
    Connect,
}

impl Verb {
    /// `CREATE`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }

    fn options(self) -> Value {
        let kind = match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Delete => "DeleteOptions",
            Self::Connect => return Value::Null,
        };
        json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1" })
    }
}

/// One write.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The server.
    pub server: &'a Server,
    /// The resource that is written.
    pub kind: &'a Resource,
    /// The subresource; empty for the object itself.
    pub subresource: &'a str,
    /// Group, version and kind of the object, where a subresource has one of its own.
    pub own_kind: Option<(&'a str, &'a str, &'a str)>,
    /// What is done.
    pub verb: Verb,
    /// Who writes.
    pub user: &'a UserInfo,
    /// The object's namespace; empty for the cluster scope.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// Whether nothing is to be written.
    pub dry_run: bool,
}

/// The groups of the configurations themselves: what they say cannot keep them from being changed.
const EXEMPT: [&str; 6] = [
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

fn holds(list: &Value, wanted: &str) -> bool {
    list.as_array().into_iter().flatten().any(|item| item == "*" || item == wanted)
}

impl<'a> Asked<'a> {
    /// Whether no webhook and no policy is asked about the resource at all.
    pub fn is_exempt(&self) -> bool {
        self.kind.group() == "admissionregistration.k8s.io" && EXEMPT.contains(&self.kind.plural())
    }

    /// `pods/status`.
    fn path(&self) -> String {
        match self.subresource {
            "" => self.kind.plural().to_owned(),
            sub => format!("{}/{sub}", self.kind.plural()),
        }
    }

    /// Whether a rule takes the write on a resource.
    fn fits(&self, rule: &Value, kind: &Resource) -> bool {
        let scope = rule["scope"].as_str().unwrap_or("*");
        let wanted_scope = if self.namespace.is_empty() || self.kind.is_core("namespaces") {
            "Cluster"
        } else {
            "Namespaced"
        };
        let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let named = |pattern: &str| {
            let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
            let any = pattern == "*/*";
            any || ((resource == "*" || resource == kind.plural()) && (sub == "*" || sub == self.subresource))
        };
        let names = rule["resourceNames"].as_array();
        holds(&rule["operations"], self.verb.name())
            && holds(&rule["apiGroups"], kind.group())
            && holds(&rule["apiVersions"], kind.version())
            && (scope == "*" || scope == wanted_scope)
            && resources.into_iter().any(named)
            && names.is_none_or(|names| names.is_empty() || names.iter().any(|name| name == self.name))
    }

    /// The resource in whose form the rules take the write: its own, or an equivalent one where `equivalent`.
    pub fn matched(&self, rules: &Value, equivalent: bool) -> Option<Resource> {
        let rules = rules.as_array().map(Vec::as_slice).unwrap_or_default();
        let taken = |kind: &Resource| rules.iter().any(|rule| self.fits(rule, kind));
        if taken(self.kind) {
            return Some(self.kind.clone());
        }
        self.equivalents().into_iter().filter(|_| equivalent).find(|kind| taken(kind))
    }

    /// Other resources with the same objects.
    fn equivalents(&self) -> Vec<Resource> {
        let same = |kind: &Resource| {
            kind.storage() == self.kind.storage()
                && (kind.group(), kind.version()) != (self.kind.group(), self.kind.version())
        };
        match self.kind {
            Resource::BuiltIn(_) => {
                let all = coxswain_api::catalogue::KINDS.iter().map(Resource::BuiltIn);
                all.filter(same).collect()
            }
            Resource::Custom(custom) => {
                let versions = custom.definition.versions.iter();
                let all = versions.filter_map(|version| Custom::of(&custom.definition, &version.name));
                all.map(Resource::Custom).filter(same).collect()
            }
        }
    }

    /// An object in the form of an equivalent resource.
    pub async fn in_form_of(&self, kind: &Resource, mut object: Value) -> Result<Value, Status> {
        read_managers(&mut object);
        if object.is_null() || kind.api_version() == self.kind.api_version() {
            return Ok(object);
        }
        match (self.kind, kind) {
            (Resource::Custom(_), Resource::Custom(to)) => {
                Ok(self.server.convert(to, vec![object]).await?.pop().unwrap_or_default())
            }
            (Resource::BuiltIn(from), Resource::BuiltIn(to)) => {
                reform(&mut object, from, to);
                Ok(object)
            }
            _ => Ok(object),
        }
    }

    /// Whether the selectors of a configuration take the namespace and the object.
    pub fn selected(
        &self,
        namespaces: &Value,
        objects: &Value,
        object: &Value,
        old: &Value,
    ) -> Result<bool, Status> {
        let parse = |selector: &Value| {
            Selector::from_label_selector(selector).map_err(|error| Status::internal(&error.0))
        };
        let namespaces = parse(namespaces)?;
        if !namespaces.is_everything() {
            let labels = match (self.kind.is_core("namespaces"), self.namespace) {
                (true, _) if self.subresource.is_empty() && self.verb != Verb::Delete => {
                    object.meta()["labels"].clone()
                }
                (true, _) => old.meta()["labels"].clone(),
                (false, "") => return self.selects_object(&parse(objects)?, object, old),
                (false, namespace) => {
                    let namespace = self
                        .server
                        .look_up("", "namespaces", "", namespace)
                        .ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
                    namespace.meta()["labels"].clone()
                }
            };
            if !namespaces.matches_json(&labels) {
                return Ok(false);
            }
        }
        self.selects_object(&parse(objects)?, object, old)
    }

    fn selects_object(&self, selector: &Selector, object: &Value, old: &Value) -> Result<bool, Status> {
        let takes = |object: &Value| object.is_object() && selector.matches_json(&object.meta()["labels"]);
        Ok(selector.is_everything() || takes(object) || takes(old))
    }

    /// The `request` of an `AdmissionReview`, in the form of a resource, without the objects.
    pub fn request(&self, kind: &Resource) -> Value {
        let gvk = |kind: &Resource| {
            let (group, version, kind) = self.own_kind.unwrap_or((kind.group(), kind.version(), kind.kind()));
            json!({ "group": group, "version": version, "kind": kind })
        };
        let gvr = |kind: &Resource| json!({ "group": kind.group(), "version": kind.version(), "resource": kind.plural() });
        let mut request = json!({
            "uid": Uuid::new_v4().to_string(),
            "kind": gvk(kind),
            "resource": gvr(kind),
            "requestKind": gvk(self.kind),
            "requestResource": gvr(self.kind),
            "operation": self.verb.name(),
            "userInfo": self.user.to_json(),
            "dryRun": self.dry_run,
            "options": self.verb.options(),
        });
        for (key, value) in [
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
            ("name", self.name),
            ("namespace", self.namespace),
        ] {
            if !value.is_empty() {
                request[key] = value.into();
            }
        }
        request
    }

    /// What messages call the object: `pods "x"`.
    pub fn refused(&self, why: &str) -> Status {
        Status::forbidden(self.kind.group(), &self.path(), self.name, why)
    }
}
