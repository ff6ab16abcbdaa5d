//! The evaluation of an expression: a walk over its tree that counts each step as cel-go does (`price`). It lives beside the
//! one of `cel-core`, which cannot be counted or stopped and copies a list for each item that a macro adds to it.

use std::collections::HashMap;
use std::sync::Arc;

use cel_core::types::{BinaryOp, ComprehensionData, Expr, SpannedExpr, UnaryOp};
use cel_core::{Ast, EvalError, MapKey, OptionalValue, StructFieldValue, Value as Cel, ValueMap};

use super::children::children;
use super::price::{self, Exceeded, Meter, NEW_LIST, NEW_MAP, NEW_OBJECT};
use super::typing::qualified;
use super::{FUNCTIONS, Scope, operators, patterns, shapes};

/// An expression ready to be evaluated.
pub struct Plan {
    ast: Ast,
    /// The values of what is constant, by their nodes: they cost nothing.
    constants: HashMap<i64, Cel>,
    /// The names of functions that have a point in them, by their calls.
    functions: HashMap<i64, String>,
    /// Whether no schema says what its variables are.
    untyped: bool,
}

impl Plan {
    /// Looks for what is the same in each evaluation.
    pub fn of(ast: Ast, untyped: bool) -> Self {
        let mut plan =
            Self { ast: ast.clone(), constants: HashMap::new(), functions: HashMap::new(), untyped };
        plan.prepare(ast.expr());
        plan
    }

    /// The expression taken apart.
    pub fn expr(&self) -> &SpannedExpr {
        self.ast.expr()
    }

    /// Evaluates over the variables of a scope: the value, and what it cost.
    pub fn eval(&self, scope: &Scope<'_>) -> (Result<Cel, Exceeded>, u64) {
        let mut walk = Walk { plan: self, scope, locals: Vec::new(), meter: Meter::default() };
        let value = walk.eval(self.expr()).and_then(|value| {
            // Whoever reads it goes through all of it.
            walk.meter.weigh(&value)?;
            Ok(value)
        });
        (value, walk.meter.spent())
    }

    fn prepare(&mut self, e: &SpannedExpr) {
        children(e, &mut |child| self.prepare(child));
        if let Expr::Call { expr, .. } = &e.node
            && let Some(name) = qualified(expr).filter(|name| name.contains('.'))
            && FUNCTIONS.functions().contains(&name)
        {
            self.functions.insert(e.id, name);
        }
        let constant = match &e.node {
            Expr::List(items) => items.iter().all(|item| !item.optional && self.is_constant(&item.expr)),
            Expr::Map(entries) => entries.iter().all(|entry| {
                !entry.optional && self.is_constant(&entry.key) && self.is_constant(&entry.value)
            }),
            Expr::Unary { op: UnaryOp::Neg, expr } => matches!(expr.node, Expr::Int(_) | Expr::Float(_)),
            Expr::Call { expr, args } => match (&expr.node, args.as_slice()) {
                (Expr::Ident(name), [arg]) => operators::is_conversion(name) && self.is_constant(arg),
                _ => false,
            },
            _ => false,
        };
        if constant {
            let scope = Scope::empty();
            let mut walk = Walk { plan: self, scope: &scope, locals: Vec::new(), meter: Meter::default() };
            if let Ok(value) = walk.eval(e)
                && !value.is_error()
            {
                self.constants.insert(e.id, value);
            }
        }
    }

    fn is_constant(&self, e: &SpannedExpr) -> bool {
        match &e.node {
            Expr::Null | Expr::Bool(_) | Expr::Int(_) | Expr::UInt(_) => true,
            Expr::Float(_) | Expr::String(_) | Expr::Bytes(_) => true,
            _ => self.constants.contains_key(&e.id),
        }
    }

    /// Whether nothing is known of the type of an expression before it is evaluated.
    fn is_untyped(&self, e: &SpannedExpr) -> bool {
        self.untyped
            && match &e.node {
                Expr::Ident(_) | Expr::RootIdent(_) => true,
                Expr::Member { expr, .. } | Expr::Index { expr, .. } => self.is_untyped(expr),
                _ => false,
            }
    }
}

/// The value of a function or method of these arguments.
pub fn run(name: &str, is_method: bool, args: &[Cel]) -> Cel {
    if let ("matches", [text, pattern]) = (name, args) {
        return patterns::matches(text, pattern);
    }
    let function = FUNCTIONS.functions().get(name);
    let mut overloads = function
        .into_iter()
        .flat_map(|function| &function.overloads)
        .filter(|overload| overload.is_member == is_method && overload.arity == args.len());
    let Some(first) = overloads.next() else { return operators::builtin(name, is_method, args) };
    let value = first.call(args);
    if !value.is_error() {
        return value;
    }
    overloads.map(|overload| overload.call(args)).find(|value| !value.is_error()).unwrap_or(value)
}

