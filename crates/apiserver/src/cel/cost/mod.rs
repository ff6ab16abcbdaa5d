//! What an expression may cost at most on the largest values its schema allows: cel-go's static estimate, with its arithmetic
//! and its blind spots, because which rules a server takes depends on them. Only the upper bound is reckoned: nobody sees
//! the lower. Sizes keep both bounds, for some functions turn a lower bound into an upper one.

mod calls;
mod decl;

use std::collections::HashMap;
use std::rc::Rc;

use cel_core::types::{BinaryOp, ComprehensionData, Expr, SpannedExpr, UnaryOp};

pub use decl::{Decl, Fields};

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

/// The type of an expression, as far as costs depend on it.
#[derive(Clone, Debug)]
pub enum Type {
    /// Of the items of an empty list, until one is known.
    Unset,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// A type as a value.
    Kind,
    List(Rc<Type>),
    Map(Rc<Type>, Rc<Type>),
    Object(Rc<Fields>),
    /// Of Kubernetes' libraries.
    Opaque(&'static str),
    Optional(Rc<Type>),
}

impl Type {
    /// Whether values have no size of their own.
    fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    /// The name of a type without members.
    fn name(&self) -> Option<&'static str> {
        Some(match self {
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            _ => return None,
        })
    }

    fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Unset)
    }

    fn is_text(&self) -> bool {
        matches!(self, Type::String | Type::Bytes)
    }

    fn is_list(&self) -> bool {
        matches!(self, Type::List(_))
    }

    /// Of the items of a list or the values of a map.
    fn inner(&self) -> Type {
        match self {
            Type::List(inner) | Type::Map(_, inner) | Type::Optional(inner) => (**inner).clone(),
            _ => Type::Dyn,
        }
    }

    /// Of what is either of both.
    fn or(&self, other: &Type) -> Type {
        match (self, other) {
            (Type::Unset | Type::Null, known) => known.clone(),
            (Type::List(one), Type::List(other)) => Type::List(Rc::new(one.or(other))),
            (Type::Map(key, one), Type::Map(other_key, other)) => {
                Type::Map(Rc::new(key.or(other_key)), Rc::new(one.or(other)))
            }
            (Type::Optional(one), Type::Optional(other)) => Type::Optional(Rc::new(one.or(other))),
            (known, Type::Unset | Type::Null) => known.clone(),
            (one, other) if std::mem::discriminant(one) == std::mem::discriminant(other) => one.clone(),
            _ => Type::Dyn,
        }
    }
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
    ty: Type,
    place: Place,
    size: Option<Size>,
    entry: Option<Entry>,
}

impl From<Node> for Local {
    fn from(node: Node) -> Self {
        Self { ty: node.ty, place: node.place, size: node.size, entry: node.entry }
    }
}

/// What the walk over an expression found.
#[derive(Debug)]
pub struct Estimate {
    /// The most it can cost.
    pub cost: u64,
    /// The type of its value.
    pub ty: Type,
    /// What is wrong with the members it names.
    pub faults: Vec<Fault>,
}

/// A member that is none.
#[derive(Debug)]
pub struct Fault {
    /// Its place is the next such sign after this byte.
    pub after: usize,
    /// The point before the member, or what opens the arguments of `has`.
    pub sign: char,
    /// What is wrong.
    pub why: String,
}

/// The estimate of an expression over `self` and `oldSelf`.
pub fn estimate(expression: &SpannedExpr, root: &Rc<Decl>, old_is_optional: bool) -> Estimate {
    let mut walk = Walk { root: root.clone(), old_is_optional, locals: HashMap::new(), faults: Vec::new() };
    let node = walk.visit(expression);
    Estimate { cost: node.cost, ty: node.ty, faults: walk.faults }
}

struct Walk {
    root: Rc<Decl>,
    old_is_optional: bool,
    locals: HashMap<String, Vec<Local>>,
    faults: Vec<Fault>,
}

