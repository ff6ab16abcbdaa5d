//! Binding: the scheduler's verdict, posted to a pod; never stored.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::catalogue::{Hooks, Kind, kind};
use crate::value::text;

pub(crate) const KIND: Kind = Kind {
    verbs: &["create"],
    hooks: Hooks { validate, ..Hooks::PLAIN },
    ..kind!("", "v1", "Binding", "bindings", "binding")
};

fn validate(binding: &Value) -> ErrorList {
    let (target, path) = (&binding["target"], Path::new("target"));
    let mut errors = ErrorList::new();
    match text(target, "kind") {
        "" | "Node" => {}
        other => errors.push(FieldError::not_supported(&path.child("kind"), other, &["Node", "<empty>"])),
    }
    if text(target, "name").is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    errors
}
