//! Server-side apply: who owns which field, and what an applied configuration makes of an object (KEP-555).
//!
//! structured-merge-diff is the specification. A set of fields is kept as what it is in `managedFields`, the FieldsV1
//! document; a write changes only the parts of it that the write touched.

mod fresh;
mod manage;
mod set;
mod text;
mod walk;

use crate::json::{Text, Value};

pub use manage::{Conflict, FIELDS, Manager, Refusal, Versions, apply, create, same, thaw, update};
pub use set::{Set, order};
pub use walk::{Changes, changes, merge};

/// How the value at a place merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// As a whole.
    Atomic,
    /// By its members.
    Map,
    /// As a set of scalars.
    Set,
    /// By the items' keys.
    Keyed,
}

/// What apply needs to know of the type at a place.
pub trait Node: Copy {
    /// How a value at this place merges.
    fn relation(self, value: &Value) -> Relation;
    /// The place of a member; `declared` tells named fields from keys of a free map.
    fn member(self, name: &str) -> Member<Self>;
    /// The place of a list's items.
    fn item(self) -> Self;
    /// The keys of a keyed list, with the value an item has that leaves the key out.
    fn keys(self) -> Vec<(Text, Option<Value>)>;
}

/// The place of a member of a map.
pub struct Member<N> {
    /// The place.
    pub node: N,
    /// Whether the schema names it.
    pub declared: bool,
}

#[cfg(test)]
mod tests;
