//! The catalogue: one row a kind. Built-in resources exist by being listed here and nowhere else.

use std::collections::HashMap;
use std::sync::LazyLock;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, Status};

use crate::objectmeta::{self, NameFn};
use crate::value::remove;
use crate::{
    admission, apiextensions, apiregistration, apps, autoscaling, batch, certificates, coordination, core,
    discovery, flowcontrol, networking, node, policy, prepare, rbac, resource, scheduling, storage, table,
};

/// Verbs of an ordinary resource.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One kind in one version: how it is named, served, printed, defaulted and checked.
#[derive(Clone, Copy)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Kind of one object.
    pub kind: &'static str,
    /// Kind of a list.
    pub list_kind: &'static str,
    /// Resource name in paths.
    pub plural: &'static str,
    /// Lower-case name of one.
    pub singular: &'static str,
    /// Abbreviations kubectl takes.
    pub short_names: &'static [&'static str],
    /// Groups of kinds kubectl takes, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The verbs that are served.
    pub verbs: &'static [&'static str],
    /// The subresources that are served.
    pub subresources: &'static [Subresource],
    /// Where objects are stored: group and plural of the storage kind. Two rows that name the same storage share
    /// objects, and [`Kind::to_storage`]/[`Kind::from_storage`] convert.
    pub storage: (&'static str, &'static str),
    /// Status is written by its own subresource only.
    pub status: bool,
    /// A PUT makes what is not there.
    pub create_on_update: bool,
    /// Deletion waits for a grace period (pods).
    pub graceful: bool,
    /// The fields besides `metadata.name` and `metadata.namespace` that field selectors may use.
    pub selectable: &'static [&'static str],
    /// Prefixes of selectable fields that are called differently in storage: `(served, stored)`.
    pub field_aliases: &'static [(&'static str, &'static str)],
    /// Annotations that stand for fields in storage: tables and bare metadata, which upstream makes of that form, have none.
    pub own_annotations: &'static [&'static str],
    /// Table columns.
    pub columns: &'static [Column],
    /// What is particular to the kind.
    pub hooks: Hooks,
}

/// A path below an object.
#[derive(Clone, Copy)]
pub struct Subresource {
    /// Path segment, such as `status`.
    pub name: &'static str,
    /// Group of the kind that is read and written.
    pub group: &'static str,
    /// Version of that kind.
    pub version: &'static str,
    /// That kind, such as `Scale`.
    pub kind: &'static str,
    /// The verbs that are served.
    pub verbs: &'static [&'static str],
}

/// A column of a Table.
#[derive(Clone, Copy)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type.
    pub type_: &'static str,
    /// OpenAPI format, `name` for the name column.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0 is always shown, above only by `-o wide`.
    pub priority: u8,
}

/// The functions of a kind. Call them through the methods of [`Kind`], which add what all kinds share.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Checks a name; `true` when it is the prefix of a generated one.
    pub name: NameFn,
    /// Fills upstream's defaults in.
    pub default: fn(&mut Value),
    /// Clears and sets what clients may not at creation.
    pub prepare_create: fn(&mut Value),
    /// Clears and keeps what clients may not change.
    pub prepare_update: fn(&mut Value, &Value),
    /// Checks what is particular to the kind in a new or changed object.
    pub validate: fn(&Value) -> ErrorList,
    /// Checks what is particular to a new object; runs besides `validate`.
    pub validate_new: fn(&Value) -> ErrorList,
    /// Checks what may not change (new, old); runs besides `validate`.
    pub validate_update: fn(&Value, &Value) -> ErrorList,
    /// Checks a status change (new, old).
    pub validate_status: fn(&Value, &Value) -> ErrorList,
    /// Values of the selectable fields.
    pub selectable: fn(&Value) -> Vec<(&'static str, String)>,
    /// Table cells, one a column.
    pub row: fn(&Value, i64) -> Vec<Value>,
    /// From this row's form to the storage row's.
    pub to_storage: fn(&mut Value),
    /// From the storage row's form to this row's.
    pub from_storage: fn(&mut Value),
}

