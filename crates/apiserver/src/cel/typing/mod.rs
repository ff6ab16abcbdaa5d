//! Whether the names of an expression are declared and its types fit: cel-go's check, in its words. What is found is what the
//! estimate of costs (`cost`) goes by.

mod literals;
mod places;
mod signatures;
mod types;
mod variables;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cel_core::types::{BinaryOp, ComprehensionData, Expr, SpannedExpr, StructField, UnaryOp};

use places::Places;
use signatures::Signature;
use types::Bindings;
pub use types::{Object, Type};
pub use variables::{
    CLAIMS, CONDITIONS, DEVICES, Environment, POLICY, REVIEWS, USERS, admission, authorized, composed,
};

/// What a check found.
#[derive(Debug)]
pub struct Checked {
    /// The type of the whole.
    pub ty: Type,
    /// The types of the parts, by their numbers.
    pub types: HashMap<i64, Type>,
}

/// What is wrong with an expression, each with its place, in their order.
pub type Faults = BTreeSet<(usize, String)>;

/// Checks an expression over the variables of an environment.
///
/// # Errors
/// What is wrong with it.
pub fn check(expression: &SpannedExpr, source: &str, environment: &Environment) -> Result<Checked, Faults> {
    let mut walk = Walk {
        environment,
        places: Places::of(source),
        locals: Vec::new(),
        types: HashMap::new(),
        bindings: Bindings::default(),
        faults: Faults::new(),
    };
    walk.visit(expression);
    let Walk { places, types, bindings, mut faults, .. } = walk;
    let types: HashMap<i64, Type> =
        types.into_iter().map(|(id, ty)| (id, bindings.resolve(&ty, true).bounded())).collect();
    if bindings.is_exhausted() {
        return Err([(0, "expression is too complex".to_owned())].into());
    }
    if faults.is_empty() {
        literals::check(expression, &types, &places, &mut faults);
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Checked { ty: types.get(&expression.id).cloned().unwrap_or(Type::Dyn), types })
}

/// The name that a chain of members spells.
pub fn qualified(e: &SpannedExpr) -> Option<String> {
    match &e.node {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Member { expr, field, optional: false } => Some(format!("{}.{field}", qualified(expr)?)),
        _ => None,
    }
}

/// What stands after two signs in a row.
fn doubled<'e>(e: &SpannedExpr, op: UnaryOp, inner: &'e SpannedExpr) -> Option<&'e SpannedExpr> {
    match &inner.node {
        Expr::Unary { op: next, expr } if *next == op && inner.span.start == e.span.start + 1 => Some(expr),
        _ => None,
    }
}

/// The name of an operator of two.
fn operator(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "_+_",
        BinaryOp::Sub => "_-_",
        BinaryOp::Mul => "_*_",
        BinaryOp::Div => "_/_",
        BinaryOp::Mod => "_%_",
        BinaryOp::Eq => "_==_",
        BinaryOp::Ne => "_!=_",
        BinaryOp::Lt => "_<_",
        BinaryOp::Le => "_<=_",
        BinaryOp::Gt => "_>_",
        BinaryOp::Ge => "_>=_",
        BinaryOp::In => "@in",
        BinaryOp::And => "_&&_",
        BinaryOp::Or => "_||_",
    }
}

/// The type that a name stands for.
fn kind(name: &str) -> Option<Type> {
    let any = || Arc::new(Type::Dyn);
    let of = match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "int" => Type::Int,
        "list" => Type::List(any()),
        "map" => Type::Map(any(), any()),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        "net.IP" => Type::Opaque("net.IP"),
        "null_type" => Type::Null,
        "optional_type" => Type::Optional(any()),
        "string" => Type::String,
        "type" => Type::Kind(any()),
        "uint" => Type::Uint,
        _ => return None,
    };
    Some(Type::Kind(Arc::new(of)))
}

struct Walk<'e> {
    environment: &'e Environment,
    places: Places<'e>,
    locals: Vec<(&'e str, Type)>,
    types: HashMap<i64, Type>,
    bindings: Bindings,
    faults: Faults,
}

