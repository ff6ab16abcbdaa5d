//! Where faults are shown: at the sign of an operator, the bracket of a call, the point before a member.

use std::ops::Range;

use cel_core::types::{BinaryOp, Expr, SpannedExpr, StructField};

/// The places of an expression's parts.
pub struct Places<'e> {
    source: &'e str,
    /// The macros that are being looked through, and their places: so much of what they stand for has none of its own.
    macros: Vec<(Range<usize>, usize)>,
}

impl<'e> Places<'e> {
    /// Of the parts of this text.
    pub fn of(source: &'e str) -> Self {
        Self { source, macros: Vec::new() }
    }

    /// The place of the next such sign.
    pub fn next(&self, after: usize, sign: &str) -> usize {
        self.source.get(after..).and_then(|rest| rest.find(sign)).map_or(after, |at| after + at)
    }

    /// Whether what is written begins so.
    pub fn is_written(&self, e: &SpannedExpr, start: &str) -> bool {
        self.source.get(e.span.start..).is_some_and(|rest| rest.starts_with(start))
    }

    /// Whether a macro made it.
    pub fn is_of_macro(&self, e: &SpannedExpr) -> bool {
        self.macros.iter().any(|(span, _)| *span == e.span)
    }

    /// Looks into a macro that is called on what ends here; to be left with what is given back.
    pub fn enter(&mut self, e: &SpannedExpr, target_ends: usize) -> usize {
        let known = self.macros.len();
        self.macros.push((e.span.clone(), self.next(target_ends, "(")));
        known
    }

    /// The same for a choice, which a macro over optional values is.
    pub fn enter_choice(&mut self, e: &SpannedExpr, condition: &SpannedExpr) -> usize {
        match &condition.node {
            Expr::Call { expr, .. } if condition.span == e.span => match &expr.node {
                Expr::Member { expr: target, .. } => self.enter(e, target.span.end),
                _ => self.macros.len(),
            },
            _ => self.macros.len(),
        }
    }

    pub fn leave(&mut self, known: usize) {
        self.macros.truncate(known);
    }

    /// The place of a part.
    pub fn of_node(&self, e: &SpannedExpr) -> usize {
        if let Some((_, at)) = self.macros.iter().find(|(span, _)| *span == e.span) {
            return *at;
        }
        match &e.node {
            Expr::Binary { op, left, .. } => self.next(left.span.end, sign(*op)),
            Expr::Ternary { cond, .. } => self.next(cond.span.end, "?"),
            Expr::Member { expr, .. } => self.next(expr.span.end, "."),
            Expr::MemberTestOnly { .. } => self.next(e.span.start, "("),
            Expr::Index { expr, .. } => self.next(expr.span.end, "["),
            Expr::Call { expr, .. } => self.next(expr.span.end, "("),
            Expr::Struct { type_name, .. } => self.next(type_name.span.end, "{"),
            Expr::Comprehension(fold) => self.next(fold.iter_range.span.end, "("),
            _ => e.span.start,
        }
    }

    /// The place of a member that is written: the colon.
    pub fn of_field(&self, field: &StructField) -> usize {
        let before = self.source.get(..field.value.span.start).unwrap_or_default();
        before.rfind(':').unwrap_or(before.len())
    }
}

fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Mod => "%",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt | BinaryOp::Le => "<",
        BinaryOp::Gt | BinaryOp::Ge => ">",
        BinaryOp::In => "in",
        BinaryOp::And => "&&",
        BinaryOp::Or => "||",
    }
}
