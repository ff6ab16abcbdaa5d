//! CEL as Kubernetes speaks it: expressions over objects, with a budget and with Kubernetes' own functions.

pub mod check;
mod library;
mod opaque;
pub mod schema;
mod shapes;
mod value;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};

use cel_core::{
    Activation, CelType, CheckError, CheckErrorKind, CompileError, Env, EvalError, EvalErrorKind,
    OptionalValue, Program, Value as Cel,
};
use serde_json::Value;

use crate::webhook::Asked;
use opaque::Authorizer;
use shapes::Shapes;
pub use value::{of_json, to_json};

/// What one expression may cost.
const CALL_LIMIT: i64 = 1_000_000;
/// The longest expression that is compiled.
const LONGEST_BYTES: usize = 10 << 10;

static BASE: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::with_standard_library().with_all_extensions();
    library::functions().into_iter().for_each(|function| env.add_function(function));
    env
});

/// A compiled expression.
pub struct Expression {
    source: String,
    program: Result<Program, String>,
}

impl Expression {
    /// Compiles an expression over variables of these names.
    pub fn compile(source: &str, variables: &[&str]) -> Self {
        let source = source.trim().to_owned();
        let program = compile(&source, variables);
        Self { source, program }
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is wrong with the expression itself.
    pub fn fault(&self) -> Option<&str> {
        self.program.as_ref().err().map(String::as_str)
    }

    /// The value of the expression.
    ///
    /// # Errors
    /// Why there is none, in CEL's words.
    pub fn eval(&self, scope: &Scope) -> Result<Cel, String> {
        let program = self.program.as_ref().map_err(|fault| format!("compilation failed: {fault}"))?;
        scope.left.store(CALL_LIMIT, Ordering::Relaxed);
        match program.eval(scope) {
            Cel::Error(error) => Err(word(&error)),
            value => Ok(value),
        }
    }

    /// The truth of the expression.
    ///
    /// # Errors
    /// It has none.
    pub fn is_true(&self, scope: &Scope) -> Result<bool, String> {
        match self.eval(scope)? {
            Cel::Bool(holds) => Ok(holds),
            _ => Err("expression does not evaluate to bool".into()),
        }
    }

    /// The text of the expression.
    ///
    /// # Errors
    /// It has none.
    pub fn text(&self, scope: &Scope) -> Result<String, String> {
        match self.eval(scope)? {
            Cel::String(text) => Ok(text.to_string()),
            _ => Err("expression does not evaluate to string".into()),
        }
    }
}

/// An error of the evaluation as upstream words it.
fn word(error: &EvalError) -> String {
    match error.kind {
        EvalErrorKind::KeyNotFound | EvalErrorKind::FieldNotFound => {
            let name = error.message.rsplit(": ").next().unwrap_or_default().trim_matches(['\'', '"']);
            format!("no such key: {name}")
        }
        EvalErrorKind::NoMatchingOverload | EvalErrorKind::UnknownFunction => "no such overload".into(),
        _ => error.message.clone(),
    }
}

fn compile(source: &str, variables: &[&str]) -> Result<Program, String> {
    if source.len() > LONGEST_BYTES {
        return Err("expression is too long".into());
    }
    let mut env = Env::new();
    BASE.functions().values().for_each(|function| env.add_function(function.clone()));
    BASE.variables().iter().for_each(|(name, kind)| env.add_variable(name.clone(), kind.clone()));
    variables.iter().for_each(|name| env.add_variable(*name, CelType::Dyn));
    let ast = match env.compile(source) {
        Ok(ast) => ast,
        // Variables have any type, and operators are chosen when they run: only names can be wrong here.
        Err(CompileError::Check(mut errors)) => {
            errors.retain(|error| {
                matches!(error.kind, CheckErrorKind::UndeclaredReference { .. }) && !names_shape(error)
            });
            if !errors.is_empty() {
                return Err(fault(&CompileError::Check(errors), source));
            }
            env.parse_only(source).map_err(|error| fault(&error, source))?
        }
        Err(error) => return Err(fault(&error, source)),
    };
    env.with_proto_registry(Arc::new(Shapes)).program(&ast).map_err(|error| error.to_string())
}

/// Whether an error is about the objects that mutations write, which have no declaration.
fn names_shape(error: &CheckError) -> bool {
    match &error.kind {
        CheckErrorKind::UndeclaredReference { name, .. } => shapes::is_shape(name),
        _ => false,
    }
}

/// A fault of compilation with its place, as cel-go shows it.
fn fault(error: &CompileError, source: &str) -> String {
    let place = |start: usize| {
        let before = source.get(..start).unwrap_or(source);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        let text = source.lines().nth(line - 1).unwrap_or_default();
        (line, column, text.to_owned())
    };
    let show = |start: usize, message: String| {
        let (line, column, text) = place(start);
        format!("ERROR: <input>:{line}:{column}: {message}\n | {text}\n | {}^", ".".repeat(column - 1))
    };
    let shown: Vec<String> = match error {
        CompileError::Parse(errors) => errors
            .iter()
            .map(|error| show(error.span.start, format!("Syntax error: {}", error.message)))
            .collect(),
        CompileError::Check(errors) => {
            errors.iter().map(|error| show(error.span.start, error.message())).collect()
        }
        CompileError::NoAst => vec!["no expression".into()],
    };
    shown.join("\n")
}

/// The variables of an evaluation. Each look at one costs by its size, so that no expression runs forever.
pub struct Scope {
    /// Each with the cost of a look at it.
    variables: HashMap<String, (Cel, i64)>,
    left: AtomicI64,
}

impl Scope {
    /// No variables.
    pub fn empty() -> Self {
        Self { variables: HashMap::new(), left: AtomicI64::new(CALL_LIMIT) }
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
        let cost = 1 + i64::try_from(STEP * longest(&value)).unwrap_or(i64::MAX);
        self.variables.insert(name.to_owned(), (value, cost));
    }
}

/// What one step over an item costs, about as much as in cel-go.
const STEP: usize = 4;

/// What a look at a value may lead to: a walk over the longest list or map in it.
fn longest(value: &Cel) -> usize {
    match value {
        Cel::List(items) => items.iter().map(longest).max().unwrap_or(0).max(items.len()),
        Cel::Map(map) => map.values().map(longest).max().unwrap_or(0).max(map.len()),
        Cel::String(text) => text.len() / 10,
        _ => 0,
    }
}

impl Activation for Scope {
    fn resolve(&self, name: &str) -> Option<Cel> {
        let (value, cost) = self.variables.get(name)?;
        if self.left.fetch_sub(*cost, Ordering::Relaxed) < 0 {
            return Some(Cel::error(EvalError::internal("operation cancelled: actual cost limit exceeded")));
        }
        Some(value.clone())
    }

    fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }
}

/// Conditions that a write must meet to concern a webhook or a policy.
#[derive(Default)]
pub struct Conditions(Vec<(String, Expression)>);

/// The variables that conditions know.
pub const REQUEST_VARIABLES: [&str; 5] =
    ["object", "oldObject", "request", "authorizer", "authorizer.requestResource"];

/// The variables that expressions of policies know.
pub const POLICY_VARIABLES: [&str; 8] = [
    "object",
    "oldObject",
    "request",
    "authorizer",
    "authorizer.requestResource",
    "params",
    "namespaceObject",
    "variables",
];

impl Conditions {
    /// Reads a list of `matchConditions`.
    pub fn parse(list: &Value) -> Self {
        Self::with(list, &REQUEST_VARIABLES)
    }

    /// Reads a list of `matchConditions` over variables of these names.
    pub fn with(list: &Value, variables: &[&str]) -> Self {
        let conditions = list.as_array().into_iter().flatten().map(|condition| {
            let name = condition["name"].as_str().unwrap_or_default().to_owned();
            let source = condition["expression"].as_str().unwrap_or_default();
            (name, Expression::compile(source, variables))
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
    /// One cannot be evaluated and none is false.
    pub fn hold(&self, scope: &Scope) -> Result<bool, String> {
        let mut failed = None;
        for (name, condition) in &self.0 {
            match condition.is_true(scope) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
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