impl Hooks {
    /// Nothing beyond metadata rules.
    pub(crate) const PLAIN: Hooks = Hooks {
        name: objectmeta::subdomain,
        default: prepare::as_is,
        prepare_create: prepare::create_plain,
        prepare_update: prepare::update_plain,
        validate: |_| ErrorList::new(),
        validate_new: |_| ErrorList::new(),
        validate_update: |_, _| ErrorList::new(),
        validate_status: |_, _| ErrorList::new(),
        selectable: |_| Vec::new(),
        row: table::name_age,
        to_storage: prepare::as_is,
        from_storage: prepare::as_is,
    };
    /// The main resource cannot write status.
    pub(crate) const STATUS: Hooks = Hooks {
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        ..Hooks::PLAIN
    };
    /// Besides, changes of the spec count as generations.
    pub(crate) const COUNTED: Hooks = Hooks {
        prepare_create: prepare::create_counted,
        prepare_update: prepare::update_counted,
        ..Hooks::PLAIN
    };
}

/// A row with everything ordinary: `kind!("apps", "v1", "Deployment", "deployments", "deployment")`.
macro_rules! kind {
    ($group:literal, $version:literal, $kind:literal, $plural:literal, $singular:literal) => {
        $crate::catalogue::Kind {
            group: $group,
            version: $version,
            kind: $kind,
            list_kind: concat!($kind, "List"),
            plural: $plural,
            singular: $singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            verbs: $crate::catalogue::ALL_VERBS,
            subresources: &[],
            storage: ($group, $plural),
            status: false,
            create_on_update: false,
            graceful: false,
            selectable: &[],
            field_aliases: &[],
            own_annotations: &[],
            columns: $crate::table::NAME_AGE,
            hooks: $crate::catalogue::Hooks::PLAIN,
        }
    };
}
pub(crate) use kind;

const GET_UPDATE: &[&str] = &["get", "patch", "update"];