/// What macros add to as they go: what they would copy each time.
enum Growing {
    List(Vec<Cel>),
    Map(ValueMap),
}

impl Growing {
    /// What a macro grows that adds one item or entry in its step.
    fn of(fold: &ComprehensionData) -> Option<Self> {
        let (mut step, is_accu) = (
            &*fold.loop_step,
            |e: &SpannedExpr| matches!(&e.node, Expr::Ident(name) if *name == fold.accu_var),
        );
        if let Expr::Ternary { then_expr, else_expr, .. } = &step.node
            && is_accu(else_expr)
        {
            step = then_expr;
        }
        let Expr::Binary { op: BinaryOp::Add, left, right } = &step.node else { return None };
        match (&right.node, &fold.accu_init.node) {
            _ if !is_accu(left) || !is_accu(&fold.result) => None,
            (Expr::List(items), Expr::List(first)) if items.len() == 1 && first.is_empty() => {
                Some(Growing::List(Vec::new()))
            }
            (Expr::Map(entries), Expr::Map(first)) if entries.len() == 1 && first.is_empty() => {
                Some(Growing::Map(ValueMap::new()))
            }
            _ => None,
        }
    }
}

type Outcome = Result<Cel, Exceeded>;

struct Walk<'e> {
    plan: &'e Plan,
    scope: &'e Scope<'e>,
    /// The variables of macros, the innermost last.
    locals: Vec<(&'e str, Cel)>,
    meter: Meter,
}

/// Leaves the function with a value that is an error.
macro_rules! value {
    ($outcome:expr) => {
        match $outcome? {
            error @ Cel::Error(_) => return Ok(error),
            value => value,
        }
    };
}

impl<'e> Walk<'e> {
    fn eval(&mut self, e: &'e SpannedExpr) -> Outcome {
        if let Some(value) = self.plan.constants.get(&e.id) {
            return Ok(value.clone());
        }
        match &e.node {
            Expr::Ident(_) | Expr::RootIdent(_) | Expr::Member { .. } | Expr::Index { .. } => {
                let value = self.place(e)?;
                let is_free = match (&root(e).node, &value) {
                    (Expr::Ternary { .. }, _) => true,
                    // The name of a type is a constant.
                    (_, Cel::Type(_)) => matches!(e.node, Expr::Ident(_)),
                    _ => false,
                };
                if !is_free {
                    self.meter.charge(1)?;
                }
                Ok(value)
            }
            Expr::Ternary { .. } => self.place(e),
            Expr::MemberTestOnly { expr, field } => self.test(expr, field),
            Expr::Binary { op: op @ (BinaryOp::And | BinaryOp::Or), left, right } => {
                self.logic(*op == BinaryOp::Or, left, right)
            }
            Expr::Binary { op, left, right } => self.binary(*op, left, right),
            Expr::Unary { op, expr } => self.unary(*op, expr),
            Expr::Call { expr, args } => self.call(e, expr, args),
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Bind { var_name, init, body } => {
                let init = value!(self.eval(init));
                self.locals.push((var_name, init));
                let value = self.eval(body);
                self.locals.pop();
                value
            }
            _ => self.made(e),
        }
    }

