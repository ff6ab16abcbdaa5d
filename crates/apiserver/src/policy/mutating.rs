//! MutatingAdmissionPolicy (KEP-3962): configurations that are applied, and JSON patches, both written in CEL.

use coxswain_meta::json::Value;
use coxswain_meta::patch::json_patch;
use coxswain_meta::{Status, apply};

use super::Kind;
use super::base::{Base, compile, list};
use crate::cel::{Budget, Expression, Failure, Scope, to_json};
use crate::handler::Validation;
use crate::resource::{Place, Repeated};
use crate::webhook::Asked;

/// A policy, compiled.
pub struct Policy {
    base: Base,
    mutations: Vec<Mutation>,
}

enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

impl Kind for Policy {
    const POLICIES: &'static str = "mutatingadmissionpolicies";
    const BINDINGS: &'static str = "mutatingadmissionpolicybindings";

    fn parse(policy: &Value) -> Self {
        let mutations =
            list(&policy["spec"], "mutations").map(|mutation| match mutation["patchType"].as_str() {
                Some("JSONPatch") => Mutation::Patch(compile(&mutation["jsonPatch"], "expression")),
                _ => Mutation::Apply(compile(&mutation["applyConfiguration"], "expression")),
            });
        Self { base: Base::parse(policy), mutations: mutations.collect() }
    }
}

impl Policy {
    /// Changes an object as each binding puts the policy to work.
    pub async fn mutate(
        &self,
        bindings: &[Value],
        asked: &Asked<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let Some(kind) = self.base.takes(asked, object, old)? else { return Ok(()) };
        for binding in bindings {
            let params = self.base.params(binding, asked, object, old)?;
            let params = match params {
                Ok(params) => params,
                Err(why) => {
                    self.fail(asked, &why)?;
                    continue;
                }
            };
            for params in &params {
                for mutation in &self.mutations {
                    let request = self.base.request(asked, &kind, object, old).await?;
                    let form = Asked { kind: &kind, ..*asked };
                    let changed = match self.base.scope(asked, &request, params) {
                        Ok(None) => continue,
                        Ok(Some(scope)) => mutation.change(&form, &scope, &request["object"]),
                        Err(why) => Err(why),
                    };
                    match changed {
                        Ok(changed) => {
                            let mut changed = form.in_form_of(asked.kind, changed).await?;
                            asked.kind.decode(&mut changed, Repeated::default(), Validation::Ignore)?;
                            asked.kind.default(&mut changed)?;
                            *object = changed;
                        }
                        Err(why) => self.fail(asked, &why)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// A fault of the policy itself refuses the write, unless the policy says otherwise.
    fn fail(&self, asked: &Asked<'_>, why: &str) -> Result<(), Status> {
        match self.base.fails_closed {
            true => Err(asked.refused(&format!("policy '{}' denied request: {why}", self.base.name))),
            false => Ok(()),
        }
    }
}

impl Mutation {
    /// The object as the mutation leaves it.
    fn change(&self, asked: &Asked<'_>, scope: &Scope<'_>, object: &Value) -> Result<Value, String> {
        let value = |expression: &Expression| {
            let value = expression.eval(scope, &mut Budget::rules()).map_err(|why| match why {
                Failure::OutOfBudget => why.to_string(),
                why => format!("expression '{}' resulted in error: {why}", expression.source()),
            })?;
            to_json(&value).ok_or_else(|| "the expression has no value that JSON can hold".to_owned())
        };
        let mut changed = object.clone();
        match self {
            Mutation::Apply(expression) => {
                apply::merge(Place::root(asked.kind), &mut changed, &value(expression)?);
            }
            Mutation::Patch(expression) => {
                json_patch(&mut changed, &value(expression)?).map_err(|status| status.message.clone())?;
            }
        }
        Ok(changed)
    }
}
