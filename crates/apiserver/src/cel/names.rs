//! The names in an expression: those that nobody declared are faults. Types are not looked at here (`cost` knows them where
//! a schema does); the checker of `cel-core`, which looks at them, recurses without end on some expressions.

use std::collections::HashSet;

use cel_core::types::{Expr, SpannedExpr};

use super::{BASE, operators, shapes};

/// Functions without a declaration.
const BUILT_IN: [&str; 1] = ["dyn"];
/// Where the names of types begin that have a point in them.
const PACKAGES: [&str; 3] = ["google", "kubernetes", "net"];

/// The undeclared names in an expression, each with its place.
pub fn undeclared(e: &SpannedExpr, variables: &[&str], source: &str) -> Vec<(usize, String)> {
    let mut walk = Walk { variables, source, locals: Vec::new(), found: HashSet::new() };
    walk.visit(e);
    let mut found: Vec<_> = walk.found.into_iter().collect();
    found.sort();
    found
}

struct Walk<'e> {
    variables: &'e [&'e str],
    source: &'e str,
    locals: Vec<&'e str>,
    found: HashSet<(usize, String)>,
}

impl<'e> Walk<'e> {
    fn visit(&mut self, e: &'e SpannedExpr) {
        match &e.node {
            Expr::Ident(name) | Expr::RootIdent(name) => {
                if !self.is_variable(name) && matches!(operators::kind(name), cel_core::Value::Error(_)) {
                    self.found.insert((e.span.start, name.clone()));
                }
            }
            Expr::Member { .. } if self.is_of_package(e) => {}
            Expr::Call { expr, args } => {
                self.callee(expr);
                args.iter().for_each(|arg| self.visit(arg));
            }
            Expr::Struct { type_name, fields } => {
                if !qualified(type_name).is_some_and(|name| shapes::is_shape(&name)) {
                    self.visit(type_name);
                }
                fields.iter().for_each(|field| self.visit(&field.value));
            }
            Expr::Comprehension(fold) => {
                self.visit(&fold.iter_range);
                self.visit(&fold.accu_init);
                let known = self.locals.len();
                self.locals.extend([&*fold.accu_var, &*fold.iter_var, &*fold.iter_var2]);
                [&fold.loop_condition, &fold.loop_step, &fold.result].into_iter().for_each(|e| self.visit(e));
                self.locals.truncate(known);
            }
            Expr::Bind { var_name, init, body } => {
                self.visit(init);
                self.locals.push(var_name);
                self.visit(body);
                self.locals.pop();
            }
            _ => super::eval::children(e, &mut |child| self.visit(child)),
        }
    }

    fn is_variable(&self, name: &str) -> bool {
        self.locals.contains(&name) || self.variables.contains(&name)
    }

    fn is_of_package(&self, e: &SpannedExpr) -> bool {
        let name = qualified(e).unwrap_or_default();
        let first = name.split('.').next().unwrap_or_default();
        PACKAGES.contains(&first) && !self.is_variable(first)
    }

    /// A function by its whole name, or a method of something.
    fn callee(&mut self, callee: &'e SpannedExpr) {
        let name = match &callee.node {
            Expr::Ident(name) | Expr::RootIdent(name) => name,
            Expr::Member { expr, field, .. } => {
                if qualified(callee).is_some_and(|name| BASE.functions().contains_key(&name)) {
                    return;
                }
                self.visit(expr);
                field
            }
            _ => return self.visit(callee),
        };
        if !BASE.functions().contains_key(name) && !BUILT_IN.contains(&name.as_str()) {
            let end = callee.span.end;
            let opened = self.source.get(end..).and_then(|rest| rest.find('('));
            self.found.insert((opened.map_or(end, |after| end + after), name.clone()));
        }
    }
}

/// The name that a chain of members spells.
pub fn qualified(e: &SpannedExpr) -> Option<String> {
    match &e.node {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Member { expr, field, optional: false } => Some(format!("{}.{field}", qualified(expr)?)),
        _ => None,
    }
}
