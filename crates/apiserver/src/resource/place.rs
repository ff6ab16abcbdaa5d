//! The places of an object as server-side apply walks them: one view of built-in types and structural schemas.

use std::sync::LazyLock;

use coxswain_api::schema::{self, Field, Type, TypeRef};
use coxswain_meta::apply::{Member, Node, Relation};
use coxswain_meta::json::{Text, Value};
use coxswain_meta::structural::{self, Structural};

use hashbrown::HashSet;

use super::Resource;

/// Types that merge as a whole (`x-kubernetes-map-type: atomic`).
const ATOMIC: &[&str] = &[
    "io.k8s.api.admissionregistration.v1.MatchResources",
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1.ParamKind",
    "io.k8s.api.admissionregistration.v1.ParamRef",
    "io.k8s.api.admissionregistration.v1.Variable",
    "io.k8s.api.autoscaling.v1.CrossVersionObjectReference",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.EvictionResponder",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// The field that merges by its members though its type is atomic elsewhere.
const GRANULAR: &str = "claimRef";

static ATOMIC_TYPES: LazyLock<HashSet<TypeRef>> =
    LazyLock::new(|| ATOMIC.iter().filter_map(|name| schema::by_name(name)).collect());

/// Fields with a free map that merges as a whole.
const ATOMIC_MAPS: [&str; 3] = ["nodeSelector", "selector", "allocatedResourceStatuses"];
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// A place in an object.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// A value of a built-in type, and the field that it fills.
    BuiltIn(&'a Type, Option<&'a Field>),
    /// A whole built-in object.
    Object(TypeRef),
    /// A value of a structural schema; `true` where it is a whole resource.
    Custom(&'a Structural, bool),
    /// A value that no schema describes.
    Unknown,
}

impl<'a> Place<'a> {
    /// The root of a resource's objects.
    pub fn root(resource: &'a Resource) -> Self {
        match resource {
            Resource::BuiltIn(_) => resource.schema().map_or(Self::Unknown, Self::Object),
            Resource::Custom(custom) => Self::Custom(custom.schema(), true),
        }
    }

    fn metadata() -> Self {
        schema::by_name(OBJECT_META).map_or(Self::Unknown, Self::Object)
    }

    fn of_type(self) -> Option<TypeRef> {
        match self {
            Self::Object(type_ref) => Some(type_ref),
            Self::BuiltIn(Type::Ref(type_ref), _) => Some(*type_ref),
            _ => None,
        }
    }
}

fn deduced(value: &Value) -> Relation {
    if value.is_object() { Relation::Map } else { Relation::Atomic }
}

impl Node for Place<'_> {
    fn relation(self, value: &Value) -> Relation {
        if let Some(type_ref) = self.of_type() {
            if matches!(self, Self::BuiltIn(_, Some(field)) if field.name == GRANULAR) {
                return Relation::Map;
            }
            return if ATOMIC_TYPES.contains(&type_ref) { Relation::Atomic } else { Relation::Map };
        }
        match self {
            Self::Unknown | Self::Object(_) => deduced(value),
            Self::BuiltIn(Type::Map(_), Some(field)) if ATOMIC_MAPS.contains(&field.name) => Relation::Atomic,
            Self::BuiltIn(Type::Map(_), _) => Relation::Map,
            Self::BuiltIn(Type::List(_), Some(field)) => match field.list_type {
                schema::ListType::Atomic => Relation::Atomic,
                schema::ListType::Set => Relation::Set,
                schema::ListType::Map => Relation::Keyed,
            },
            Self::BuiltIn(..) => Relation::Atomic,
            Self::Custom(schema, _) => match schema.type_.as_str() {
                "object" if schema.atomic_map => Relation::Atomic,
                "object" => Relation::Map,
                "array" => match schema.list_type {
                    structural::ListType::Atomic => Relation::Atomic,
                    structural::ListType::Set => Relation::Set,
                    structural::ListType::Map => Relation::Keyed,
                },
                _ if schema.preserves_unknown => deduced(value),
                _ => Relation::Atomic,
            },
        }
    }

    fn member(self, name: &str) -> Member<Self> {
        let free = |node| Member { node, declared: false };
        let named = |node| Member { node, declared: true };
        match self {
            Self::Custom(schema, whole) => match (whole || schema.embedded, name) {
                (true, "metadata") => named(Self::metadata()),
                (true, "apiVersion" | "kind") => named(Self::Unknown),
                _ => match (schema.properties.get(name), &schema.additional) {
                    (Some(inner), _) => named(Self::Custom(inner, false)),
                    (None, Some(inner)) => free(Self::Custom(inner, false)),
                    (None, None) => free(Self::Unknown),
                },
            },
            Self::BuiltIn(Type::Map(inner), _) => free(Self::BuiltIn(inner, None)),
            _ => match self.of_type().and_then(|type_ref| type_ref.get(name)) {
                Some(field) => named(Self::BuiltIn(&field.ty, Some(field))),
                None => free(Self::Unknown),
            },
        }
    }

    fn item(self) -> Self {
        match self {
            Self::BuiltIn(Type::List(inner), _) => Self::BuiltIn(inner, None),
            Self::Custom(Structural { items: Some(inner), .. }, _) => Self::Custom(inner, false),
            _ => Self::Unknown,
        }
    }

    fn keys(self) -> Vec<(Text, Option<Value>)> {
        match self {
            // The one default among the keys of built-in lists is the protocol of ports.
            Self::BuiltIn(_, Some(field)) => field
                .map_keys
                .split(',')
                .map(|key| (key.into(), (key == "protocol").then(|| "TCP".into())))
                .collect(),
            Self::Custom(schema, _) => {
                let default = |key: &String| schema.items.as_ref()?.properties.get(key)?.default.clone();
                schema.map_keys.iter().map(|key| (key.as_str().into(), default(key))).collect()
            }
            _ => Vec::new(),
        }
    }
}
