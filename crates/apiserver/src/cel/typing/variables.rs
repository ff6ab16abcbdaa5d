//! What expressions can name: the variables of each place that has expressions, with their types.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::signatures::{parts, read};
use super::types::{Object, Type};

/// The types of members, as upstream declares them; each of what stands before it. What is wrong with the text ends the
/// first test.
const OBJECTS: &str = "\
kubernetes.GroupVersionKind: group string, version string, kind string
kubernetes.GroupVersionResource: group string, version string, resource string
kubernetes.UserInfo: username string, uid string, groups list(string), extra map(string, list(string))
kubernetes.AdmissionRequest: kind kubernetes.GroupVersionKind, resource kubernetes.GroupVersionResource, subResource string, requestKind kubernetes.GroupVersionKind, requestResource kubernetes.GroupVersionResource, requestSubResource string, name string, namespace string, operation string, userInfo kubernetes.UserInfo, dryRun bool, options dyn
kubernetes.NamespaceSpec: finalizers list(string)
kubernetes.NamespaceCondition: status string, type string, lastTransitionTime timestamp, message string, reason string
kubernetes.NamespaceStatus: conditions list(kubernetes.NamespaceCondition), phase string
kubernetes.NamespaceMetadata: name string, generateName string, namespace string, labels map(string, string), annotations map(string, string), UID string, creationTimestamp timestamp, deletionGracePeriodSeconds int, deletionTimestamp timestamp, generation int, resourceVersion string, finalizers list(string)
kubernetes.Namespace: metadata kubernetes.NamespaceMetadata, spec kubernetes.NamespaceSpec, status kubernetes.NamespaceStatus
kubernetes.DRADevice: driver string, attributes map(string, map(string, dyn)), capacity map(string, map(string, kubernetes.Quantity)), allowMultipleAllocations bool
kubernetes.SelectorRequirement: key string, operator string, values list(string)
kubernetes.FieldSelectorAttributes: rawSelector string, requirements list(kubernetes.SelectorRequirement)
kubernetes.LabelSelectorAttributes: rawSelector string, requirements list(kubernetes.SelectorRequirement)
kubernetes.ResourceAttributes: namespace string, verb string, group string, version string, resource string, subresource string, name string, fieldSelector kubernetes.FieldSelectorAttributes, labelSelector kubernetes.LabelSelectorAttributes
kubernetes.NonResourceAttributes: path string, verb string
kubernetes.SubjectAccessReviewSpec: resourceAttributes kubernetes.ResourceAttributes, nonResourceAttributes kubernetes.NonResourceAttributes, user string, groups list(string), extra map(string, list(string)), uid string
JSONPatch: op string, path string, from string, value dyn";

static DECLARED: LazyLock<BTreeMap<&str, Arc<Object>>> = LazyLock::new(|| {
    let mut known: BTreeMap<&str, Arc<Object>> = BTreeMap::new();
    for line in OBJECTS.lines() {
        let (name, members) = line.split_once(": ").expect("members");
        let fields = parts(members).into_iter().map(|member| {
            let (name, ty) = member.split_once(' ').expect("a type");
            (name.to_owned(), declared(&read(ty, &mut Vec::new()), &known))
        });
        let fields = fields.collect();
        known.insert(name, Arc::new(Object { name: name.to_owned(), fields: Some(fields) }));
    }
    known
});

/// A type in which the names of objects are those objects.
fn declared(ty: &Type, known: &BTreeMap<&str, Arc<Object>>) -> Type {
    match ty {
        Type::Opaque(name) => known.get(name).map_or(ty.clone(), |object| Type::Object(object.clone())),
        other => other.with(&mut |part| declared(part, known)),
    }
}

fn object(name: &str) -> Type {
    DECLARED.get(name).map_or(Type::Dyn, |object| Type::Object(object.clone()))
}

/// The variables of an expression.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(String, Type)>,
    /// Whether it writes objects and patches.
    writes_patches: bool,
    /// Whether `cel.bind` is known.
    binds: bool,
}

impl Environment {
    /// With another variable.
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.push((name.to_owned(), ty));
        self
    }

    /// The same where objects and patches are written.
    pub fn writing(self) -> Self {
        Self { writes_patches: true, ..self }
    }

    /// Whether they are.
    pub fn writes_patches(&self) -> bool {
        self.writes_patches
    }

    /// Whether values can be given names.
    pub fn binds(&self) -> bool {
        self.binds
    }

    /// The type of a variable.
    pub fn variable(&self, name: &str) -> Option<Type> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, ty)| ty.clone())
    }

    /// The type of objects that are written by this name.
    pub fn shape(&self, name: &str) -> Option<Arc<Object>> {
        match name {
            _ if !self.writes_patches => None,
            "JSONPatch" => DECLARED.get(name).cloned(),
            _ if name == "Object" || name.starts_with("Object.") => {
                Some(Arc::new(Object { name: name.to_owned(), fields: None }))
            }
            _ => None,
        }
    }
}

/// Of an issuer's claims.
pub static CLAIMS: LazyLock<Environment> =
    LazyLock::new(|| Environment::default().with("claims", Type::map(Type::Dyn)));

/// Of users that an issuer's claims make.
pub static USERS: LazyLock<Environment> =
    LazyLock::new(|| Environment::default().with("user", object("kubernetes.UserInfo")));

/// Of what an authorization webhook is asked.
pub static REVIEWS: LazyLock<Environment> =
    LazyLock::new(|| Environment::default().with("request", object("kubernetes.SubjectAccessReviewSpec")));

/// Of the conditions of admission webhooks.
pub static CONDITIONS: LazyLock<Environment> = LazyLock::new(|| authorized(admission()));

/// Of selectors of devices.
pub static DEVICES: LazyLock<Environment> = LazyLock::new(|| {
    let environment = Environment::default().with("device", object("kubernetes.DRADevice"));
    Environment { binds: true, ..environment }
});

/// Of all that a policy has, whatever its variables are made of.
pub static POLICY: LazyLock<Environment> = LazyLock::new(|| {
    authorized(admission()).with("params", Type::Dyn).with("variables", Type::Dyn).writing()
});

/// Of a write.
pub fn admission() -> Environment {
    Environment::default()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("namespaceObject", object("kubernetes.Namespace"))
        .with("request", object("kubernetes.AdmissionRequest"))
}

/// The same with who may do what.
pub fn authorized(environment: Environment) -> Environment {
    environment
        .with("authorizer", Type::Opaque("kubernetes.authorization.Authorizer"))
        .with("authorizer.requestResource", Type::Opaque("kubernetes.authorization.ResourceCheck"))
}

/// The type of a policy's `variables`.
pub fn composed(fields: BTreeMap<String, Type>) -> Type {
    Type::Object(Arc::new(Object { name: "kubernetes.variables".into(), fields: Some(fields) }))
}