impl Subresource {
    /// `status`, read and written as the kind itself.
    pub(crate) const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Subresource { name: "status", group, version, kind, verbs: GET_UPDATE }
    }

    /// `scale` as autoscaling/v1.
    pub(crate) const SCALE: Subresource =
        Subresource { name: "scale", group: "autoscaling", version: "v1", kind: "Scale", verbs: GET_UPDATE };
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether objects are stored as this row serves them.
    pub fn is_stored(&self) -> bool {
        self.storage == (self.group, self.plural) && stored(self.group, self.plural) == Some(self.version)
    }

    /// The schema type of the kind.
    pub fn schema(&self) -> Option<crate::schema::TypeRef> {
        crate::schema::by_gvk(self.group, self.version, self.kind)
    }

    /// Fills upstream's defaults in (create, update and after a patch).
    pub fn default(&self, object: &mut Value) -> Result<(), Status> {
        (self.hooks.default)(object);
        Ok(())
    }

    /// Before validation at creation: resets status, sets the generation, drops what only the server writes.
    pub fn prepare_create(&self, object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata") {
            for key in ["generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
                remove(metadata, key);
            }
        }
        (self.hooks.prepare_create)(object);
        // A fresh status has the zero values that Go writes.
        let status = self.schema().and_then(|t| t.get("status"));
        if let (Some(field), Some(status)) = (status, object.get_mut("status")) {
            crate::schema::normalise_field(status, field);
        }
    }

    /// Before validation at update: keeps status and the server's metadata, raises the generation when the spec changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        prepare::keep_system_metadata(new, old);
        (self.hooks.prepare_update)(new, old);
    }

    /// Before validation of a status update: everything but status and metadata stays.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        prepare::status_only(new, old);
    }

    /// All that is wrong with a new object, metadata included.
    pub fn validate_create(&self, object: &Value) -> ErrorList {
        let mut errors =
            objectmeta::validate_object_meta(&object["metadata"], self.namespaced, self.hooks.name);
        errors.extend(self.known_finalizers(object));
        errors.extend((self.hooks.validate)(object));
        errors.extend((self.hooks.validate_new)(object));
        errors
    }

    fn known_finalizers(&self, object: &Value) -> ErrorList {
        let lenient = ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"];
        match lenient.contains(&self.group) {
            true => ErrorList::new(),
            false => objectmeta::known_finalizers(&object["metadata"]),
        }
    }

    /// All that is wrong with a change, metadata and immutable fields included.
    pub fn validate_update(&self, new: &Value, old: &Value) -> ErrorList {
        let mut errors = objectmeta::validate_object_meta_update(&new["metadata"], &old["metadata"]);
        errors.extend(self.known_finalizers(new));
        errors.extend((self.hooks.validate)(new));
        errors.extend((self.hooks.validate_update)(new, old));
        errors
    }

    /// All that is wrong with a status change.
    pub fn validate_status(&self, new: &Value, old: &Value) -> ErrorList {
        let mut errors = objectmeta::validate_object_meta_update(&new["metadata"], &old["metadata"]);
        errors.extend((self.hooks.validate_status)(new, old));
        errors
    }

    /// The values of the fields in [`Kind::selectable`] (not `metadata.*`).
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        (self.hooks.selectable)(object)
    }

    /// The storage form's name of a selectable field.
    pub fn stored_field(&self, field: &str) -> String {
        let alias = self
            .field_aliases
            .iter()
            .find_map(|(served, stored)| Some((field.strip_prefix(served)?, stored)));
        alias.map_or_else(|| field.to_owned(), |(rest, stored)| format!("{stored}{rest}"))
    }

    /// The Table cells of an object, as many as [`Kind::columns`]; `now` in seconds since the epoch.
    pub fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        (self.hooks.row)(object, now)
    }

    /// Converts from this row's form to the storage row's (identity for most).
    pub fn to_storage(&self, object: &mut Value) {
        (self.hooks.to_storage)(object);
    }

    /// Converts from the storage row's form to this row's (identity for most).
    pub fn from_storage(&self, object: &mut Value) {
        (self.hooks.from_storage)(object);
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// Every built-in kind.
pub static KINDS: &[Kind] = &[
    core::binding::KIND,
    core::misc::COMPONENT_STATUS,
    core::config::CONFIG_MAP,
    core::endpoints::KIND,
    core::event::KIND,
    core::limits::LIMIT_RANGE,
    core::namespace::KIND,
    core::node::KIND,
    core::volume::CLAIM,
    core::volume::VOLUME,
    core::pod::KIND,
    core::misc::POD_TEMPLATE,
    apps::CONTROLLER,
    core::limits::RESOURCE_QUOTA,
    core::config::SECRET,
    core::misc::SERVICE_ACCOUNT,
    core::service::KIND,
    admission::MUTATING_BINDING,
    admission::MUTATING,
    admission::MUTATING_WEBHOOK,
    admission::VALIDATING_BINDING,
    admission::VALIDATING,
    admission::VALIDATING_WEBHOOK,
    apiextensions::DEFINITION,
    apiregistration::SERVICE,
    apps::CONTROLLER_REVISION,
    apps::DAEMON_SET,
    apps::DEPLOYMENT,
    apps::REPLICA_SET,
    apps::STATEFUL_SET,
    autoscaling::HPA_V2,
    autoscaling::HPA_V1,
    batch::CRON_JOB,
    batch::JOB,
    certificates::SIGNING_REQUEST,
    coordination::LEASE,
    discovery::SLICE,
    core::event::NEW_KIND,
    flowcontrol::SCHEMA,
    flowcontrol::LEVEL,
    networking::IP_ADDRESS,
    networking::SERVICE_CIDR,
    networking::INGRESS,
    networking::INGRESS_CLASS,
    networking::POLICY,
    node::RUNTIME_CLASS,
    policy::BUDGET,
    rbac::CLUSTER_ROLE,
    rbac::CLUSTER_ROLE_BINDING,
    rbac::ROLE,
    rbac::ROLE_BINDING,
    resource::CLASS,
    resource::CLAIM,
    resource::TEMPLATE,
    resource::SLICE,
    scheduling::PRIORITY_CLASS,
    storage::CLASS,
    storage::CSI_DRIVER,
    storage::CSI_NODE,
    storage::ATTACHMENT,
    storage::CAPACITY,
    storage::ATTRIBUTES,
];

/// The rows of a group and plural, the stored version first.
static BY_PATH: LazyLock<HashMap<(&str, &str), Vec<&Kind>>> = LazyLock::new(|| {
    let mut rows: HashMap<_, Vec<_>> = HashMap::new();
    KINDS.iter().for_each(|kind| rows.entry((kind.group, kind.plural)).or_default().push(kind));
    rows
});

/// The version that the objects of a group and plural are stored in.
fn stored(group: &str, plural: &str) -> Option<&'static str> {
    Some(BY_PATH.get(&(group, plural))?.first()?.version)
}

/// The row that serves a path's group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    BY_PATH.get(&(group, plural))?.iter().find(|kind| kind.version == version).copied()
}

/// The row of a kind.
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == kind && k.group == group && k.version == version)
}

#[cfg(test)]
mod tests;
