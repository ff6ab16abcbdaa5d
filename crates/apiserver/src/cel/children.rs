//! The parts of an expression, to be looked at or changed.

use cel_core::types::{Expr, SpannedExpr};

macro_rules! children {
    ($name:ident, $iter:ident $(, $mutable:tt)?) => {
        /// Visits the parts that an expression is directly made of.
        pub fn $name<'e>(
            e: &'e $($mutable)? SpannedExpr,
            visit: &mut impl FnMut(&'e $($mutable)? SpannedExpr),
        ) {
            match &$($mutable)? e.node {
                Expr::List(items) => items.$iter().for_each(|item| visit(&$($mutable)? item.expr)),
                Expr::Map(entries) => entries.$iter().for_each(|entry| {
                    visit(&$($mutable)? entry.key);
                    visit(&$($mutable)? entry.value);
                }),
                Expr::Unary { expr, .. } | Expr::Member { expr, .. } | Expr::MemberTestOnly { expr, .. } => {
                    visit(expr)
                }
                Expr::Binary { left, right, .. } => [left, right].into_iter().for_each(|e| visit(e)),
                Expr::Ternary { cond, then_expr, else_expr } => {
                    [cond, then_expr, else_expr].into_iter().for_each(|e| visit(e));
                }
                Expr::Index { expr, index, .. } => [expr, index].into_iter().for_each(|e| visit(e)),
                Expr::Call { expr, args } => {
                    visit(expr);
                    args.$iter().for_each(visit);
                }
                Expr::Struct { fields, .. } => {
                    fields.$iter().for_each(|field| visit(&$($mutable)? field.value));
                }
                Expr::Comprehension(fold) => {
                    visit(&$($mutable)? fold.iter_range);
                    visit(&$($mutable)? fold.accu_init);
                    visit(&$($mutable)? fold.loop_condition);
                    visit(&$($mutable)? fold.loop_step);
                    visit(&$($mutable)? fold.result);
                }
                Expr::Bind { init, body, .. } => [init, body].into_iter().for_each(|e| visit(e)),
                _ => {}
            }
        }
    };
}

children!(children, iter);
children!(children_mut, iter_mut, mut);
