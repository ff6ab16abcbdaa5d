//! What an expression may cost at most on the largest values its schema allows: cel-go's static estimate, with its arithmetic
//! and its blind spots, because which rules a server takes depends on them. Only the upper bound is reckoned: nobody sees
//! the lower. Sizes keep both bounds, for some functions turn a lower bound into an upper one.

mod calls;
mod decl;

use std::collections::HashMap;
use std::rc::Rc;

use cel_core::types::{BinaryOp, ComprehensionData, Expr, SpannedExpr, UnaryOp};

use super::typing::{Checked, Type};
pub use decl::Decl;

/// What an access to a variable or a member costs.
const ACCESS: u64 = 1;
/// What writing a list, a map or an object costs.
const NEW_LIST: u64 = 10;
const NEW_MAP: u64 = 30;
const NEW_OBJECT: u64 = 40;
/// What looking at one character of a text costs.
const CHARACTER: f64 = 0.1;
/// What one character of a regular expression costs.
const PATTERN_CHARACTER: f64 = 0.25;

/// How many characters, bytes, items or members a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
}

impl Size {
    const UNKNOWN: Self = Self { min: 0, max: u64::MAX };
    /// Of nothing: what it is united with is the whole.
    const NOTHING: Self = Self { min: u64::MAX, max: 0 };

    const fn fixed(size: u64) -> Self {
        Self { min: size, max: size }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn or(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// The cost of looking at all of it.
    fn cost(self, factor: f64) -> u64 {
        scaled(self.max, factor)
    }
}

/// A count times a factor, rounded up.
fn scaled(count: u64, factor: f64) -> u64 {
    // A cast of what is too large ends at the largest number.
    (count as f64 * factor).ceil() as u64
}

/// Where in the schema the value of an expression lies.
#[derive(Clone, Debug)]
enum Place {
    /// The expression makes the value itself.
    Made,
    /// Beside all that the schema describes.
    Beside,
    At(Rc<Decl>),
}

/// The sizes of the entries of a list or a map.
#[derive(Clone, Copy, Debug)]
struct Entry {
    is_list: bool,
    key: Size,
    value: Size,
}

impl Entry {
    fn or(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        let (one, other) = (one?, other?);
        Some(Self { key: one.key.or(other.key), value: one.value.or(other.value), ..one })
    }
}

/// What is known about an expression.
#[derive(Clone, Debug)]
struct Node {
    cost: u64,
    ty: Type,
    place: Place,
    size: Option<Size>,
    entry: Option<Entry>,
    /// The number it is written as.
    literal: Option<i64>,
}

impl Node {
    fn made(cost: u64, ty: Type, size: Option<Size>) -> Self {
        let scalar = ty.is_scalar().then_some(Size::fixed(1));
        Self { cost, ty, place: Place::Made, size: size.or(scalar), entry: None, literal: None }
    }

    fn literal(ty: Type, size: usize) -> Self {
        Self::made(0, ty, Some(Size::fixed(size as u64)))
    }

    /// At a place of the schema, which knows best how large it is.
    fn at(cost: u64, ty: Type, place: Place) -> Self {
        let size = match &place {
            Place::At(decl) => Some(decl.size()),
            _ => None,
        };
        Self { place, ..Self::made(cost, ty, size) }
    }

    fn size(&self) -> Size {
        self.size.unwrap_or(Size::UNKNOWN)
    }
}

/// A variable of a comprehension or a binding.
#[derive(Clone, Debug)]
struct Local {
    place: Place,
    size: Option<Size>,
    entry: Option<Entry>,
}

impl From<Node> for Local {
    fn from(node: Node) -> Self {
        Self { place: node.place, size: node.size, entry: node.entry }
    }
}

/// What a checked expression over `self` and `oldSelf` costs at most.
pub fn estimate(expression: &SpannedExpr, checked: &Checked, root: &Rc<Decl>) -> u64 {
    Walk { root: root.clone(), types: &checked.types, locals: HashMap::new() }.visit(expression).cost
}

struct Walk<'c> {
    root: Rc<Decl>,
    types: &'c HashMap<i64, Type>,
    locals: HashMap<String, Vec<Local>>,
}

impl Walk<'_> {
    fn type_of(&self, e: &SpannedExpr) -> Type {
        self.types.get(&e.id).cloned().unwrap_or(Type::Dyn)
    }