impl Walk {
    fn visit(&mut self, expression: &SpannedExpr) -> Node {
        match &expression.node {
            Expr::Null | Expr::Error => Node::literal(Type::Null, 1),
            Expr::Bool(_) => Node::literal(Type::Bool, 1),
            Expr::Int(number) => Node { literal: Some(*number), ..Node::literal(Type::Int, 1) },
            Expr::UInt(_) => Node::literal(Type::Uint, 1),
            Expr::Float(_) => Node::literal(Type::Double, 1),
            Expr::String(text) => Node::literal(Type::String, text.chars().count()),
            Expr::Bytes(bytes) => Node::literal(Type::Bytes, bytes.len()),
            Expr::Ident(name) | Expr::RootIdent(name) => self.variable(name),
            Expr::List(items) => self.list(items.iter().map(|item| &item.expr)),
            Expr::Map(entries) => self.map(entries.iter().map(|entry| (&entry.key, &entry.value))),
            Expr::Unary { op, expr } => self.unary(*op, expr),
            Expr::Binary { op, left, right } => {
                let (left, right) = (self.visit(left), self.visit(right));
                calls::binary(*op, &left, &right)
            }
            Expr::Ternary { cond, then_expr, else_expr } => {
                let (cond, yes, no) = (self.visit(cond), self.visit(then_expr), self.visit(else_expr));
                let cost = cond.cost.saturating_add(yes.cost.max(no.cost));
                let made = Node::made(cost, yes.ty.or(&no.ty), Some(yes.size().or(no.size())));
                Node { entry: Entry::or(yes.entry, no.entry), ..made }
            }
            Expr::Member { expr, field, optional } => self.member(expr, field, *optional),
            Expr::MemberTestOnly { expr, field } => {
                let object = self.visit(expr);
                self.type_of_member((expression.span.start, '('), &object.ty, field);
                Node::made(object.cost, Type::Bool, None)
            }
            Expr::Index { expr, index, optional } => {
                let (whole, index) = (self.visit(expr), self.visit(index));
                self.index(&whole, &index, *optional)
            }
            Expr::Call { expr, args } => self.call(expr, args),
            Expr::Struct { fields, .. } => {
                let values = fields.iter().map(|field| self.visit(&field.value).cost);
                Node::made(values.fold(NEW_OBJECT, u64::saturating_add), Type::Dyn, None)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Bind { var_name, init, body } => {
                let init = self.visit(init);
                let cost = init.cost.saturating_add(NEW_LIST);
                self.locals.entry(var_name.clone()).or_default().push(init.into());
                let body = self.visit(body);
                self.forget(var_name);
                let made = Node::made(cost.saturating_add(body.cost), body.ty, body.size);
                Node { entry: body.entry, ..made }
            }
        }
    }

    fn variable(&self, name: &str) -> Node {
        if let Some(local) = self.locals.get(name).and_then(|stack| stack.last()) {
            let node = Node::at(ACCESS, local.ty.clone(), local.place.clone());
            return Node { size: node.size.or(local.size), entry: local.entry, ..node };
        }
        let ty = match name {
            "self" => self.root.ty.clone(),
            "oldSelf" if self.old_is_optional => Type::Optional(Rc::new(self.root.ty.clone())),
            "oldSelf" => self.root.ty.clone(),
            _ => Type::Kind,
        };
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

    fn list<'e>(&mut self, items: impl ExactSizeIterator<Item = &'e SpannedExpr>) -> Node {
        let count = items.len();
        let (mut cost, mut ty) = (NEW_LIST, Type::Unset);
        let mut value = if count == 0 { Size::fixed(0) } else { Size::NOTHING };
        for item in items {
            let item = self.visit(item);
            cost = cost.saturating_add(item.cost);
            value = value.or(item.size());
            ty = ty.or(&item.ty);
        }
        let entry = Some(Entry { is_list: true, key: Size::fixed(1), value });
        Node { cost, entry, ..Node::literal(Type::List(Rc::new(ty)), count) }
    }

    fn map<'e>(
        &mut self,
        entries: impl ExactSizeIterator<Item = (&'e SpannedExpr, &'e SpannedExpr)>,
    ) -> Node {
        let count = entries.len();
        let (mut cost, mut key_type, mut value_type) = (NEW_MAP, Type::Unset, Type::Unset);
        let none = if count == 0 { Size::fixed(0) } else { Size::NOTHING };
        let (mut keys, mut values) = (none, none);
        for (key, value) in entries {
            let (key, value) = (self.visit(key), self.visit(value));
            cost = cost.saturating_add(key.cost).saturating_add(value.cost);
            (keys, values) = (keys.or(key.size()), values.or(value.size()));
            (key_type, value_type) = (key_type.or(&key.ty), value_type.or(&value.ty));
        }
        let entry = Some(Entry { is_list: false, key: keys, value: values });
        let ty = Type::Map(Rc::new(key_type), Rc::new(value_type));
        Node { cost, entry, ..Node::literal(ty, count) }
    }

    fn unary(&mut self, op: UnaryOp, operand: &SpannedExpr) -> Node {
        let node = self.visit(operand);
        match (op, &operand.node) {
            // The sign is a part of the number.
            (UnaryOp::Neg, Expr::Int(_) | Expr::Float(_)) => {
                Node { literal: node.literal.map(i64::wrapping_neg), ..node }
            }
            (UnaryOp::Neg, _) => Node::made(node.cost.saturating_add(1), node.ty, None),
            (UnaryOp::Not, _) => Node::made(node.cost.saturating_add(1), Type::Bool, None),
        }
    }

