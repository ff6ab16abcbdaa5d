//! Macros that `cel-core` does not know.

use std::ops::Range;

use cel_core::types::{ComprehensionData, Expr, ListElement, SpannedExpr};
use cel_core::{Ast, types::BinaryOp};

use super::children::{children, children_mut};

/// What a list is called while it is sorted.
const SORTED: &str = "@sorted";
/// What keys and entries are gathered in.
const GATHERED: &str = "@gathered";
/// Sorts a list by a list of keys.
pub const SORT: &str = "@sortByAssociatedKeys";

/// The expression with what macros stand for in their places: `list.sortBy(item, key)` and
/// `map.transformMapEntry(key, value, entry)`, the latter with a condition too.
pub fn expand(ast: Ast) -> Ast {
    if !["sortBy", "transformMapEntry"].iter().any(|name| ast.source().contains(name)) {
        return ast;
    }
    let mut expression = ast.expr().clone();
    let mut expander = Expander { next: 0 };
    expander.count(&expression);
    expander.visit(&mut expression);
    Ast::new_unchecked(expression, ast.source())
}

struct Expander {
    next: i64,
}

impl Expander {
    fn count(&mut self, e: &SpannedExpr) {
        self.next = self.next.max(e.id);
        children(e, &mut |child| self.count(child));
    }

    fn visit(&mut self, e: &mut SpannedExpr) {
        children_mut(e, &mut |child| self.visit(child));
        let Expr::Call { expr, args } = &mut e.node else { return };
        let Expr::Member { expr: target, field, .. } = &mut expr.node else { return };
        let name = |e: &SpannedExpr| match &e.node {
            Expr::Ident(name) => Some(name.clone()),
            _ => None,
        };
        e.node = match (field.as_str(), &mut args[..]) {
            ("sortBy", [item, key]) => {
                let Some(item) = name(item) else { return };
                let (list, key) = (take(target), take(key));
                self.sort(&e.span, list, item, key)
            }
            ("transformMapEntry", [key, value, rest @ .., entry]) if rest.len() < 2 => {
                let (Some(key), Some(value)) = (name(key), name(value)) else { return };
                let (map, entry, condition) = (take(target), take(entry), rest.first_mut().map(take));
                self.entries(&e.span, map, (key, value), condition, entry)
            }
            _ => return,
        };
    }

    fn made(&mut self, node: Expr, span: &Range<usize>) -> SpannedExpr {
        self.next += 1;
        SpannedExpr::new(self.next, node, span.clone())
    }

    fn sort(&mut self, span: &Range<usize>, list: SpannedExpr, item: String, key: SpannedExpr) -> Expr {
        let name = |name: &str| Expr::Ident(name.to_owned());
        let one = self.made(Expr::List(vec![ListElement { expr: key, optional: false }]), span);
        let gathered = self.made(name(GATHERED), span);
        let (left, right) = (Box::new(gathered), Box::new(one));
        let keys = Expr::Comprehension(ComprehensionData {
            iter_var: item,
            iter_var2: String::new(),
            iter_range: Box::new(self.made(name(SORTED), span)),
            accu_var: GATHERED.to_owned(),
            accu_init: Box::new(self.made(Expr::List(Vec::new()), span)),
            loop_condition: Box::new(self.made(Expr::Bool(true), span)),
            loop_step: Box::new(self.made(Expr::Binary { op: BinaryOp::Add, left, right }, span)),
            result: Box::new(self.made(name(GATHERED), span)),
        });
        let keys = self.made(keys, span);
        let sorted = Box::new(self.made(name(SORTED), span));
        let method = Expr::Member { expr: sorted, field: SORT.to_owned(), optional: false };
        let method = Box::new(self.made(method, span));
        let body = self.made(Expr::Call { expr: method, args: vec![keys] }, span);
        Expr::Bind { var_name: SORTED.to_owned(), init: Box::new(list), body: Box::new(body) }
    }

    fn entries(
        &mut self,
        span: &Range<usize>,
        map: SpannedExpr,
        (key, value): (String, String),
        condition: Option<SpannedExpr>,
        entry: SpannedExpr,
    ) -> Expr {
        let gathered = |expander: &mut Self| Box::new(expander.made(Expr::Ident(GATHERED.to_owned()), span));
        let (left, right) = (gathered(self), Box::new(entry));
        let mut step = Box::new(self.made(Expr::Binary { op: BinaryOp::Add, left, right }, span));
        if let Some(condition) = condition {
            let (cond, else_expr) = (Box::new(condition), gathered(self));
            step = Box::new(self.made(Expr::Ternary { cond, then_expr: step, else_expr }, span));
        }
        Expr::Comprehension(ComprehensionData {
            iter_var: key,
            iter_var2: value,
            iter_range: Box::new(map),
            accu_var: GATHERED.to_owned(),
            accu_init: Box::new(self.made(Expr::Map(Vec::new()), span)),
            loop_condition: Box::new(self.made(Expr::Bool(true), span)),
            loop_step: step,
            result: gathered(self),
        })
    }
}

fn take(e: &mut SpannedExpr) -> SpannedExpr {
    std::mem::replace(e, SpannedExpr::new(0, Expr::Null, 0..0))
}
