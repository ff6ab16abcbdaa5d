//! CEL as Kubernetes speaks it: expressions over objects, with a budget and with Kubernetes' own functions.

pub mod check;
mod children;
mod cost;
pub mod definition;
mod depth;
mod eval;
mod formats;
mod library;
mod macros;
mod opaque;
mod operators;
mod patterns;
mod price;
pub mod schema;
mod shapes;
pub mod typing;
mod value;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::LazyLock;

use cel_core::types::SpannedExpr;
use cel_core::{Ast, CompileError, Env, EvalError, EvalErrorKind, OptionalValue, Program, Value as Cel};
use coxswain_meta::json::Value;

use crate::webhook::Asked;
use depth::Depth;
use eval::Plan;
use opaque::Authorizer;
pub use price::Budget;
use price::Exceeded;
use typing::{Checked, Environment, Type};
pub use value::{of_json, to_json};

/// The longest expression that is compiled.
const LONGEST_BYTES: usize = 10 << 10;
/// The most macros that write down twice what they are called on.
const MOST_DOUBLING: usize = 12;

static BASE: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::with_standard_library().with_all_extensions();
    library::functions().into_iter().for_each(|function| env.add_function(function));
    env
});

/// The functions, as a program has them.
static FUNCTIONS: LazyLock<Program> = LazyLock::new(|| {
    let nothing = BASE.parse_only("null").expect("an expression");
    BASE.program(&nothing).expect("a program of it")
});

/// A compiled expression.
pub struct Expression {
    source: String,
    plan: Result<Box<Plan>, String>,
    /// What its check found, where it was checked.
    checked: Option<Box<Checked>>,
    depth: Depth,
}

impl Drop for Expression {
    fn drop(&mut self) {
        let plan = std::mem::replace(&mut self.plan, Err(String::new()));
        self.depth.dive(|| drop(plan));
    }
}

impl Expression {
    /// Compiles an expression over the variables of an environment.
    pub fn compile(source: &str, environment: &Environment) -> Self {
        let mut expression = Self::parse(source, true);
        if let Ok(plan) = &expression.plan {
            let depth = &expression.depth;
            match depth.dive(|| typing::check(plan.expr(), &expression.source, environment)) {
                Ok(checked) => expression.checked = Some(Box::new(checked)),
                Err(faults) => {
                    let shown = faults.iter().map(|(at, why)| shown(&expression.source, *at, why));
                    let shown = shown.collect::<Vec<_>>().join("\n");
                    let plan = std::mem::replace(&mut expression.plan, Err(shown));
                    expression.depth.dive(|| drop(plan));
                }
            }
        }
        expression
    }

    /// Takes apart a rule over values of a schema; it was checked when its definition was written.
    pub fn rule(source: &str) -> Self {
        Self::parse(source, false)
    }

