//! Which rules a CustomResourceDefinition may have: they compile, fit the schema, and cost no more than a server can bear.

use std::rc::Rc;

use coxswain_meta::field::{ErrorList, FieldError, Path};
use coxswain_meta::json::{Value, json};
use coxswain_meta::structural::{ListType, Structural};

use super::Expression;
use super::cost::{self, Decl};
use super::typing::{Environment, Type};

/// The most that one expression may cost on the largest object its schema allows.
const EXPRESSION_LIMIT: u64 = 10_000_000;
/// The most that all expressions of a schema may cost.
const TOTAL_LIMIT: u64 = 100_000_000;
/// How many of the most expensive are named where the total is too much.
const MOST_NAMED: usize = 4;

/// What is wrong with the rules of a schema. A schema that stays as it was keeps expressions that are too expensive.
pub fn check_rules(schema: &Structural, path: &Path, unchanged: bool, errors: &mut ErrorList) {
    let mut check = Check { unchanged, errors, total: 0, expensive: Vec::new() };
    let at = At { schema, path: path.clone(), times: Some(1), whole: true, decl: None, uncorrelated: None };
    check.walk(&at);
    let Check { total, mut expensive, errors, .. } = check;
    if total > TOTAL_LIMIT {
        expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (path, _) in expensive.into_iter().take(MOST_NAMED) {
            let why =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(FieldError::forbidden(&path, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(path, too_costly(what, total, TOTAL_LIMIT)));
    }
}

const UNTYPED: &str = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";

fn too_costly(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        _ if factor > 100.0 => "more than 100x".to_owned(),
        _ if factor < 1.5 => format!("{factor:.6}x"),
        _ => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A schema within the schema of a definition.
struct At<'a> {
    schema: &'a Structural,
    path: Path,
    /// How often a value of it may occur in an object; none where nothing limits it.
    times: Option<u64>,
    /// Whether its values are resources of their own.
    whole: bool,
    /// Where a schema around it has rules, how that sees it.
    decl: Option<Rc<Decl>>,
    /// The schema around it whose old values cannot be told apart.
    uncorrelated: Option<Path>,
}

impl At<'_> {
    fn times(&self, limit: &str) -> Option<u64> {
        Some(self.times?.saturating_mul(self.schema.most(limit)?))
    }
}

struct Check<'e> {
    unchanged: bool,
    errors: &'e mut ErrorList,
    total: u64,
    expensive: Vec<(Path, u64)>,
}

