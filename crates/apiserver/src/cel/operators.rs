//! What operators and members come to, with cel-go's words for what goes wrong.

use std::cmp::Ordering;
use std::sync::Arc;

use cel_core::types::{BinaryOp, Expr, Spanned, SpannedExpr, UnaryOp};
use cel_core::{Env, EvalError, MapActivation, MapKey, OptionalValue, TypeValue, Value as Cel};

use super::optional;

/// Arguments do not fit a function or an operator.
pub fn no_overload() -> EvalError {
    EvalError::no_matching_overload("")
}

fn overflow(what: &str) -> Cel {
    Cel::error(EvalError::overflow(what))
}

/// Whether a function turns a value into one of another type.
pub fn is_conversion(name: &str) -> bool {
    matches!(name, "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "uint")
}

/// A type by its name.
pub fn kind(name: &str) -> Cel {
    Cel::Type(match name {
        "null_type" => TypeValue::null_type(),
        "bool" => TypeValue::bool_type(),
        "int" => TypeValue::int_type(),
        "uint" => TypeValue::uint_type(),
        "double" => TypeValue::double_type(),
        "string" => TypeValue::string_type(),
        "bytes" => TypeValue::bytes_type(),
        "list" => TypeValue::list_type(),
        "map" => TypeValue::map_type(),
        "type" => TypeValue::type_type(),
        "optional_type" => TypeValue::optional_type(),
        _ => return Cel::error(EvalError::unknown_identifier(name)),
    })
}

/// A member of an object.
pub fn member(object: &Cel, field: &str, optionally: bool) -> Cel {
    let inner = match object {
        Cel::Optional(OptionalValue::None) => return optional(None),
        Cel::Optional(OptionalValue::Some(inner)) => return member(inner, field, true),
        object => object,
    };
    let found = match inner {
        Cel::Map(map) => map.get(&MapKey::String(field.into())),
        _ => None,
    };
    match (found, optionally) {
        (found, true) => optional(found.cloned()),
        (Some(value), false) => value.clone(),
        (None, false) => Cel::error(EvalError::field_not_found(field)),
    }
}

/// Whether an object has a member.
pub fn has(object: &Cel, field: &str) -> bool {
    match object {
        Cel::Map(map) => map.contains_key(&MapKey::String(field.into())),
        Cel::Optional(OptionalValue::Some(inner)) => has(inner, field),
        _ => false,
    }
}

/// A whole number, of whatever type.
fn whole(index: &Cel) -> Option<i64> {
    match index {
        Cel::Int(number) => Some(*number),
        Cel::UInt(number) => i64::try_from(*number).ok(),
        Cel::Double(number) if number.fract() == 0.0 && number.abs() < i64::MAX as f64 => {
            Some(*number as i64)
        }
        _ => None,
    }
}

fn map_key(index: &Cel) -> Option<MapKey> {
    match index {
        Cel::Double(_) => whole(index).map(MapKey::Int),
        index => MapKey::from_value(index),
    }
}

/// An item of a list, or an entry of a map.
pub fn index(object: &Cel, at: &Cel, optionally: bool) -> Cel {
    let (found, fault) = match object {
        Cel::Optional(OptionalValue::None) => return optional(None),
        Cel::Optional(OptionalValue::Some(inner)) => return index(inner, at, true),
        Cel::List(items) => {
            let Some(number) = whole(at) else { return Cel::error(no_overload()) };
            let found = usize::try_from(number).ok().and_then(|at| items.get(at));
            (found, EvalError::invalid_argument(format!("index out of bounds: {number}")))
        }
        Cel::Map(map) => {
            let found = map_key(at).and_then(|key| map.get_with_numeric_coercion(&key));
            (found, EvalError::invalid_argument(format!("no such key: {}", plain(at))))
        }
        _ => (None, no_overload()),
    };
    match (found, optionally) {
        (found, true) => optional(found.cloned()),
        (Some(value), false) => value.clone(),
        (None, false) => Cel::error(fault),
    }
}

/// A key as faults show it.
fn plain(key: &Cel) -> String {
    match key {
        Cel::String(text) => text.to_string(),
        other => other.to_string(),
    }
}

/// The negation of a number or of a truth.
pub fn unary(op: UnaryOp, value: &Cel) -> Cel {
    match (op, value) {
        (UnaryOp::Not, Cel::Bool(truth)) => Cel::Bool(!truth),
        (UnaryOp::Neg, Cel::Int(number)) => {
            number.checked_neg().map_or_else(|| overflow("integer overflow"), Cel::Int)
        }
        (UnaryOp::Neg, Cel::Double(number)) => Cel::Double(-number),
        _ => Cel::error(no_overload()),
    }
}

/// An operator between two values.
pub fn binary(op: BinaryOp, left: &Cel, right: &Cel) -> Cel {
    let ordered = |fits: fn(Ordering) -> bool| match left.compare(right) {
        Some(order) => Cel::Bool(fits(order)),
        None => Cel::error(no_overload()),
    };
    match op {
        BinaryOp::Eq => Cel::Bool(left == right),
        BinaryOp::Ne => Cel::Bool(left != right),
        BinaryOp::Lt => ordered(Ordering::is_lt),
        BinaryOp::Le => ordered(Ordering::is_le),
        BinaryOp::Gt => ordered(Ordering::is_gt),
        BinaryOp::Ge => ordered(Ordering::is_ge),
        BinaryOp::In => match right {
            Cel::List(items) => Cel::Bool(items.contains(left)),
            Cel::Map(map) => {
                Cel::Bool(map_key(left).is_some_and(|key| map.contains_key_with_numeric_coercion(&key)))
            }
            _ => Cel::error(no_overload()),
        },
        _ => arithmetic(op, left, right),
    }
}

/// An operator between two whole numbers of one type.
macro_rules! of_numbers {
    ($op:expr, $left:expr, $right:expr, $make:expr, $overflow:expr) => {{
        let value = match $op {
            BinaryOp::Add => $left.checked_add(*$right),
            BinaryOp::Sub => $left.checked_sub(*$right),
            BinaryOp::Mul => $left.checked_mul(*$right),
            BinaryOp::Div if *$right == 0 => {
                return Cel::error(EvalError::invalid_argument("division by zero"));
            }
            BinaryOp::Div => $left.checked_div(*$right),
            _ if *$right == 0 => return Cel::error(EvalError::invalid_argument("modulus by zero")),
            _ => $left.checked_rem(*$right),
        };
        value.map_or_else(|| overflow($overflow), $make)
    }};
}

fn arithmetic(op: BinaryOp, left: &Cel, right: &Cel) -> Cel {
    match (left, right) {
        (Cel::Int(left), Cel::Int(right)) => of_numbers!(op, left, right, Cel::Int, "integer overflow"),
        (Cel::UInt(left), Cel::UInt(right)) => {
            of_numbers!(op, left, right, Cel::UInt, "unsigned integer overflow")
        }
        (Cel::Double(left), Cel::Double(right)) => Cel::Double(match op {
            BinaryOp::Add => left + right,
            BinaryOp::Sub => left - right,
            BinaryOp::Mul => left * right,
            BinaryOp::Div => left / right,
            _ => return Cel::error(no_overload()),
        }),
        (Cel::String(left), Cel::String(right)) if op == BinaryOp::Add => {
            Cel::String([&**left, &**right].concat().into())
        }
        (Cel::Bytes(left), Cel::Bytes(right)) if op == BinaryOp::Add => {
            Cel::Bytes([&**left, &**right].concat().into())
        }
        (Cel::List(left), Cel::List(right)) if op == BinaryOp::Add => {
            Cel::List(left.iter().chain(right.iter()).cloned().collect())
        }
        (Cel::Timestamp(_) | Cel::Duration(_), Cel::Timestamp(_) | Cel::Duration(_)) => {
            let (left, right) = (left.clone(), right.clone());
            simple(|left, right| Expr::Binary { op, left, right }, left, right)
        }
        _ => Cel::error(no_overload()),
    }
}

fn node(node: Expr) -> Box<SpannedExpr> {
    Box::new(Spanned::new(0, node, 0..0))
}

/// Has `cel-core` evaluate an operator or a function of its own.
fn evaluated(expr: Expr, arguments: impl IntoIterator<Item = (String, Cel)>) -> Cel {
    let ast = cel_core::Ast::new_unchecked(*node(expr), "");
    match Env::new().program(&ast) {
        Ok(program) => program.eval(&arguments.into_iter().collect::<MapActivation>()),
        Err(_) => Cel::error(no_overload()),
    }
}

fn simple(of: impl FnOnce(Box<SpannedExpr>, Box<SpannedExpr>) -> Expr, left: Cel, right: Cel) -> Cel {
    let name = |at: usize| node(Expr::Ident(format!("a{at}")));
    evaluated(of(name(0), name(1)), [("a0".to_owned(), left), ("a1".to_owned(), right)])
}

/// A function that `cel-core` has built in.
pub fn builtin(name: &str, is_method: bool, args: &[Cel]) -> Cel {
    match (name, args) {
        ("size", [Cel::String(text)]) => return Cel::Int(text.chars().count() as i64),
        ("size", [Cel::List(items)]) => return Cel::Int(items.len() as i64),
        ("startsWith", [Cel::String(text), Cel::String(start)]) => {
            return Cel::Bool(text.starts_with(&**start));
        }
        ("endsWith", [Cel::String(text), Cel::String(end)]) => return Cel::Bool(text.ends_with(&**end)),
        ("contains", [Cel::String(text), Cel::String(part)]) => return Cel::Bool(text.contains(&**part)),
        ("dyn", [value]) => return value.clone(),
        ("string", [Cel::String(text)]) => return Cel::String(Arc::clone(text)),
        _ => {}
    }
    let names = (0..args.len()).map(|at| format!("a{at}"));
    let mut idents: Vec<SpannedExpr> = names.clone().map(|name| *node(Expr::Ident(name))).collect();
    let callee = if is_method && !idents.is_empty() {
        Expr::Member { expr: Box::new(idents.remove(0)), field: name.into(), optional: false }
    } else {
        Expr::Ident(name.into())
    };
    evaluated(Expr::Call { expr: node(callee), args: idents }, names.zip(args.iter().cloned()))
}
