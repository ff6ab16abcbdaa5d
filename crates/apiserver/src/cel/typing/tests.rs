//! Upstream's answers to expressions over variables of every type.

use super::*;
use crate::cel::{BASE, Expression};

/// Made by `cargo xtask signatures update`: each expression, and below it upstream's answer.
const ANSWERS: &str = include_str!("answers.txt");

#[test]
fn expressions_are_judged_as_upstream_does() {
    let list = || Type::list(Type::Int);
    let environment = Environment::default()
        .with("b", Type::Bool)
        .with("by", Type::Bytes)
        .with("d", Type::Dyn)
        .with("du", Type::Duration)
        .with("i", Type::Int)
        .with("ld", Type::list(Type::Dyn))
        .with("li", list())
        .with("m", Type::map(Type::Int))
        .with("s", Type::String)
        .with("t", Type::Timestamp)
        .with("u", Type::Uint)
        .with("x", Type::Double);
    let mut wrong = Vec::new();
    let mut lines = ANSWERS.lines().peekable();
    while let Some(source) = lines.next() {
        let mut wanted = Vec::new();
        while let Some(line) = lines.peek().and_then(|line| line.strip_prefix('\t')) {
            wanted.push(line);
            lines.next();
        }
        let wanted = wanted.join("\n");
        let expression = Expression::compile(source, &environment);
        let found = match expression.fault() {
            Some(fault) => fault.to_owned(),
            None => format!(": {}", expression.ty().declared()),
        };
        if found != wanted {
            wrong.push(format!("{source}\n{found}\ninstead of\n{wanted}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_declared_can_be_evaluated() {
    let missing: Vec<&str> = signatures::names()
        .filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '.'))
        .filter(|name| !BASE.functions().contains_key(*name))
        .collect();
    // An operator, by its older name.
    assert_eq!(missing, ["in"]);
}

#[test]
fn types_within_each_other_do_not_hold_a_thread() {
    let environment = Environment::default();
    let nested = |count: usize, open: &str, each: &dyn Fn(usize) -> String| {
        let opened: String = (0..=count).map(|n| open.replace('#', &n.to_string())).collect();
        let all: Vec<String> = (0..count).map(each).collect();
        opened + &all.join("&&") + &")".repeat(count + 1)
    };
    // Each list is of maps of the next, twice: what the first is of doubles with each.
    let bound = nested(40, "[[]].all(a#,", &|n| format!("a{n}==[{{a{m}:a{m}}}]", m = n + 1));
    let made = (0..60).fold("[1]".to_owned(), |inner, n| format!("{inner}.map(x{n},{{x{n}:x{n}}})"));
    let fault = Expression::compile(&bound, &environment).fault().map(str::to_owned);
    assert!(fault.as_ref().is_some_and(|fault| fault.contains("too complex")), "{fault:?}");
    assert_eq!(Expression::compile(&made, &environment).fault(), None);
}