impl Check<'_> {
    fn walk(&mut self, at: &At<'_>) {
        let schema = at.schema;
        if !schema.has_rules {
            return;
        }
        let decl = at.decl.clone();
        let decl = decl.or_else(|| match schema.rules.is_empty() {
            true => None,
            false => Decl::of(schema, at.whole).map(Rc::new),
        });
        if let Some(inner) = &schema.additional {
            self.walk(&At {
                schema: inner,
                path: at.path.child("additionalProperties"),
                times: at.times("maxProperties"),
                whole: inner.embedded,
                decl: decl.as_ref().and_then(|decl| decl.inner.clone()),
                uncorrelated: at.uncorrelated.clone(),
            });
        }
        for (name, inner) in &schema.properties {
            self.walk(&At {
                schema: inner,
                path: at.path.child("properties").key(name),
                times: at.times,
                whole: inner.embedded,
                decl: decl.as_ref().and_then(|decl| decl.fields.get(&super::value::escape(name)).cloned()),
                uncorrelated: at.uncorrelated.clone(),
            });
        }
        if let Some(inner) = &schema.items {
            let atomic = (schema.list_type != ListType::Map).then(|| at.path.clone());
            self.walk(&At {
                schema: inner,
                path: at.path.child("items"),
                times: at.times("maxItems"),
                whole: inner.embedded,
                decl: decl.as_ref().and_then(|decl| decl.inner.clone()),
                uncorrelated: at.uncorrelated.clone().or(atomic),
            });
        }
        let path = at.path.child("x-kubernetes-validations");
        match &decl {
            Some(decl) => {
                for (index, rule) in schema.rules.iter().enumerate() {
                    self.rule(rule, &path.index(index), at, decl);
                }
            }
            None if schema.rules.is_empty() => {}
            None => self.errors.push(FieldError::internal(&path, UNTYPED)),
        }
    }

    fn rule(&mut self, rule: &Value, path: &Path, at: &At<'_>, decl: &Rc<Decl>) {
        let text = |key: &str| rule[key].as_str().filter(|text| !text.trim().is_empty());
        let optional = rule["optionalOldSelf"] == true;
        let Some(source) = text("rule") else {
            self.errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
            return;
        };
        let at_rule = path.child("rule");
        match judge(source, decl, optional, &Type::Bool, "cel expression must evaluate to a bool") {
            Err(why) => self.errors.push(refused(&at_rule, rule, &why)),
            Ok(cost) => {
                let cost = cost.saturating_mul(at.times.unwrap_or(decl.most_in_request()));
                self.observe(at_rule, "estimated rule cost", cost);
                if let Some(message) = text("messageExpression") {
                    self.message(rule, message, path.child("messageExpression"), decl, optional);
                }
            }
        }
        let uses_old = super::schema::mentions(source, "oldSelf");
        match (&at.uncorrelated, uses_old) {
            (Some(around), true) => {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {around}"
                );
                self.errors.push(FieldError::invalid(&path.child("rule"), source, why));
            }
            (_, false) if optional => {
                let why = "may not be set if oldSelf is not used in rule";
                self.errors.push(FieldError::invalid(&path.child("optionalOldSelf"), true, why));
            }
            _ => {}
        }
    }

    /// The expression of a message: tried once, whatever number of values breaks its rule.
    fn message(&mut self, rule: &Value, source: &str, path: Path, decl: &Rc<Decl>, optional: bool) {
        match judge(source, decl, optional, &Type::String, "messageExpression must evaluate to a string") {
            Ok(cost) => self.observe(path, "estimated messageExpression cost", cost),
            Err(why) if why.starts_with("compilation") => {
                self.errors.push(refused(&path, rule, &format!("messageExpression {why}")));
            }
            Err(why) => self.errors.push(refused(&path, rule, &why)),
        }
    }

    fn observe(&mut self, path: Path, what: &str, cost: u64) {
        if cost > EXPRESSION_LIMIT && !self.unchanged {
            self.errors.push(FieldError::forbidden(&path, too_costly(what, cost, EXPRESSION_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= TOTAL_LIMIT / 100 {
            self.expensive.push((path, cost));
        }
    }
}

/// The refusal of a rule, which upstream shows by the names and in the order of its own code.
fn refused(path: &Path, rule: &Value, why: &str) -> FieldError {
    let text = |key: &str| json!(rule[key].as_str().unwrap_or_default());
    let told = [
        ("Rule", text("rule")),
        ("Message", text("message")),
        ("MessageExpression", text("messageExpression")),
        ("Reason", rule["reason"].clone()),
        ("FieldPath", text("fieldPath")),
        ("OptionalOldSelf", rule["optionalOldSelf"].clone()),
    ];
    let told: Vec<String> = told.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    // Go's JSON can stand in a page.
    let told = told.join(",").replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    FieldError::invalid_without_value(path, format!("{{{told}}}: {why}"))
}

/// What an expression of a schema costs at most, or what is wrong with it.
fn judge(
    source: &str,
    decl: &Rc<Decl>,
    optional: bool,
    wanted: &Type,
    other_type: &str,
) -> Result<u64, String> {
    let (new, old) = (decl.ty.clone(), decl.ty.clone());
    let old = if optional { Type::optional(old) } else { old };
    let environment = Environment::default().with("self", new).with("oldSelf", old);
    let expression = Expression::compile(source, &environment);
    let cost = expression.look(|tree, checked| (cost::estimate(tree, checked, decl), checked.ty.is(wanted)));
    match cost.map_err(|fault| format!("compilation failed: {fault}"))? {
        (cost, true) => Ok(cost),
        (_, false) => Err(other_type.into()),
    }
}
