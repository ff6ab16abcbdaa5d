//! ValidatingAdmissionPolicy (KEP-3488).

use coxswain_meta::Status;
use coxswain_meta::json::{Value, json};
use coxswain_meta::status::Cause;

use super::Kind;
use super::base::{Base, compile, list, text};
use crate::cel::schema::said_by;
use crate::cel::{Budget, Expression, Failure, Scope};
use crate::object::Meta;
use crate::warnings;
use crate::webhook::Asked;

/// A policy, compiled.
pub struct Policy {
    base: Base,
    validations: Vec<Validation>,
}

struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

impl Kind for Policy {
    const POLICIES: &'static str = "validatingadmissionpolicies";
    const BINDINGS: &'static str = "validatingadmissionpolicybindings";

    fn parse(policy: &Value) -> Self {
        let validation = |validation: &Value| Validation {
            expression: compile(validation, "expression"),
            message: text(validation, "message"),
            message_expression: validation["messageExpression"]
                .is_string()
                .then(|| compile(validation, "messageExpression")),
            reason: text(validation, "reason"),
        };
        Self {
            base: Base::parse(policy),
            validations: list(&policy["spec"], "validations").map(validation).collect(),
        }
    }
}

impl Policy {
    /// Checks a write against the policy as each binding puts it to work.
    pub async fn validate(
        &self,
        bindings: &[Value],
        asked: &Asked<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let Some(kind) = self.base.takes(asked, object, old)? else { return Ok(()) };
        let request = self.base.request(asked, &kind, object, old).await?;
        for binding in bindings {
            let faults = match self.base.params(binding, asked, object, old)? {
                Ok(params) => {
                    params.iter().filter_map(|params| self.fault(asked, &request, params)).collect()
                }
                Err(why) if self.base.fails_closed => vec![Fault { message: why, reason: String::new() }],
                Err(_) => Vec::new(),
            };
            for fault in faults {
                self.act(binding, asked, &fault)?;
            }
        }
        Ok(())
    }

    /// The first validation that does not hold with some parameters.
    fn fault(&self, asked: &Asked<'_>, request: &Value, params: &Value) -> Option<Fault> {
        let failed =
            |why: String| self.base.fails_closed.then(|| Fault { message: why, reason: String::new() });
        let scope = match self.base.scope(asked, request, params) {
            Ok(scope) => scope?,
            Err(why) => return failed(why),
        };
        let mut budget = Budget::rules();
        self.validations.iter().find_map(|validation| {
            match validation.expression.is_true(&scope, &mut budget) {
                Ok(true) => None,
                Ok(false) => match validation.fault(&scope, &mut budget) {
                    Ok(fault) => Some(fault),
                    Err(why) => failed(format!("failed messageExpression: {why}")),
                },
                Err(why @ Failure::OutOfBudget) => failed(why.to_string()),
                Err(why) => {
                    let source = validation.expression.source();
                    failed(format!("expression '{source}' resulted in error: {why}"))
                }
            }
        })
    }

    /// What a binding does about a fault.
    fn act(&self, binding: &Value, asked: &Asked<'_>, fault: &Fault) -> Result<(), Status> {
        let actions: Vec<&str> =
            list(&binding["spec"], "validationActions").filter_map(Value::as_str).collect();
        let (policy, binding) = (&self.base.name, binding.name());
        if actions.contains(&"Warn") {
            warnings::add(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {}",
                fault.message
            ));
        }
        if !actions.contains(&"Deny") {
            return Ok(());
        }
        let message = format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
            fault.message
        );
        let mut status = asked.refused(&message);
        let reason = if fault.reason.is_empty() { "Invalid" } else { &fault.reason };
        status.reason = reason.into();
        status.code = match reason {
            "Unauthorized" => 401,
            "Forbidden" => 403,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        let cause = Cause { message, ..Cause::default() };
        status.details.get_or_insert_default().causes.push(cause);
        Err(status)
    }
}

/// Why a write does not hold.
struct Fault {
    message: String,
    reason: String,
}

impl Validation {
    /// What is said of a write that does not hold.
    ///
    /// # Errors
    /// There is no budget left to find it out.
    fn fault(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<Fault, Failure> {
        let said = match self.message_expression.as_ref().map(|expression| expression.text(scope, budget)) {
            Some(Err(why @ Failure::OutOfBudget)) => return Err(why),
            Some(Ok(text)) => said_by(&text),
            _ => None,
        };
        let message = said.unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.source()),
            message => message.to_owned(),
        });
        Ok(Fault { message, reason: self.reason.clone() })
    }
}

/// The faults of a policy's expressions, as its status shows them.
pub fn warnings_of(policy: &Value) -> Vec<Value> {
    let mut warnings = Vec::new();
    for (at, validation) in list(&policy["spec"], "validations").enumerate() {
        for key in ["expression", "messageExpression"] {
            if validation[key].is_string()
                && let Some(fault) = compile(validation, key).fault()
            {
                warnings
                    .push(json!({ "fieldRef": format!("spec.validations[{at}].{key}"), "warning": fault }));
            }
        }
    }
    warnings
}
