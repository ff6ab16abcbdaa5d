//! Lease.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path};

use crate::apps::not_negative;
use crate::catalogue::{Hooks, Kind, kind};
use crate::table::{AGE, NAME, age, column, name};
use crate::value::{int, text};

pub(crate) const LEASE: Kind = Kind {
    columns: &[NAME, column("Holder", "Who holds the lease."), AGE],
    hooks: Hooks {
        validate,
        row: |v, now| vec![name(v), text(&v["spec"], "holderIdentity").into(), age(v, now)],
        ..Hooks::PLAIN
    },
    create_on_update: true,
    ..kind!("coordination.k8s.io", "v1", "Lease", "leases", "lease")
};

fn validate(lease: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&lease["spec"], Path::new("spec"));
    if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.push(FieldError::invalid(
            &path.child("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        ));
    }
    not_negative(&mut errors, spec, "leaseTransitions", &path);
    errors
}