    /// What is written down or put together.
    fn made(&mut self, e: &'e SpannedExpr) -> Outcome {
        Ok(match &e.node {
            Expr::Null => Cel::Null,
            Expr::Bool(flag) => Cel::Bool(*flag),
            Expr::Int(number) => Cel::Int(*number),
            Expr::UInt(number) => Cel::UInt(*number),
            Expr::Float(number) => Cel::Double(*number),
            Expr::String(text) => {
                self.meter.toil(text.len() as u64 / 8)?;
                Cel::String(Arc::from(text.as_str()))
            }
            Expr::Bytes(bytes) => Cel::Bytes(Arc::from(bytes.as_slice())),
            Expr::List(items) => {
                let mut values = Vec::with_capacity(items.len());
                for item in items {
                    match (value!(self.eval(&item.expr)), item.optional) {
                        (Cel::Optional(OptionalValue::Some(value)), true) => values.push(*value),
                        (Cel::Optional(OptionalValue::None), true) => {}
                        (value, _) => values.push(value),
                    }
                }
                self.meter.charge(NEW_LIST)?;
                self.meter.items(values.len())?;
                Cel::List(values.into())
            }
            Expr::Map(entries) => {
                let mut map = ValueMap::new();
                for entry in entries {
                    let key = value!(self.eval(&entry.key));
                    let value = match (value!(self.eval(&entry.value)), entry.optional) {
                        (Cel::Optional(OptionalValue::Some(value)), true) => *value,
                        (Cel::Optional(OptionalValue::None), true) => continue,
                        (value, _) => value,
                    };
                    if let Err(why) = put(&mut map, &key, value) {
                        return Ok(Cel::error(why));
                    }
                }
                self.meter.charge(NEW_MAP)?;
                self.meter.items(3 * map.len())?;
                Cel::Map(Arc::new(map))
            }
            Expr::Struct { type_name, fields } => {
                let mut written = Vec::with_capacity(fields.len());
                for field in fields {
                    let value = value!(self.eval(&field.value));
                    written.push(StructFieldValue {
                        name: field.name.clone(),
                        value,
                        optional: field.optional,
                    });
                }
                self.meter.charge(NEW_OBJECT)?;
                match qualified(type_name).filter(|name| shapes::is_shape(name)) {
                    Some(_) => shapes::write(&written),
                    None => Cel::error(EvalError::internal("unknown type")),
                }
            }
            _ => Cel::error(EvalError::internal("evaluated error expression")),
        })
    }

    /// A variable or a member of something, without what looking at a variable costs: cel-go takes such a chain as one.
    fn place(&mut self, e: &'e SpannedExpr) -> Outcome {
        match &e.node {
            Expr::Ident(name) => Ok(self.variable(name)),
            Expr::RootIdent(name) => Ok(self.scope.variable(name).unwrap_or_else(|| operators::kind(name))),
            Expr::Member { expr, field, optional } => {
                if let Some(value) = self.known_member(expr, field)? {
                    return Ok(value);
                }
                let object = value!(self.place(expr));
                let value = operators::member(&object, field, *optional);
                self.qualified(value)
            }
            Expr::Index { expr, index, optional } => {
                let whole = value!(self.place(expr));
                let index = value!(self.place(index));
                let value = operators::index(&whole, &index, *optional);
                self.qualified(value)
            }
            Expr::Ternary { cond, then_expr, else_expr } => match value!(self.eval(cond)) {
                Cel::Bool(true) => self.place(then_expr),
                Cel::Bool(false) => self.place(else_expr),
                _ => Ok(Cel::error(operators::no_overload())),
            },
            _ => self.eval(e),
        }
    }

    /// A step to a member; one that is not there costs nothing where it may be missing.
    fn qualified(&mut self, value: Cel) -> Outcome {
        if !matches!(value, Cel::Optional(OptionalValue::None)) {
            self.meter.charge(1)?;
        }
        Ok(value)
    }

    fn variable(&self, name: &str) -> Cel {
        let local = self.locals.iter().rev().find(|(known, _)| *known == name);
        let value = local.map(|(_, value)| value.clone()).or_else(|| self.scope.variable(name));
        value.unwrap_or_else(|| operators::kind(name))
    }

    /// A variable with a point in its name, or one that is evaluated when it is looked at.
    fn known_member(&mut self, expr: &SpannedExpr, field: &str) -> Result<Option<Cel>, Exceeded> {
        let Expr::Ident(name) = &expr.node else { return Ok(None) };
        if self.locals.iter().any(|(known, _)| known == name) {
            return Ok(None);
        }
        if name == "variables"
            && let Some(value) = self.scope.composed(field)
        {
            self.meter.charge(1)?;
            return Ok(Some(value));
        }
        Ok(self.scope.variable(&format!("{name}.{field}")))
    }

    fn test(&mut self, expr: &'e SpannedExpr, field: &str) -> Outcome {
        let object = value!(self.place(expr));
        self.meter.charge(1)?;
        Ok(Cel::Bool(operators::has(&object, field)))
    }

    /// A value that decides outweighs an error of the other.
    fn logic(&mut self, deciding: bool, left: &'e SpannedExpr, right: &'e SpannedExpr) -> Outcome {
        let left = self.eval(left)?;
        if matches!(left, Cel::Bool(truth) if truth == deciding) {
            return Ok(left);
        }
        let right = self.eval(right)?;
        Ok(match (left, right) {
            (_, Cel::Bool(truth)) if truth == deciding => Cel::Bool(deciding),
            (error @ Cel::Error(_), _) | (_, error @ Cel::Error(_)) => error,
            (Cel::Bool(_), Cel::Bool(truth)) => Cel::Bool(truth),
            _ => Cel::error(operators::no_overload()),
        })
    }