    fn parse(source: &str, untyped: bool) -> Self {
        let source = source.trim().to_owned();
        let depth = Depth::of(&source);
        let plan = match depth.fault() {
            _ if source.len() > LONGEST_BYTES => Err("expression is too long".into()),
            Some(fault) => Err(fault.into()),
            // Each doubles what it is called on.
            None if source.matches("optMap").count() + source.matches("optFlatMap").count()
                > MOST_DOUBLING =>
            {
                Err("expression is too complex".into())
            }
            None => depth.dive(|| parsed(&source).map(|ast| Box::new(Plan::of(ast, untyped)))),
        };
        Self { source, plan, checked: None, depth }
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Looks through the expression taken apart and what its check found.
    ///
    /// # Errors
    /// What is wrong with it.
    fn look<T>(&self, look: impl FnOnce(&SpannedExpr, &Checked) -> T) -> Result<T, &str> {
        let plan = self.plan.as_ref().map_err(String::as_str)?;
        let checked = self.checked.as_deref().ok_or("it was not checked")?;
        Ok(self.depth.dive(|| look(plan.expr(), checked)))
    }

    /// The type of its value.
    pub fn ty(&self) -> &Type {
        self.checked.as_ref().map_or(&Type::Dyn, |checked| &checked.ty)
    }

    /// What is wrong with the expression itself.
    pub fn fault(&self) -> Option<&str> {
        self.plan.as_ref().err().map(String::as_str)
    }

    /// The value of the expression, paid from a budget.
    ///
    /// # Errors
    /// Why there is none.
    pub fn eval(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<Cel, Failure> {
        let plan = self.plan.as_ref().map_err(|fault| Failure::Uncompiled(fault.clone()))?;
        let (outcome, cost) = self.depth.dive(|| plan.eval(scope));
        if !budget.pay(scope.take_spent()) || !budget.pay(cost) {
            return Err(Failure::OutOfBudget);
        }
        match outcome {
            Ok(Cel::Error(error)) => Err(word(&error)),
            Ok(value) => Ok(value),
            Err(Exceeded) => Err(Failure::Cancelled),
        }
    }

    /// The truth of the expression.
    ///
    /// # Errors
    /// It has none.
    pub fn is_true(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<bool, Failure> {
        match self.eval(scope, budget)? {
            Cel::Bool(holds) => Ok(holds),
            _ => Err(Failure::Other("expression does not evaluate to bool".into())),
        }
    }

    /// The text of the expression.
    ///
    /// # Errors
    /// It has none.
    pub fn text(&self, scope: &Scope<'_>, budget: &mut Budget) -> Result<String, Failure> {
        match self.eval(scope, budget)? {
            Cel::String(text) => Ok(text.to_string()),
            _ => Err(Failure::Other("expression does not evaluate to string".into())),
        }
    }
}

/// Why an expression has no value, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// All expressions of the request or the object together cost too much.
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    OutOfBudget,
    /// The expression alone costs too much.
    #[error("operation cancelled: actual cost limit exceeded")]
    Cancelled,
    /// An operator or a function does not take such values.
    #[error("no such overload")]
    NoOverload,
    /// It is no expression.
    #[error("compilation failed: {0}")]
    Uncompiled(String),
    /// Anything else, in CEL's words.
    #[error("{0}")]
    Other(String),
}

/// An error of the evaluation as upstream words it.
fn word(error: &EvalError) -> Failure {
    match error.kind {
        EvalErrorKind::KeyNotFound | EvalErrorKind::FieldNotFound => {
            let name = error.message.rsplit(": ").next().unwrap_or_default().trim_matches(['\'', '"']);
            Failure::Other(format!("no such key: {name}"))
        }
        EvalErrorKind::NoMatchingOverload | EvalErrorKind::UnknownFunction => Failure::NoOverload,
        _ => Failure::Other(error.message.clone()),
    }
}

fn parsed(source: &str) -> Result<Ast, String> {
    let ast = BASE.parse_only(source).map_err(|error| match error {
        CompileError::Parse(errors) => {
            let told = |error: &cel_core::ParseError| {
                shown(source, error.span.start, &format!("Syntax error: {}", worded(error, source)))
            };
            errors.iter().map(told).collect::<Vec<_>>().join("\n")
        }
        _ => "no expression".to_owned(),
    });
    ast.map(macros::expand)
}

/// A fault of the syntax in the words of upstream's parser, where there is one for each.
fn worded(error: &cel_core::ParseError, source: &str) -> String {
    let rest = source.get(error.span.start..).unwrap_or_default();
    let token = source.get(error.span.clone()).unwrap_or_default();
    match error.message.as_str() {
        "unexpected tokens after expression" if rest == token => {
            format!("extraneous input '{token}' expecting <EOF>")
        }
        "unexpected tokens after expression" => format!("mismatched input '{token}' expecting <EOF>"),
        other => other.to_owned(),
    }
}

/// A fault at a place of an expression.
fn shown(source: &str, start: usize, message: &str) -> String {
    let before = source.get(..start).unwrap_or(source);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    let text = source.lines().nth(line - 1).unwrap_or_default();
    format!("ERROR: <input>:{line}:{column}: {message}\n | {text}\n | {}^", ".".repeat(column - 1))
}

/// The variables of an evaluation.
pub struct Scope<'a> {
    variables: HashMap<String, Cel>,
    composed: Composed<'a>,
}

/// Variables that are expressions themselves, evaluated when they are first looked at.
#[derive(Default)]
struct Composed<'a> {
    list: &'a [(String, Expression)],
    known: RefCell<HashMap<usize, Cel>>,
    /// The one that is evaluated: it sees those before it.
    current: Cell<Option<usize>>,
    /// What they cost and nobody paid yet.
    spent: Cell<u64>,
}

