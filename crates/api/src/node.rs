//! RuntimeClass.

use coxswain_meta::json::{Value, json};
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Hooks, Kind, kind};
use crate::check::required_name;
use crate::core::pod;
use crate::objectmeta::{self, immutable};
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{has, items, text};

pub(crate) const RUNTIME_CLASS: Kind = Kind {
    namespaced: false,
    columns: &[NAME, column("Handler", "Configuration of the container runtime."), AGE],
    hooks: Hooks {
        validate,
        validate_update: |new, old| {
            let mut errors = ErrorList::new();
            immutable(&mut errors, new, old, "handler", &Path::root());
            errors
        },
        row: |v, now| vec![name(v), text(v, "handler").into(), age(v, now)],
        ..Hooks::PLAIN
    },
    create_on_update: true,
    ..kind!("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass")
};

fn validate(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    required_name(&mut errors, class, "handler", names::dns1123_label, &Path::root());
    if has(class, "overhead") {
        let limits = json!({"limits": class["overhead"]["podFixed"]});
        pod::container_resources(&mut errors, &limits, &Path::new("overhead"));
    }
    let (scheduling, path) = (&class["scheduling"], Path::new("scheduling"));
    objectmeta::labels(&mut errors, scheduling, "nodeSelector", &path);
    let (list, at) = (items(scheduling, "tolerations"), path.child("tolerations"));
    pod::tolerations(&mut errors, list, &at);
    for (i, toleration) in list.iter().enumerate() {
        let same = |other: &Value| {
            ["key", "operator", "value", "effect"].iter().all(|k| other[*k] == toleration[*k])
        };
        if list[..i].iter().any(same) {
            let shown = crate::schema::internal(toleration, "io.k8s.api.core.v1.Toleration");
            errors.push(FieldError::duplicate_shown(&at.index(i), &shown));
        }
    }
    errors
}