    fn visit(&mut self, expression: &SpannedExpr) -> Node {
        let ty = self.type_of(expression);
        match &expression.node {
            Expr::Null | Expr::Error | Expr::Bool(_) | Expr::UInt(_) | Expr::Float(_) => Node::literal(ty, 1),
            Expr::Int(number) => Node { literal: Some(*number), ..Node::literal(ty, 1) },
            Expr::String(text) => Node::literal(ty, text.chars().count()),
            Expr::Bytes(bytes) => Node::literal(ty, bytes.len()),
            Expr::Ident(name) | Expr::RootIdent(name) => self.variable(name, ty),
            Expr::List(items) => self.list(ty, items.iter().map(|item| &item.expr)),
            Expr::Map(entries) => self.map(ty, entries.iter().map(|entry| (&entry.key, &entry.value))),
            Expr::Unary { op, expr } => self.unary(ty, *op, expr),
            Expr::Binary { op, left, right } => {
                let (left, right) = (self.visit(left), self.visit(right));
                calls::binary(*op, ty, &left, &right)
            }
            Expr::Ternary { cond, then_expr, else_expr } => {
                let (cond, yes, no) = (self.visit(cond), self.visit(then_expr), self.visit(else_expr));
                let cost = cond.cost.saturating_add(yes.cost.max(no.cost));
                let made = Node::made(cost, ty, Some(yes.size().or(no.size())));
                Node { entry: Entry::or(yes.entry, no.entry), ..made }
            }
            Expr::Member { expr, field, optional } => self.member(ty, expr, field, *optional),
            Expr::MemberTestOnly { expr, .. } => Node::made(self.visit(expr).cost, ty, None),
            Expr::Index { expr, index, optional } => {
                let (whole, index) = (self.visit(expr), self.visit(index));
                self.index(ty, &whole, &index, *optional)
            }
            Expr::Call { expr, args } => self.call(ty, expr, args),
            Expr::Struct { fields, .. } => {
                let values = fields.iter().map(|field| self.visit(&field.value).cost);
                Node::made(values.fold(NEW_OBJECT, u64::saturating_add), ty, None)
            }
            Expr::Comprehension(comprehension) => self.comprehension(ty, comprehension),
            Expr::Bind { var_name, init, body } => {
                let init = self.visit(init);
                let cost = init.cost.saturating_add(NEW_LIST);
                self.locals.entry(var_name.clone()).or_default().push(init.into());
                let body = self.visit(body);
                self.forget(var_name);
                let made = Node::made(cost.saturating_add(body.cost), ty, body.size);
                Node { entry: body.entry, ..made }
            }
        }
    }

    fn variable(&self, name: &str, ty: Type) -> Node {
        if let Some(local) = self.locals.get(name).and_then(|stack| stack.last()) {
            let node = Node::at(ACCESS, ty, local.place.clone());
            return Node { size: node.size.or(local.size), entry: local.entry, ..node };
        }
        Node::at(ACCESS, ty, Place::At(self.root.clone()))
    }

    fn forget(&mut self, name: &str) {
        self.locals.get_mut(name).and_then(Vec::pop);
    }

    /// The place one step on. cel-go leaves out the first step, in the belief that it is `self`.
    fn step(&self, from: &Place, next: impl Fn(&Decl) -> Option<Rc<Decl>>) -> Place {
        match from {
            Place::Made => Place::At(self.root.clone()),
            Place::Beside => Place::Beside,
            Place::At(decl) => next(decl).map_or(Place::Beside, Place::At),
        }
    }

