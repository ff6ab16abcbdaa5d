//! The catalogue: one row a kind. Built-in resources exist by being listed here and nowhere else.

use coxswain_meta::{ErrorList, Status};
use serde_json::Value;

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
    /// Deletion waits for a grace period (pods).
    pub graceful: bool,
    /// The fields besides `metadata.name` and `metadata.namespace` that field selectors may use.
    pub selectable: &'static [&'static str],
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
    pub name: fn(&str, bool) -> Vec<String>,
    /// Fills upstream's defaults in.
    pub default: fn(&mut Value),
    /// Clears and sets what clients may not at creation.
    pub prepare_create: fn(&mut Value),
    /// Clears and keeps what clients may not change.
    pub prepare_update: fn(&mut Value, &Value),
    /// Checks a new object.
    pub validate_create: fn(&Value) -> ErrorList,
    /// Checks a changed object (new, old).
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

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
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

    /// Before validation at creation: resets status, sets the generation.
    pub fn prepare_create(&self, object: &mut Value) {
        (self.hooks.prepare_create)(object);
    }

    /// Before validation at update: keeps status, raises the generation when the spec changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        (self.hooks.prepare_update)(new, old);
    }

    /// Before validation of a status update: everything but status (and managed fields) stays.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let _ = (new, old);
    }

    /// All that is wrong with a new object, metadata included.
    pub fn validate_create(&self, object: &Value) -> ErrorList {
        (self.hooks.validate_create)(object)
    }

    /// All that is wrong with a change, metadata and immutable fields included.
    pub fn validate_update(&self, new: &Value, old: &Value) -> ErrorList {
        (self.hooks.validate_update)(new, old)
    }

    /// All that is wrong with a status change.
    pub fn validate_status(&self, new: &Value, old: &Value) -> ErrorList {
        (self.hooks.validate_status)(new, old)
    }

    /// The values of the fields in [`Kind::selectable`] (not `metadata.*`).
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        (self.hooks.selectable)(object)
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
pub static KINDS: &[Kind] = &[];

/// The row that serves a path's group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The row of a kind.
pub fn by_gvk(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == kind && k.group == group && k.version == version)
}
