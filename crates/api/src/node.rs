//! RuntimeClass.

use coxswain_meta::{ErrorList, Path, names};

use crate::catalogue::{Hooks, Kind, kind};
use crate::objectmeta::immutable;
use crate::table::{AGE, NAME, age, column, name};
use crate::value::text;

pub(crate) const RUNTIME_CLASS: Kind = Kind {
    namespaced: false,
    columns: &[NAME, column("Handler", "Configuration of the container runtime."), AGE],
    hooks: Hooks {
        validate: |v| {
            let mut errors = ErrorList::new();
            let handler = text(v, "handler");
            errors.invalid_each(&Path::new("handler"), handler, names::dns1123_label(handler));
            errors
        },
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            immutable(&mut errors, new, old, "handler", &Path::root());
            errors
        },
        row: |v, now| vec![name(v), text(v, "handler").into(), age(v, now)],
        ..Hooks::PLAIN
    },
    ..kind!("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass")
};