impl<'a> Scope<'a> {
    /// No variables.
    pub fn empty() -> Self {
        Self { variables: HashMap::new(), composed: Composed::default() }
    }

    /// The variables of an admission request: the objects and the request itself.
    pub fn of(asked: &Asked<'_>, request: &Value) -> Self {
        let mut shown = request.clone();
        let mut object =
            |key: &str| shown.as_object_mut().and_then(|map| map.remove(key)).unwrap_or_default();
        let (new, old) = (object("object"), object("oldObject"));
        let mut scope = Self::empty();
        scope.set("object", of_json(&new));
        scope.set("oldObject", of_json(&old));
        scope.set("request", of_json(&shown));
        let authorizer = Authorizer::of(asked);
        scope.set("authorizer.requestResource", authorizer.for_request(asked).into_cel());
        scope.set("authorizer", authorizer.into_cel());
        scope
    }

    /// Gives a variable its value.
    pub fn set(&mut self, name: &str, value: Cel) {
        self.variables.insert(name.to_owned(), value);
    }

    /// Makes expressions members of `variables`.
    pub fn compose(&mut self, list: &'a [(String, Expression)]) {
        self.composed.list = list;
    }

    fn variable(&self, name: &str) -> Option<Cel> {
        self.variables.get(name).cloned()
    }

    /// The value of a composed variable; one that fails fails where it is used.
    fn composed(&self, name: &str) -> Option<Cel> {
        let composed = &self.composed;
        let before = composed.current.get();
        let visible = &composed.list[..before.unwrap_or(composed.list.len())];
        let (at, (_, expression)) = visible.iter().enumerate().find(|(_, (known, _))| known == name)?;
        if let Some(value) = composed.known.borrow().get(&at) {
            return Some(value.clone());
        }
        let mut budget = Budget::one();
        composed.current.set(Some(at));
        let value = expression.eval(self, &mut budget).unwrap_or_else(|why| {
            Cel::error(EvalError::internal(format!("composited variable {name:?} fails to evaluate: {why}")))
        });
        composed.current.set(before);
        composed.spent.set(composed.spent.get().saturating_add(budget.spent_of_one()));
        composed.known.borrow_mut().insert(at, value.clone());
        Some(value)
    }

    fn take_spent(&self) -> u64 {
        self.composed.spent.take()
    }
}

/// Conditions that a write must meet to concern a webhook or a policy.
#[derive(Default)]
pub struct Conditions(Vec<(String, Expression)>);

impl Conditions {
    /// Reads a list of `matchConditions`.
    pub fn parse(list: &Value) -> Self {
        Self::with(list, &typing::CONDITIONS)
    }

    /// Reads a list of `matchConditions` over the variables of an environment.
    pub fn with(list: &Value, environment: &Environment) -> Self {
        let conditions = list.as_array().into_iter().flatten().map(|condition| {
            let name = condition["name"].as_str().unwrap_or_default().to_owned();
            let source = condition["expression"].as_str().unwrap_or_default();
            (name, Expression::compile(source, environment))
        });
        Self(conditions.collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold: one that does not outweighs errors of others.
    ///
    /// # Errors
    /// One cannot be evaluated and none is false, or all of them cost too much.
    pub fn hold(&self, scope: &Scope<'_>) -> Result<bool, String> {
        let (mut failed, mut budget) = (None, Budget::conditions());
        for (name, condition) in &self.0 {
            match condition.is_true(scope, &mut budget) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why @ Failure::OutOfBudget) => return Err(why.to_string()),
                Err(why) => {
                    failed = failed.or(Some(format!(
                        "expression '{}' resulted in error: {why} ({name})",
                        condition.source()
                    )))
                }
            }
        }
        failed.map_or(Ok(true), Err)
    }
}

/// An optional value.
pub fn optional(value: Option<Cel>) -> Cel {
    Cel::Optional(value.map_or_else(OptionalValue::none, OptionalValue::some))
}

#[cfg(test)]
mod tests;
