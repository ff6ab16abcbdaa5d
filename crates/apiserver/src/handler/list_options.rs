//! What may be asked together of a list, a watch or the deletion of a collection (`ListOptions`), and of writes.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, Status};

use super::Call;

const EXACT: &str = "Exact";
const NOT_OLDER: &str = "NotOlderThan";

impl Call {
    /// Refuses options that contradict each other, or that are no numbers.
    pub(super) fn check_list_options(&self, watch: bool) -> Result<(), Status> {
        for name in ["timeoutSeconds", "limit"] {
            self.query.integer(name)?;
        }
        let errors = if watch { self.watch_errors() } else { self.list_errors() };
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)),
        }
    }

    /// Refuses options of a write that are none; `kind` is what upstream calls them, `CreateOptions`.
    pub(super) fn check_write_options(&self, kind: &str) -> Result<(), Status> {
        let mut errors = ErrorList::new();
        errors.extend(check_dry_run(&self.query.all("dryRun").map(str::to_owned).collect::<Vec<_>>()));
        let validation = self.query.get("fieldValidation").unwrap_or_default();
        let known = ["", "Ignore", "Strict", "Warn"];
        if !known.contains(&validation) {
            errors.push(FieldError::not_supported(
                &Path::new("fieldValidation"),
                Value::from(validation),
                &known,
            ));
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid("meta.k8s.io", kind, "", &errors)),
        }
    }

    fn sends_initial(&self) -> bool {
        self.query.all("sendInitialEvents").next().is_some()
    }

    fn list_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let version = self.query.get("resourceVersion");
        if let Some(wanted) = self.query.get("resourceVersionMatch") {
            let mut forbid = |why: &str| errors.push(FieldError::forbidden(&path, why));
            if version.is_none() {
                forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if self.query.get("continue").is_some() {
                forbid("resourceVersionMatch is forbidden when continue is provided");
            }
            if !matches!(wanted, EXACT | NOT_OLDER) {
                let known = [EXACT, NOT_OLDER, ""];
                errors.push(FieldError::not_supported(&path, Value::from(wanted), &known));
            }
            if wanted == EXACT && version == Some("0") {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(FieldError::forbidden(&path, why));
            }
        }
        if self.sends_initial() {
            let why = "sendInitialEvents is forbidden for list";
            errors.push(FieldError::forbidden(&Path::new("sendInitialEvents"), why));
        }
        errors
    }

    fn watch_errors(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let wanted = self.query.get("resourceVersionMatch");
        if self.sends_initial() && wanted != Some(NOT_OLDER) {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden(&path, why));
        }
        let Some(wanted) = wanted else { return errors };
        if !self.sends_initial() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(&path, why));
        }
        if wanted != NOT_OLDER {
            errors.push(FieldError::not_supported(&path, Value::from(wanted), &[NOT_OLDER]));
        }
        if self.query.get("continue").is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.push(FieldError::forbidden(&path, why));
        }
        errors
    }
}

/// What is wrong with the values of `dryRun`.
pub(super) fn check_dry_run(values: &[String]) -> ErrorList {
    let mut errors = ErrorList::new();
    if values.iter().any(|value| value != "All") {
        errors.push(FieldError::not_supported(&Path::new("dryRun"), Value::from(values), &["All"]));
    }
    errors
}