    fn member(&mut self, operand: &SpannedExpr, name: &str, optional: bool) -> Node {
        let object = self.visit(operand);
        let ty = self.type_of_member((operand.span.end, '.'), &object.ty, name);
        if optional {
            let ty = if matches!(ty, Type::Optional(_)) { ty } else { Type::Optional(Rc::new(ty)) };
            return Node::made(object.cost.saturating_add(1), ty, None);
        }
        let access = match object.ty {
            Type::Map(..) | Type::Object(_) => ACCESS,
            _ => 0,
        };
        let place = self.step(&object.place, |decl| decl.fields.get(name).cloned());
        Node::at(object.cost.saturating_add(access), ty, place)
    }

    fn type_of_member(&mut self, place: (usize, char), object: &Type, name: &str) -> Type {
        let (after, sign) = place;
        match object {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(fields) => match fields.get(name) {
                Some(decl) => decl.ty.clone(),
                None => {
                    self.faults.push(Fault { after, sign, why: format!("undefined field '{name}'") });
                    Type::Dyn
                }
            },
            Type::Optional(inner) => Type::Optional(Rc::new(self.type_of_member(place, inner, name))),
            other => {
                if let Some(scalar) = other.name() {
                    let why = format!("type '{scalar}' does not support field selection");
                    self.faults.push(Fault { after, sign, why });
                }
                Type::Dyn
            }
        }
    }

    fn index(&self, whole: &Node, index: &Node, optional: bool) -> Node {
        let cost = whole.cost.saturating_add(index.cost).saturating_add(1);
        let of = match &whole.ty {
            Type::Optional(inner) => (**inner).clone(),
            ty => ty.clone(),
        };
        if optional || matches!(whole.ty, Type::Optional(_)) {
            return Node::made(cost, Type::Optional(Rc::new(of.inner())), None);
        }
        let place = self.step(&whole.place, |decl| decl.inner.clone());
        let node = Node::at(cost, of.inner(), place);
        Node { size: whole.entry.map(|entry| entry.value).or(node.size), ..node }
    }

    fn call(&mut self, function: &SpannedExpr, args: &[SpannedExpr]) -> Node {
        let (name, target) = match &function.node {
            Expr::Ident(name) | Expr::RootIdent(name) => (name.clone(), None),
            Expr::Member { expr, field, .. } => match &expr.node {
                Expr::Ident(space) if calls::is_space(space) && !self.locals.contains_key(space) => {
                    (format!("{space}.{field}"), None)
                }
                _ => (field.clone(), Some(self.visit(expr))),
            },
            _ => return Node::made(0, Type::Dyn, None),
        };
        let args: Vec<Node> = args.iter().map(|arg| self.visit(arg)).collect();
        if let ("dyn", [arg]) = (name.as_str(), &args[..]) {
            let made = Node::made(arg.cost.saturating_add(1), Type::Dyn, arg.size);
            return Node { entry: arg.entry, ..made };
        }
        calls::call(&name, target.as_ref(), &args)
    }

    fn comprehension(&mut self, comprehension: &ComprehensionData) -> Node {
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
        let result = Local { ty: accumulator.ty.or(&step.ty), ..accumulator.clone().into() };
        self.locals.entry(comprehension.accu_var.clone()).or_default().push(result);
        let result = self.visit(&comprehension.result);
        self.forget(&comprehension.accu_var);
        cost = cost.saturating_add(result.cost);
        cost = cost.saturating_add(range.size().max.saturating_mul(step.cost.saturating_add(condition)));
        match &comprehension.accu_init.node {
            Expr::List(_) | Expr::Map(_) => {
                let made = Node::made(cost, result.ty, Some(range.size()));
                Node { entry: step.entry, ..made }
            }
            _ => Node::made(cost, result.ty, accumulator.size),
        }
    }

    /// The key and the value of an entry of what a comprehension goes over.
    fn entry_of(&self, range: &Node, over_list: bool) -> (Local, Local) {
        let key_type = match &range.ty {
            Type::List(_) => Type::Int,
            Type::Map(key, _) => (**key).clone(),
            _ => Type::Dyn,
        };
        let key = self
            .step(&range.place, |decl| (!over_list && decl.inner.is_some()).then(|| Rc::new(Decl::key())));
        let value = self.step(&range.place, |decl| decl.inner.clone());
        let local = |ty, place, size| Local { ty, place, size, entry: None };
        (
            local(key_type, key, range.entry.map(|entry| entry.key)),
            local(range.ty.inner(), value, range.entry.map(|entry| entry.value)),
        )
    }
}

/// Whether a type is none of these for sure.
pub fn is_other(ty: &Type, wanted: fn(&Type) -> bool) -> bool {
    !ty.is_dyn() && !wanted(ty)
}

/// Whether an operator is one of the comparisons of order.
fn is_order(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge)
}