    fn unary(&mut self, op: UnaryOp, operand: &'e SpannedExpr) -> Outcome {
        let value = self.eval(operand)?;
        if !(op == UnaryOp::Neg && matches!(operand.node, Expr::Int(_) | Expr::Float(_))) {
            self.meter.charge(1)?;
        }
        Ok(operators::unary(op, &value!(Ok(value))))
    }

    fn binary(&mut self, op: BinaryOp, left: &'e SpannedExpr, right: &'e SpannedExpr) -> Outcome {
        let in_constant = match (op, &right.node) {
            (BinaryOp::In, Expr::List(_)) => match self.plan.constants.get(&right.id) {
                Some(Cel::List(items)) if items.is_empty() => return Ok(Cel::Bool(false)),
                Some(Cel::List(items)) => {
                    items.iter().all(|item| !matches!(item, Cel::List(_) | Cel::Map(_)))
                }
                _ => false,
            },
            _ => false,
        };
        // cel-go knows no size where it does not know the types.
        let untyped = match op {
            BinaryOp::In => self.plan.is_untyped(right),
            BinaryOp::Eq | BinaryOp::Ne => false,
            _ => self.plan.is_untyped(left) && self.plan.is_untyped(right),
        };
        // An error of an operand does not keep the other from being evaluated, nor the operator from being paid.
        let (left, right) = (self.eval(left)?, self.eval(right)?);
        self.meter.toil_of_operator(op, &left, &right)?;
        if !in_constant {
            let cost = price::of_operator(op, &left, &right);
            self.meter.charge(if untyped { 1 } else { cost })?;
        }
        Ok(operators::binary(op, &value!(Ok(left)), &value!(Ok(right))))
    }