    fn list<'e>(&mut self, ty: Type, items: impl ExactSizeIterator<Item = &'e SpannedExpr>) -> Node {
        let count = items.len();
        let mut cost = NEW_LIST;
        let mut value = if count == 0 { Size::fixed(0) } else { Size::NOTHING };
        for item in items {
            let item = self.visit(item);
            cost = cost.saturating_add(item.cost);
            value = value.or(item.size());
        }
        let entry = Some(Entry { is_list: true, key: Size::fixed(1), value });
        Node { cost, entry, ..Node::literal(ty, count) }
    }

    fn map<'e>(
        &mut self,
        ty: Type,
        entries: impl ExactSizeIterator<Item = (&'e SpannedExpr, &'e SpannedExpr)>,
    ) -> Node {
        let count = entries.len();
        let mut cost = NEW_MAP;
        let none = if count == 0 { Size::fixed(0) } else { Size::NOTHING };
        let (mut keys, mut values) = (none, none);
        for (key, value) in entries {
            let (key, value) = (self.visit(key), self.visit(value));
            cost = cost.saturating_add(key.cost).saturating_add(value.cost);
            (keys, values) = (keys.or(key.size()), values.or(value.size()));
        }
        let entry = Some(Entry { is_list: false, key: keys, value: values });
        Node { cost, entry, ..Node::literal(ty, count) }
    }

    fn unary(&mut self, ty: Type, op: UnaryOp, operand: &SpannedExpr) -> Node {
        let node = self.visit(operand);
        match (op, &operand.node) {
            // The sign is a part of the number.
            (UnaryOp::Neg, Expr::Int(_) | Expr::Float(_)) => {
                Node { literal: node.literal.map(i64::wrapping_neg), ..node }
            }
            _ => Node::made(node.cost.saturating_add(1), ty, None),
        }
    }

    fn member(&mut self, ty: Type, operand: &SpannedExpr, name: &str, optional: bool) -> Node {
        let object = self.visit(operand);
        if optional {
            return Node::made(object.cost.saturating_add(1), ty, None);
        }
        let access = match object.ty {
            Type::Map(..) | Type::Object(_) => ACCESS,
            _ => 0,
        };
        let place = self.step(&object.place, |decl| decl.fields.get(name).cloned());
        Node::at(object.cost.saturating_add(access), ty, place)
    }

    fn index(&self, ty: Type, whole: &Node, index: &Node, optional: bool) -> Node {
        let cost = whole.cost.saturating_add(index.cost).saturating_add(1);
        if optional || matches!(whole.ty, Type::Optional(_)) {
            return Node::made(cost, ty, None);
        }
        let place = self.step(&whole.place, |decl| decl.inner.clone());
        let node = Node::at(cost, ty, place);
        Node { size: whole.entry.map(|entry| entry.value).or(node.size), ..node }
    }

    fn call(&mut self, ty: Type, function: &SpannedExpr, args: &[SpannedExpr]) -> Node {
        let (name, target) = match &function.node {
            Expr::Ident(name) | Expr::RootIdent(name) => (name.clone(), None),
            Expr::Member { expr, field, .. } => match &expr.node {
                Expr::Ident(space) if calls::is_space(space) && !self.locals.contains_key(space) => {
                    (format!("{space}.{field}"), None)
                }
                _ => (field.clone(), Some(self.visit(expr))),
            },
            _ => return Node::made(0, ty, None),
        };
        let args: Vec<Node> = args.iter().map(|arg| self.visit(arg)).collect();
        if let ("dyn", [arg]) = (name.as_str(), &args[..]) {
            let made = Node::made(arg.cost.saturating_add(1), ty, arg.size);
            return Node { entry: arg.entry, ..made };
        }
        calls::call(&name, ty, target.as_ref(), &args)
    }

    fn comprehension(&mut self, ty: Type, comprehension: &ComprehensionData) -> Node {
        let range = self.visit(&comprehension.iter_range);
        let accumulator = self.visit(&comprehension.accu_init);
        let mut cost = range.cost.saturating_add(accumulator.cost);
        let mut locals = vec![(comprehension.accu_var.clone(), accumulator.clone().into())];
        let over_list = range.entry.map_or(range.ty.is_list(), |entry| entry.is_list);
        let (key, value) = self.entry_of(&range, over_list);
        if !comprehension.iter_var2.is_empty() {
            locals.push((comprehension.iter_var.clone(), key));
            locals.push((comprehension.iter_var2.clone(), value));
        } else {
            locals.push((comprehension.iter_var.clone(), if over_list { value } else { key }));
        }
        for (name, local) in locals.clone() {
            self.locals.entry(name).or_default().push(local);
        }
        // cel-go asks whether the accumulator is not false; here the accumulator itself is asked.
        let asks = !matches!(comprehension.loop_condition.node, Expr::Bool(_));
        let condition = self.visit(&comprehension.loop_condition).cost.saturating_add(u64::from(asks));
        let step = self.visit(&comprehension.loop_step);
        locals.iter().for_each(|(name, _)| self.forget(name));
        self.locals.entry(comprehension.accu_var.clone()).or_default().push(accumulator.clone().into());
        let result = self.visit(&comprehension.result);
        self.forget(&comprehension.accu_var);
        cost = cost.saturating_add(result.cost);
        cost = cost.saturating_add(range.size().max.saturating_mul(step.cost.saturating_add(condition)));
        match &comprehension.accu_init.node {
            Expr::List(_) | Expr::Map(_) => {
                let made = Node::made(cost, ty, Some(range.size()));
                Node { entry: step.entry, ..made }
            }
            _ => Node::made(cost, ty, accumulator.size),
        }
    }

    /// The key and the value of an entry of what a comprehension goes over.
    fn entry_of(&self, range: &Node, over_list: bool) -> (Local, Local) {
        let key = self
            .step(&range.place, |decl| (!over_list && decl.inner.is_some()).then(|| Rc::new(Decl::key())));
        let value = self.step(&range.place, |decl| decl.inner.clone());
        let local = |place, size| Local { place, size, entry: None };
        (local(key, range.entry.map(|entry| entry.key)), local(value, range.entry.map(|entry| entry.value)))
    }
}

/// Whether an operator is one of the comparisons of order.
fn is_order(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge)
}