impl<'e> Walk<'e> {
    fn visit(&mut self, e: &'e SpannedExpr) -> Type {
        let ty = self.type_of(e).bounded();
        self.types.insert(e.id, ty.clone());
        ty
    }

    fn fault(&mut self, at: usize, why: String) -> Type {
        self.faults.insert((at, why));
        Type::Error
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn mismatch(&mut self, e: &SpannedExpr, wanted: &Type, found: &Type) {
        let (wanted, found) = (self.bindings.resolve(wanted, false), self.bindings.resolve(found, true));
        self.fault(self.places.of_node(e), format!("expected type '{wanted}' but found '{found}'"));
    }

    fn type_of(&mut self, e: &'e SpannedExpr) -> Type {
        match &e.node {
            Expr::Null => Type::Null,
            Expr::Bool(_) => Type::Bool,
            Expr::Int(_) => Type::Int,
            Expr::UInt(_) => Type::Uint,
            Expr::Float(_) => Type::Double,
            Expr::String(_) => Type::String,
            Expr::Bytes(_) => Type::Bytes,
            Expr::Error => Type::Error,
            Expr::Ident(name) | Expr::RootIdent(name) => {
                self.named(name).unwrap_or_else(|| self.undeclared(e.span.start, name))
            }
            Expr::List(items) => {
                let items = items.iter().map(|item| (&item.expr, item.optional));
                let inner = self.joined(items);
                Type::list(inner)
            }
            Expr::Map(entries) => {
                let key = self.joined(entries.iter().map(|entry| (&entry.key, false)));
                let value = self.joined(entries.iter().map(|entry| (&entry.value, entry.optional)));
                Type::Map(Arc::new(key), Arc::new(value))
            }
            // Two signs are none.
            Expr::Unary { op, expr: inner } if let Some(operand) = doubled(e, *op, inner) => {
                let ty = self.visit(operand);
                self.types.insert(inner.id, ty.clone());
                ty
            }
            Expr::Unary { op, expr } => {
                let operand = self.visit(expr);
                let name = if *op == UnaryOp::Neg { "-_" } else { "!_" };
                self.resolve(e, name, None, vec![operand])
            }
            Expr::Binary { op: BinaryOp::And | BinaryOp::Or, left, right } => self.logical(left, right),
            Expr::Binary { op, left, right } => {
                let operands = vec![self.visit(left), self.visit(right)];
                // An entry that a macro adds to a map.
                let adds = *op == BinaryOp::Add && self.places.is_of_macro(e);
                let adds = adds && matches!(operands[1], Type::Map(..));
                self.resolve(e, if adds { "cel.@mapInsert" } else { operator(*op) }, None, operands)
            }
            Expr::Ternary { cond, then_expr, else_expr } => {
                let known = self.places.enter_choice(e, cond);
                let operands = vec![self.visit(cond), self.visit(then_expr), self.visit(else_expr)];
                let ty = self.resolve(e, "_?_:_", None, operands);
                self.places.leave(known);
                ty
            }
            Expr::Member { expr, field, optional } => self.member(e, expr, field, *optional),
            Expr::MemberTestOnly { expr, field } => {
                let object = self.visit(expr);
                self.field(self.places.of_node(e), &object, field, false);
                Type::Bool
            }
            Expr::Index { expr, index, optional } => {
                let operands = vec![self.visit(expr), self.visit(index)];
                self.resolve(e, if *optional { "_[?_]" } else { "_[_]" }, None, operands)
            }
            Expr::Call { expr, args } => self.call(e, expr, args),
            Expr::Struct { type_name, fields } => self.written(e, type_name, fields),
            Expr::Comprehension(comprehension) => self.comprehension(e, comprehension),
            Expr::Bind { var_name, init, body } => self.bound(e, var_name, init, body),
        }
    }

    fn bound(
        &mut self,
        e: &SpannedExpr,
        name: &'e str,
        init: &'e SpannedExpr,
        body: &'e SpannedExpr,
    ) -> Type {
        if self.places.is_written(e, "cel") && !self.environment.binds() {
            // Then it is a method of nothing.
            self.undeclared(e.span.start, "cel");
            let at = self.places.next(e.span.start, "(");
            self.undeclared(at, "bind");
            if self.named(name).is_none() {
                self.undeclared(self.places.next(at, name), name);
            }
            [init, body].into_iter().for_each(|part| drop(self.visit(part)));
            return Type::Error;
        }
        let known = self.places.enter(e, init.span.end);
        let init = self.visit(init);
        self.locals.push((name, init));
        let body = self.visit(body);
        self.locals.pop();
        self.places.leave(known);
        body
    }

    /// The type of a variable, or of a name that stands for a type.
    fn named(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(known, _)| *known == name).map(|(_, ty)| ty.clone());
        local.or_else(|| self.environment.variable(name)).or_else(|| kind(name))
    }

