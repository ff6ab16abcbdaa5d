//! `x-kubernetes-validations`: CEL rules in the schemas of custom resources (KEP-2876).

use std::collections::BTreeMap;

use cel_core::Value as Cel;
use coxswain_meta::field::{ErrorKind, ErrorList, FieldError, Path};
use coxswain_meta::json::Value;
use coxswain_meta::structural::{ListType, Structural};

use super::{Budget, Expression, Failure, Scope, optional, value};

/// The longest message that an expression may make.
const LONGEST_MESSAGE_BYTES: usize = 5 << 10;

/// The rules of a schema, in the shape of the schema.
#[derive(Default)]
pub struct Rules {
    own: Vec<Rule>,
    members: BTreeMap<String, Rules>,
    /// Of the items or the members that are not named.
    inner: Option<Box<Rules>>,
}

/// A check of all rules.
struct Run {
    errors: ErrorList,
    budget: Budget,
    ended: bool,
}

impl Run {
    /// No further rule is looked at.
    fn end(&mut self, why: FieldError) {
        self.errors.push(why);
        self.ended = true;
    }
}

struct Rule {
    condition: Expression,
    message: Option<String>,
    message_expression: Option<Expression>,
    reason: ErrorKind,
    field_path: String,
    uses_old: bool,
    old_is_optional: bool,
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let text = |key: &str| rule[key].as_str().map(str::to_owned).filter(|text| !text.is_empty());
        let source = text("rule").unwrap_or_default();
        Self {
            uses_old: mentions(&source, "oldSelf"),
            condition: Expression::rule(&source),
            message: text("message"),
            message_expression: text("messageExpression").map(|text| Expression::rule(&text)),
            reason: match rule["reason"].as_str() {
                Some("FieldValueRequired") => ErrorKind::Required,
                Some("FieldValueForbidden") => ErrorKind::Forbidden,
                Some("FieldValueDuplicate") => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            },
            field_path: text("fieldPath").unwrap_or_default().trim_start_matches('.').to_owned(),
            old_is_optional: rule["optionalOldSelf"] == true,
        }
    }
}

/// Whether an expression has a word in it.
pub fn mentions(source: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    source.split(|c| !is_part(c)).any(|part| part == word)
}

impl Rules {
    /// Compiles the rules of a schema.
    pub fn compile(schema: &Structural) -> Self {
        let ruled = schema.properties.iter().filter(|(_, inner)| inner.has_rules);
        let inner = schema.items.as_deref().or(schema.additional.as_deref()).filter(|inner| inner.has_rules);
        Self {
            own: schema.rules.iter().map(Rule::parse).collect(),
            members: ruled.map(|(name, inner)| (name.clone(), Self::compile(inner))).collect(),
            inner: inner.map(|inner| Box::new(Self::compile(inner))),
        }
    }

    /// The rules that an object breaks; `old` is what it was before.
    pub fn check(&self, schema: &Structural, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut run = Run { errors: ErrorList::new(), budget: Budget::rules(), ended: false };
        self.walk(schema, (object, old), &Path::root(), true, &mut run);
        run.errors
    }

    fn walk(
        &self,
        schema: &Structural,
        (value, old): (&Value, Option<&Value>),
        path: &Path,
        whole: bool,
        run: &mut Run,
    ) {
        if value.is_null() {
            return;
        }
        if !self.own.is_empty() && run.budget.is_empty() {
            run.end(FieldError::invalid(path, schema.type_.as_str(), Failure::OutOfBudget.to_string()));
        }
        for rule in &self.own {
            if run.ended {
                return;
            }
            rule.check(schema, (value, old), path, whole, run);
        }
        if run.ended {
            return;
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let Some(inner) = schema.member(name) else { continue };
                    let Some(rules) = self.members.get(name).or(self.inner.as_deref()) else { continue };
                    let named = schema.properties.contains_key(name);
                    let path = if named { path.child(name) } else { path.key(name) };
                    let old = old.and_then(|old| old.get(name));
                    rules.walk(inner, (value, old), &path, inner.embedded, run);
                }
            }
            Value::Array(items) => {
                let (Some(inner), Some(rules)) = (schema.items.as_deref(), &self.inner) else { return };
                for (at, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| counterpart(schema, old, item));
                    rules.walk(inner, (item, old), &path.index(at), inner.embedded, run);
                }
            }
            _ => {}
        }
    }
}

/// A message that an expression made, if it can be shown.
pub fn said_by(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text.len() <= LONGEST_MESSAGE_BYTES && !text.contains('\n')).then(|| text.to_owned())
}

/// The item of the old list with the same keys; only keyed lists have one.
fn counterpart<'a>(schema: &Structural, old: &'a Value, item: &Value) -> Option<&'a Value> {
    if schema.list_type != ListType::Map {
        return None;
    }
    old.as_array()?.iter().find(|old| schema.map_keys.iter().all(|key| old.get(key) == item.get(key)))
}

impl Rule {
    fn check(
        &self,
        schema: &Structural,
        (value, old): (&Value, Option<&Value>),
        path: &Path,
        whole: bool,
        run: &mut Run,
    ) {
        if self.uses_old && old.is_none() && !self.old_is_optional {
            return;
        }
        let mut scope = Scope::empty();
        scope.set("self", value::typed(value, schema, whole));
        let old = old.map(|old| value::typed(old, schema, whole));
        match (self.old_is_optional, old) {
            (true, old) => scope.set("oldSelf", optional(old)),
            (false, Some(old)) => scope.set("oldSelf", old),
            (false, None) => {}
        }
        let source = self.condition.source();
        let invalid = |detail: String| FieldError::invalid(path, schema.type_.as_str(), detail);
        match self.condition.eval(&scope, &mut run.budget) {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => self.broken(schema, value, path, &scope, run),
            Err(why @ Failure::OutOfBudget) => run.end(invalid(why.to_string())),
            Err(why @ Failure::Cancelled) => run.end(invalid(format!(
                "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {source}"
            ))),
            Err(why @ Failure::NoOverload) => run.errors.push(invalid(format!(
                "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {source}"
            ))),
            Err(why @ Failure::Uncompiled(_)) => {
                run.errors.push(invalid(format!("rule compile error: {why}")));
            }
            Err(why) => run.errors.push(invalid(format!("{why} evaluating rule: {source}"))),
        }
    }

    fn broken(&self, schema: &Structural, value: &Value, path: &Path, scope: &Scope<'_>, run: &mut Run) {
        let path = if self.field_path.is_empty() { path.clone() } else { path.child(&self.field_path) };
        let said = self.message_expression.as_ref().map(|said| (said, said.text(scope, &mut run.budget)));
        let too_much = match &said {
            Some((_, Err(Failure::OutOfBudget))) => Some(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned(),
            ),
            Some((said, Err(Failure::Cancelled))) => Some(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                said.source()
            )),
            _ => None,
        };
        if let Some(why) = too_much {
            return run.end(FieldError::invalid(&path, schema.type_.as_str(), why));
        }
        let said = said.and_then(|(_, text)| text.ok()).and_then(|text| said_by(&text));
        let detail = said
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", self.condition.source()));
        let shown = matches!(self.reason, ErrorKind::Invalid | ErrorKind::Duplicate)
            && !matches!(schema.type_.as_str(), "object" | "array");
        run.errors.push(FieldError {
            kind: self.reason,
            field: path.to_string(),
            value: shown.then(|| value.clone()),
            detail: if self.reason == ErrorKind::Duplicate { String::new() } else { detail },
        });
    }
}