    fn call(&mut self, e: &'e SpannedExpr, callee: &'e SpannedExpr, args: &'e [SpannedExpr]) -> Outcome {
        let (name, target) = match (self.plan.functions.get(&e.id), &callee.node) {
            (Some(name), _) => (name.as_str(), None),
            (None, Expr::Ident(name) | Expr::RootIdent(name)) => (name.as_str(), None),
            (None, Expr::Member { expr, field, .. }) => (field.as_str(), Some(&**expr)),
            _ => return Ok(Cel::error(EvalError::unknown_function(""))),
        };
        if let ("or" | "orValue", Some(target), [otherwise]) = (name, target, args) {
            return self.alternative(name == "or", target, otherwise);
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        for arg in target.into_iter().chain(args) {
            values.push(self.eval(arg)?);
        }
        self.meter.toil_of_call(name, &values)?;
        self.meter.charge(price::of_call(name, &values))?;
        if let Some(at) = values.iter().position(Cel::is_error) {
            return Ok(values.swap_remove(at));
        }
        let value = run(name, target.is_some(), &values);
        if name == "join" {
            self.meter.charge(price::of_joined(&value))?;
        }
        Ok(value)
    }

    /// An optional value, or another where there is none.
    fn alternative(&mut self, stays: bool, target: &'e SpannedExpr, otherwise: &'e SpannedExpr) -> Outcome {
        match value!(self.eval(target)) {
            Cel::Optional(OptionalValue::Some(value)) if !stays => Ok(*value),
            value @ Cel::Optional(OptionalValue::Some(_)) => Ok(value),
            Cel::Optional(OptionalValue::None) => self.eval(otherwise),
            _ => Ok(Cel::error(operators::no_overload())),
        }
    }

    fn fold(&mut self, fold: &'e ComprehensionData) -> Outcome {
        let range = value!(self.eval(&fold.iter_range));
        let start = value!(self.eval(&fold.accu_init));
        let mut growing = Growing::of(fold);
        self.locals.push((&fold.accu_var, start));
        let depth = self.locals.len();
        let outcome = match &range {
            Cel::List(items) => self.steps(
                fold,
                &mut growing,
                items.iter().enumerate().map(|(at, item)| (Cel::Int(at as i64), item, true)),
            ),
            Cel::Map(map) => {
                self.steps(fold, &mut growing, map.iter().map(|(key, value)| (key.to_value(), value, false)))
            }
            _ => Ok(Some(Cel::error(operators::no_overload()))),
        };
        self.locals.truncate(depth);
        let grown = match growing {
            Some(Growing::List(items)) => Some(Cel::List(items.into())),
            Some(Growing::Map(map)) => Some(Cel::Map(Arc::new(map))),
            None => None,
        };
        if let (Some(grown), Some(accu)) = (grown, self.locals.last_mut()) {
            accu.1 = grown;
        }
        let value = match outcome {
            Ok(None) => self.eval(&fold.result),
            Ok(Some(error)) => Ok(error),
            Err(exceeded) => Err(exceeded),
        };
        self.locals.pop();
        value
    }

    /// Goes through the items; an error that ends it is the value of the whole.
    fn steps<'i>(
        &mut self,
        fold: &'e ComprehensionData,
        growing: &mut Option<Growing>,
        items: impl Iterator<Item = (Cel, &'i Cel, bool)>,
    ) -> Result<Option<Cel>, Exceeded> {
        let accu = self.locals.len() - 1;
        for (key, item, is_list) in items {
            self.locals.truncate(accu + 1);
            match (fold.iter_var2.is_empty(), is_list) {
                (true, true) => self.locals.push((&fold.iter_var, item.clone())),
                (true, false) => self.locals.push((&fold.iter_var, key)),
                (false, _) => {
                    self.locals.push((&fold.iter_var, key));
                    self.locals.push((&fold.iter_var2, item.clone()));
                }
            }
            self.meter.toil(1)?;
            if !matches!(fold.loop_condition.node, Expr::Bool(true)) {
                // The test that takes an error for true.
                self.meter.charge(1)?;
                if matches!(self.eval(&fold.loop_condition)?, Cel::Bool(false)) {
                    break;
                }
            }
            match growing {
                Some(growing) => {
                    if let Some(error) = self.grow(&fold.loop_step, growing)? {
                        return Ok(Some(error));
                    }
                }
                None => {
                    let next = self.step(fold)?;
                    self.locals[accu].1 = next;
                }
            }
        }
        Ok(None)
    }

    /// The next value of what a macro computes. What it has so far comes first, as in cel-go's macros.
    fn step(&mut self, fold: &'e ComprehensionData) -> Outcome {
        match &fold.loop_step.node {
            Expr::Binary { op: op @ (BinaryOp::And | BinaryOp::Or), left, right } if matches!(&right.node, Expr::Ident(name) if *name == fold.accu_var) => {
                self.logic(*op == BinaryOp::Or, right, left)
            }
            _ => self.eval(&fold.loop_step),
        }
    }

    /// Adds what the step of a macro adds.
    fn grow(&mut self, step: &'e SpannedExpr, growing: &mut Growing) -> Result<Option<Cel>, Exceeded> {
        let step = match &step.node {
            Expr::Ternary { cond, then_expr, .. } => match self.eval(cond)? {
                Cel::Bool(true) => then_expr,
                Cel::Bool(false) => return Ok(None),
                error @ Cel::Error(_) => return Ok(Some(error)),
                _ => return Ok(Some(Cel::error(operators::no_overload()))),
            },
            _ => step,
        };
        let Expr::Binary { right, .. } = &step.node else { return Ok(None) };
        // The look at what was gathered so far, and the addition.
        self.meter.charge(2)?;
        match (&right.node, growing) {
            (Expr::List(items), Growing::List(grown)) => {
                let value = self.eval(&items[0].expr)?;
                if value.is_error() {
                    return Ok(Some(value));
                }
                if !self.plan.constants.contains_key(&right.id) {
                    self.meter.charge(NEW_LIST)?;
                }
                self.meter.items(1)?;
                grown.push(value);
            }
            (Expr::Map(entries), Growing::Map(grown)) => {
                let (key, value) = (self.eval(&entries[0].key)?, self.eval(&entries[0].value)?);
                if value.is_error() {
                    return Ok(Some(value));
                }
                self.meter.items(3)?;
                if let Err(why) = put(grown, &key, value) {
                    return Ok(Some(Cel::error(why)));
                }
            }
            _ => {}
        }
        Ok(None)
    }
}

/// Where a chain of members begins.
fn root(e: &SpannedExpr) -> &SpannedExpr {
    match &e.node {
        Expr::Member { expr, .. } | Expr::Index { expr, .. } => root(expr),
        _ => e,
    }
}

fn put(map: &mut ValueMap, key: &Cel, value: Cel) -> Result<(), EvalError> {
    let key = MapKey::from_value(key).ok_or_else(|| EvalError::invalid_argument("unsupported key type"))?;
    if map.contains_key_with_numeric_coercion(&key) {
        return Err(EvalError::invalid_argument("Failed with repeated key"));
    }
    map.insert(key, value);
    Ok(())
}