    /// The type of items that stand beside each other.
    fn joined(&mut self, items: impl Iterator<Item = (&'e SpannedExpr, bool)>) -> Type {
        let mut all: Option<Type> = None;
        for (item, optional) in items {
            let mut ty = self.visit(item);
            if optional {
                match ty {
                    Type::Optional(inner) => ty = (*inner).clone(),
                    Type::Dyn | Type::Error => {}
                    other => {
                        self.mismatch(item, &Type::optional(other.clone()), &other);
                        ty = other;
                    }
                }
            }
            all = Some(match all {
                Some(all) => self.bindings.join(&all, &ty),
                None => ty,
            });
        }
        all.unwrap_or_else(|| self.bindings.open())
    }

    fn logical(&mut self, left: &'e SpannedExpr, right: &'e SpannedExpr) -> Type {
        let operands = [(left, self.visit(left)), (right, self.visit(right))];
        let mut ty = Type::Bool;
        for (operand, found) in operands {
            if !self.bindings.fit(std::slice::from_ref(&found), &[Type::Bool]) {
                self.mismatch(operand, &Type::Bool, &found);
                ty = Type::Error;
            }
        }
        ty
    }

    fn member(&mut self, e: &'e SpannedExpr, operand: &'e SpannedExpr, name: &str, optional: bool) -> Type {
        if let Some(ty) = qualified(e).and_then(|name| self.named(&name)) {
            return ty;
        }
        let object = self.visit(operand);
        self.field(self.places.of_node(e), &object, name, optional)
    }

    /// The type of a member.
    fn field(&mut self, at: usize, object: &Type, name: &str, optional: bool) -> Type {
        let object = self.bindings.resolve(object, false);
        let (object, was_optional) = match object {
            Type::Optional(inner) => ((*inner).clone(), true),
            object => (object, false),
        };
        let ty = match &object {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(fields) => match fields.field(name) {
                Some(ty) => ty,
                None => self.fault(at, format!("undefined field '{name}'")),
            },
            Type::Open(_) => {
                self.bindings.fit(&[Type::Dyn], std::slice::from_ref(&object));
                Type::Dyn
            }
            Type::Dyn | Type::Error => Type::Dyn,
            other => {
                self.fault(at, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        let ty = self.bindings.resolve(&ty, false);
        if optional || was_optional { Type::optional(ty) } else { ty }
    }

    fn call(&mut self, e: &'e SpannedExpr, function: &'e SpannedExpr, args: &'e [SpannedExpr]) -> Type {
        let arguments: Vec<Type> = args.iter().map(|arg| self.visit(arg)).collect();
        let (name, target) = match &function.node {
            Expr::Ident(name) | Expr::RootIdent(name) => (name.clone(), None),
            Expr::Member { expr, field, .. } => {
                let whole = qualified(function).filter(|name| self.signatures(name).is_some());
                match whole {
                    Some(name) => (name, None),
                    None => (field.clone(), Some(self.visit(expr))),
                }
            }
            _ => return Type::Error,
        };
        self.resolve(e, &name, target, arguments)
    }

    fn signatures(&self, name: &str) -> Option<&'static [Signature]> {
        signatures::of(name, self.environment.writes_patches())
    }

    /// The type of what a call makes: of all signatures that fit.
    fn resolve(&mut self, e: &SpannedExpr, name: &str, target: Option<Type>, args: Vec<Type>) -> Type {
        let Some(signatures) = self.signatures(name) else {
            return self.undeclared(self.places.of_node(e), name);
        };
        let is_method = target.is_some();
        let given: Vec<Type> = target.into_iter().chain(args).collect();
        let mut result: Option<Type> = None;
        for signature in signatures.iter().filter(|signature| signature.method == is_method) {
            let open: Vec<Type> = (0..signature.open).map(|_| self.bindings.open()).collect();
            let wanted: Vec<Type> =
                signature.parameters.iter().map(|parameter| parameter.instance(&open)).collect();
            if !self.bindings.fit(&given, &wanted) {
                continue;
            }
            let ty = self.bindings.resolve(&signature.result.instance(&open), false);
            result = Some(match result {
                Some(known) if !known.is_dyn() && !known.is(&ty) => Type::Dyn,
                Some(known) => known,
                None => ty,
            });
        }
        result.unwrap_or_else(|| {
            let shown: Vec<String> =
                given.iter().map(|ty| self.bindings.resolve(ty, true).to_string()).collect();
            let applied = match shown.split_first() {
                Some((target, args)) if is_method => format!("{target}.({})", args.join(", ")),
                _ => format!("({})", shown.join(", ")),
            };
            let why = format!("found no matching overload for '{name}' applied to '{applied}'");
            self.fault(self.places.of_node(e), why)
        })
    }

    /// An object that the expression writes.
    fn written(&mut self, e: &SpannedExpr, type_name: &'e SpannedExpr, fields: &'e [StructField]) -> Type {
        let name = qualified(type_name).unwrap_or_default();
        let Some(object) = self.environment.shape(&name) else {
            fields.iter().for_each(|field| drop(self.visit(&field.value)));
            return self.undeclared(self.places.of_node(e), &name);
        };
        for field in fields {
            let found = self.visit(&field.value);
            let wanted = object.field(&field.name);
            let wanted = wanted.map(|ty| if field.optional { Type::optional(ty) } else { ty });
            let fits = wanted.as_ref().is_some_and(|wanted| {
                self.bindings.fit(std::slice::from_ref(&found), std::slice::from_ref(wanted))
            });
            if !fits {
                let (name, found) = (&field.name, self.bindings.resolve(&found, true));
                let wanted = wanted.map(|wanted| wanted.to_string()).unwrap_or_default();
                let why =
                    format!("expected type of field '{name}' is '{wanted}' but provided type is '{found}'");
                self.fault(self.places.of_field(field), why);
            }
        }
        Type::Object(object)
    }

    fn comprehension(&mut self, e: &'e SpannedExpr, fold: &'e ComprehensionData) -> Type {
        let range = self.visit(&fold.iter_range);
        let known = self.places.enter(e, fold.iter_range.span.end);
        let accumulator = self.visit(&fold.accu_init);
        let range = self.bindings.resolve(&range, false);
        let (first, second) = match &range {
            Type::List(item) if fold.iter_var2.is_empty() => ((**item).clone(), Type::Dyn),
            Type::List(item) => (Type::Int, (**item).clone()),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Open(_) => {
                self.bindings.fit(&[Type::Dyn], std::slice::from_ref(&range));
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(self.places.of_node(&fold.iter_range), why);
                (Type::Error, Type::Error)
            }
        };
        let outside = self.locals.len();
        self.locals.push((&fold.accu_var, accumulator.clone()));
        self.locals.push((&fold.iter_var, first));
        if !fold.iter_var2.is_empty() {
            self.locals.push((&fold.iter_var2, second));
        }
        let condition = self.visit(&fold.loop_condition);
        self.assert(&fold.loop_condition, &condition, &Type::Bool);
        let step = self.visit(&fold.loop_step);
        self.assert(&fold.loop_step, &step, &accumulator);
        self.locals.truncate(outside + 1);
        let result = self.visit(&fold.result);
        self.locals.truncate(outside);
        self.places.leave(known);
        self.bindings.resolve(&result, false)
    }

    fn assert(&mut self, e: &SpannedExpr, found: &Type, wanted: &Type) {
        if !self.bindings.fit(std::slice::from_ref(found), std::slice::from_ref(wanted)) {
            self.mismatch(e, wanted, found);
        }
    }
}

#[cfg(test)]
mod tests;
