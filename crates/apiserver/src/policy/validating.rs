//! ValidatingAdmissionPolicy.

use cel_core::{MapKey, Value as Cel, ValueMap};
use coxswain_meta::Status;
use coxswain_meta::status::Cause;
use serde_json::Value;
use std::sync::Arc;

use crate::cel::{Conditions, Expression, REQUEST_VARIABLES, Scope, of_json};
use crate::object::Meta;
use crate::warnings;
use crate::webhook::Asked;

/// Variables besides those of the request.
const OWN_VARIABLES: [&str; 3] = ["params", "namespaceObject", "variables"];

/// A policy, compiled.
pub struct Policy {
    name: String,
    constraints: Value,
    param_kind: Option<(String, String)>,
    fails_closed: bool,
    conditions: Conditions,
    variables: Vec<(String, Expression)>,
    validations: Vec<Validation>,
}

struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

fn variables() -> Vec<&'static str> {
    REQUEST_VARIABLES.into_iter().chain(OWN_VARIABLES).collect()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

impl Policy {
    /// Compiles a policy.
    pub fn parse(policy: &Value) -> Self {
        let (spec, names) = (&policy["spec"], variables());
        let compile =
            |value: &Value, key: &str| Expression::compile(value[key].as_str().unwrap_or_default(), &names);
        let validation = |validation: &Value| Validation {
            expression: compile(validation, "expression"),
            message: text(validation, "message"),
            message_expression: validation["messageExpression"]
                .is_string()
                .then(|| compile(validation, "messageExpression")),
            reason: text(validation, "reason"),
        };
        let kind = &spec["paramKind"];
        Self {
            name: policy.name().to_owned(),
            constraints: spec["matchConstraints"].clone(),
            param_kind: kind.is_object().then(|| (text(kind, "apiVersion"), text(kind, "kind"))),
            fails_closed: spec["failurePolicy"] != "Ignore",
            conditions: Conditions::with(&spec["matchConditions"], &names),
            variables: list(spec, "variables").map(|v| (text(v, "name"), compile(v, "expression"))).collect(),
            validations: list(spec, "validations").map(validation).collect(),
        }
    }

    /// Checks a write against the policy as each binding puts it to work.
    pub async fn validate(
        &self,
        bindings: &[Value],
        asked: &Asked<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let Some(kind) = takes(&self.constraints, asked, object, old)? else { return Ok(()) };
        let mut request = asked.request(&kind);
        request["object"] = asked.in_form_of(&kind, object.clone()).await?;
        request["oldObject"] = asked.in_form_of(&kind, old.clone()).await?;
        for binding in bindings {
            let spec = &binding["spec"];
            if spec["matchResources"].is_object()
                && takes(&spec["matchResources"], asked, object, old)?.is_none()
            {
                continue;
            }
            let params = asked.server.params(self.param_kind.as_ref(), &spec["paramRef"], asked.namespace);
            let faults = match params {
                Ok(params) => {
                    params.iter().filter_map(|params| self.fault(asked, &request, params)).collect()
                }
                Err(why) if self.fails_closed => vec![Fault { message: why, reason: String::new() }],
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
        let mut scope = Scope::of(asked, request);
        scope.set("params", of_json(params));
        let namespace = asked.server.read("", "namespaces", "", asked.namespace).unwrap_or_default();
        scope.set("namespaceObject", of_json(&namespace));
        self.set_variables(&mut scope);
        let failed = |why: String| self.fails_closed.then(|| Fault { message: why, reason: String::new() });
        match self.conditions.hold(&scope) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(why) => return failed(why),
        }
        self.validations.iter().find_map(|validation| match validation.expression.is_true(&scope) {
            Ok(true) => None,
            Ok(false) => Some(validation.fault(&scope)),
            Err(why) => {
                failed(format!("expression '{}' resulted in error: {why}", validation.expression.source()))
            }
        })
    }

    /// Variables may use those before them; one that fails fails where it is used.
    fn set_variables(&self, scope: &mut Scope) {
        let mut map = ValueMap::new();
        for (name, expression) in &self.variables {
            scope.set("variables", Cel::Map(Arc::new(map.clone())));
            let value = expression.eval(scope).unwrap_or_else(|why| {
                Cel::error(cel_core::EvalError::internal(format!(
                    "composited variable {name:?} fails to evaluate: {why}"
                )))
            });
            map.insert(MapKey::String(name.as_str().into()), value);
        }
        scope.set("variables", Cel::Map(Arc::new(map)));
    }

    /// What a binding does about a fault.
    fn act(&self, binding: &Value, asked: &Asked<'_>, fault: &Fault) -> Result<(), Status> {
        let actions: Vec<&str> =
            list(&binding["spec"], "validationActions").filter_map(Value::as_str).collect();
        let (policy, binding) = (&self.name, binding.name());
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
    fn fault(&self, scope: &Scope) -> Fault {
        let said = self.message_expression.as_ref().and_then(|expression| expression.text(scope).ok());
        let said =
            said.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty() && !text.contains('\n'));
        let message = said.unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.source()),
            message => message.to_owned(),
        });
        Fault { message, reason: self.reason.clone() }
    }
}

/// The form in which constraints take a write; none where they do not.
fn takes(
    constraints: &Value,
    asked: &Asked<'_>,
    object: &Value,
    old: &Value,
) -> Result<Option<crate::resource::Resource>, Status> {
    let equivalent = constraints["matchPolicy"] != "Exact";
    if asked.matched(&constraints["excludeResourceRules"], equivalent).is_some() {
        return Ok(None);
    }
    let kind = match list(constraints, "resourceRules").next() {
        Some(_) => asked.matched(&constraints["resourceRules"], equivalent),
        None => Some(asked.kind.clone()),
    };
    let Some(kind) = kind else { return Ok(None) };
    let selected =
        asked.selected(&constraints["namespaceSelector"], &constraints["objectSelector"], object, old)?;
    Ok(selected.then_some(kind))
}
