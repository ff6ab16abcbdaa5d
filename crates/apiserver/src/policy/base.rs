//! What validating and mutating policies share: which writes they take, with which parameters, conditions and variables.

use coxswain_meta::Status;
use coxswain_meta::json::Value;

use crate::cel::{Conditions, Expression, Scope, of_json, typing};
use crate::object::Meta;
use crate::resource::Resource;
use crate::webhook::Asked;

/// The part of a policy that says when it applies.
pub struct Base {
    /// The policy's name.
    pub name: String,
    /// Whether it refuses writes that it cannot be evaluated for.
    pub fails_closed: bool,
    constraints: Value,
    param_kind: Option<(String, String)>,
    conditions: Conditions,
    variables: Vec<(String, Expression)>,
}

/// Text of a member; empty where it is missing.
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// The items of a member.
pub fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Compiles an expression of a policy.
pub fn compile(value: &Value, key: &str) -> Expression {
    Expression::compile(value[key].as_str().unwrap_or_default(), &typing::POLICY)
}

impl Base {
    /// Compiles the part that policies share.
    pub fn parse(policy: &Value) -> Self {
        let (spec, kind) = (&policy["spec"], &policy["spec"]["paramKind"]);
        Self {
            name: policy.name().to_owned(),
            fails_closed: spec["failurePolicy"] != "Ignore",
            constraints: spec["matchConstraints"].clone(),
            param_kind: kind.is_object().then(|| (text(kind, "apiVersion"), text(kind, "kind"))),
            conditions: Conditions::with(&spec["matchConditions"], &typing::POLICY),
            variables: list(spec, "variables").map(|v| (text(v, "name"), compile(v, "expression"))).collect(),
        }
    }

    /// The form in which the policy takes a write; none where it does not.
    pub fn takes(&self, asked: &Asked<'_>, object: &Value, old: &Value) -> Result<Option<Resource>, Status> {
        takes(&self.constraints, asked, object, old)
    }

    /// The parameters with which a binding puts the policy to work on a write; an error is a fault of the set-up.
    pub fn params(
        &self,
        binding: &Value,
        asked: &Asked<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<Result<Vec<Value>, String>, Status> {
        let spec = &binding["spec"];
        if spec["matchResources"].is_object() && takes(&spec["matchResources"], asked, object, old)?.is_none()
        {
            return Ok(Ok(Vec::new()));
        }
        Ok(asked.server.params(self.param_kind.as_ref(), &spec["paramRef"], asked.namespace))
    }

    /// The request in the form of a resource, with its objects.
    pub async fn request(
        &self,
        asked: &Asked<'_>,
        kind: &Resource,
        object: &Value,
        old: &Value,
    ) -> Result<Value, Status> {
        let mut request = asked.request(kind);
        request["object"] = asked.in_form_of(kind, object.clone()).await?;
        request["oldObject"] = asked.in_form_of(kind, old.clone()).await?;
        Ok(request)
    }

    /// The variables of an evaluation; none where the conditions do not hold.
    ///
    /// # Errors
    /// The conditions cannot be evaluated.
    pub fn scope(
        &self,
        asked: &Asked<'_>,
        request: &Value,
        params: &Value,
    ) -> Result<Option<Scope<'_>>, String> {
        let mut scope = Scope::of(asked, request);
        scope.set("params", of_json(params));
        let namespace = asked.server.look_up("", "namespaces", "", asked.namespace).unwrap_or_default();
        scope.set("namespaceObject", of_json(&namespace));
        scope.compose(&self.variables);
        Ok(self.conditions.hold(&scope)?.then_some(scope))
    }
}

/// The form in which constraints take a write; none where they do not.
fn takes(
    constraints: &Value,
    asked: &Asked<'_>,
    object: &Value,
    old: &Value,
) -> Result<Option<Resource>, Status> {
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
