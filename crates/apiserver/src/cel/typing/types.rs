//! The types of expressions, and which of them fits where another is wanted: cel-go's rules.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// The type of an expression.
#[derive(Clone, Debug)]
pub enum Type {
    Dyn,
    /// Of what is wrong already: it fits everywhere, so that nothing is told twice.
    Error,
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
    Kind(Arc<Type>),
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    Optional(Arc<Type>),
    Object(Arc<Object>),
    /// Of Kubernetes' libraries.
    Opaque(&'static str),
    /// Not known yet, or a parameter of a signature.
    Open(u32),
}

/// A type with members.
#[derive(Debug, Default)]
pub struct Object {
    /// What faults call it.
    pub name: String,
    /// The members; none where every name is one.
    pub fields: Option<BTreeMap<String, Type>>,
}

impl Object {
    /// Of a member.
    pub fn field(&self, name: &str) -> Option<Type> {
        self.fields.as_ref().map_or(Some(Type::Dyn), |fields| fields.get(name).cloned())
    }
}

impl Type {
    /// Of a list of these.
    pub fn list(inner: Type) -> Self {
        Type::List(Arc::new(inner))
    }

    /// Of a map from texts to these.
    pub fn map(inner: Type) -> Self {
        Type::Map(Arc::new(Type::String), Arc::new(inner))
    }

    /// Of one of these, or none.
    pub fn optional(inner: Type) -> Self {
        Type::Optional(Arc::new(inner))
    }

    pub fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    pub fn is_text(&self) -> bool {
        matches!(self, Type::String | Type::Bytes)
    }

    pub fn is_list(&self) -> bool {
        matches!(self, Type::List(_))
    }

    /// Whether values have no size of their own.
    pub fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => true,
            Type::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }

    /// Of the items of a list or the values of a map.
    pub fn inner(&self) -> Type {
        match self {
            Type::List(inner) | Type::Map(_, inner) | Type::Optional(inner) => (**inner).clone(),
            _ => Type::Dyn,
        }
    }

    /// The types it is made of.
    fn parts(&self) -> Vec<&Type> {
        match self {
            Type::List(inner) | Type::Optional(inner) | Type::Kind(inner) => vec![inner],
            Type::Map(key, value) => vec![key, value],
            _ => Vec::new(),
        }
    }

    /// The same with other parts.
    pub fn with(&self, part: &mut impl FnMut(&Type) -> Type) -> Type {
        let mut part = |of: &Type| Arc::new(part(of));
        match self {
            Type::List(inner) => Type::List(part(inner)),
            Type::Optional(inner) => Type::Optional(part(inner)),
            Type::Kind(inner) => Type::Kind(part(inner)),
            Type::Map(key, value) => Type::Map(part(key), part(value)),
            other => other.clone(),
        }
    }

    /// The type with others in the place of open ones, by their numbers.
    pub fn instance(&self, open: &[Type]) -> Type {
        match self {
            Type::Open(number) => open[*number as usize].clone(),
            other => other.with(&mut |part| part.instance(open)),
        }
    }

    /// Whether both are one.
    pub fn is(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Object(one), Type::Object(other)) => {
                Arc::ptr_eq(one, other) || (one.fields.is_none() && one.name == other.name)
            }
            (Type::Opaque(one), Type::Opaque(other)) => one == other,
            (Type::Open(one), Type::Open(other)) => one == other,
            (one, other) => {
                std::mem::discriminant(one) == std::mem::discriminant(other)
                    && one.parts().iter().zip(other.parts()).all(|(one, other)| one.is(other))
            }
        }
    }

    /// Whether it says no more than another.
    fn says_no_more(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn | Type::Open(_), _) => true,
            (_, Type::Dyn | Type::Open(_)) => false,
            (Type::Kind(_), Type::Kind(_)) => true,
            (Type::List(_), Type::List(_))
            | (Type::Map(..), Type::Map(..))
            | (Type::Optional(_), Type::Optional(_)) => {
                self.parts().iter().zip(other.parts()).all(|(one, other)| one.says_no_more(other))
            }
            _ => self.is(other),
        }
    }

    /// Whether a null can stand for it.
    fn is_nullable(&self) -> bool {
        matches!(
            self,
            Type::Null
                | Type::Duration
                | Type::Timestamp
                | Type::Object(_)
                | Type::Opaque(_)
                | Type::Optional(_)
        )
    }

    /// How many types it is made of, counted up to a limit.
    fn count(&self, limit: usize) -> usize {
        let mut count = 1;
        for part in self.parts() {
            if count >= limit {
                break;
            }
            count += part.count(limit - count);
        }
        count
    }

    /// The type itself, or a type that says nothing for one that is made of too many.
    pub fn bounded(self) -> Self {
        const MOST: usize = 1000;
        if self.count(MOST) < MOST { self } else { Type::Dyn }
    }

    /// Its name where results of expressions are told of.
    pub fn declared(&self) -> String {
        match self {
            Type::Null => "null_type".into(),
            Type::Duration => "google.protobuf.Duration".into(),
            Type::Timestamp => "google.protobuf.Timestamp".into(),
            Type::List(inner) => format!("list({})", inner.declared()),
            Type::Map(key, value) => format!("map({}, {})", key.declared(), value.declared()),
            Type::Optional(inner) => format!("optional_type({})", inner.declared()),
            Type::Kind(inner) => format!("type({})", inner.declared()),
            other => other.to_string(),
        }
    }
}

/// As faults of a check name it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Dyn => "dyn",
            Type::Error => "!error!",
            Type::Null => "null",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "duration",
            Type::Timestamp => "timestamp",
            Type::Opaque(name) => name,
            Type::Object(object) => &object.name,
            Type::Kind(inner) => return write!(f, "type({inner})"),
            Type::List(inner) => return write!(f, "list({inner})"),
            Type::Map(key, value) => return write!(f, "map({key}, {value})"),
            Type::Optional(inner) => return write!(f, "optional_type({inner})"),
            Type::Open(number) => return write!(f, "_var{number}"),
        })
    }
}

/// The most types that a check looks at: what is bound to each other can be as large as the powers of two.
const MOST_STEPS: u32 = 2_000_000;

/// What is known of types that were not known at first.
#[derive(Default)]
pub struct Bindings {
    steps: Cell<u32>,
    known: HashMap<u32, Type>,
    /// What was bound, and to what before.
    trail: Vec<(u32, Option<Type>)>,
    next: u32,
}

impl Bindings {
    /// A type that is not known yet.
    pub fn open(&mut self) -> Type {
        self.next += 1;
        Type::Open(self.next)
    }

    /// Whether more was to be looked at than can be.
    pub fn is_exhausted(&self) -> bool {
        self.steps.get() >= MOST_STEPS
    }

    fn steps(&self) -> bool {
        self.steps.set(self.steps.get().saturating_add(1));
        !self.is_exhausted()
    }

    /// Whether values of the types can stand where the others are wanted; binds what must be bound for it.
    pub fn fit(&mut self, given: &[Type], wanted: &[Type]) -> bool {
        self.trail.clear();
        let fit = given.len() == wanted.len()
            && given.iter().zip(wanted).all(|(given, wanted)| self.fits(given, wanted));
        if !fit {
            while let Some((number, before)) = self.trail.pop() {
                match before {
                    Some(before) => self.known.insert(number, before),
                    None => self.known.remove(&number),
                };
            }
        }
        fit
    }

    /// The type with all that is known of it; what is open stays so, or says nothing.
    pub fn resolve(&self, ty: &Type, close: bool) -> Type {
        match ty {
            _ if !self.steps() => Type::Dyn,
            Type::Open(number) => match self.known.get(number) {
                Some(known) => self.resolve(known, close),
                None if close => Type::Dyn,
                None => ty.clone(),
            },
            other => other.with(&mut |part| self.resolve(part, close)),
        }
    }

    fn bind(&mut self, number: u32, ty: Type) {
        let before = self.known.insert(number, ty);
        self.trail.push((number, before));
    }

    fn fits(&mut self, given: &Type, wanted: &Type) -> bool {
        if let Type::Open(number) = wanted {
            match self.stands_for(given, *number) {
                (true, _) => return true,
                (false, true) => return false,
                (false, false) => {}
            }
        }
        if let Type::Open(number) = given {
            return self.stands_for(wanted, *number).0;
        }
        match (given, wanted) {
            _ if !self.steps() => true,
            (one, other) if one.is_dyn() || other.is_dyn() => true,
            (Type::Null, other) | (other, Type::Null) => other.is_nullable(),
            (Type::Kind(_), Type::Kind(_)) => true,
            (Type::List(_), Type::List(_))
            | (Type::Map(..), Type::Map(..))
            | (Type::Optional(_), Type::Optional(_)) => {
                given.parts().into_iter().zip(wanted.parts()).all(|(given, wanted)| self.fits(given, wanted))
            }
            (one, other) => one.is(other),
        }
    }

    /// Whether a type can be what an open one is, and whether that was known already.
    fn stands_for(&mut self, ty: &Type, number: u32) -> (bool, bool) {
        if matches!(ty, Type::Open(other) if *other == number) {
            return (true, true);
        }
        if let Some(known) = self.known.get(&number).cloned() {
            if ty.is(&known) {
                return (true, true);
            }
            if !self.fits(ty, &known) {
                return (false, true);
            }
            let general = if ty.says_no_more(&known) { ty.clone() } else { known };
            if !self.mentions(&general, number) {
                self.bind(number, general);
            }
            return (true, true);
        }
        if self.mentions(ty, number) {
            return (false, false);
        }
        self.bind(number, ty.clone());
        (true, false)
    }

    fn mentions(&self, ty: &Type, number: u32) -> bool {
        match ty {
            _ if !self.steps() => true,
            Type::Open(other) if *other == number => true,
            Type::Open(other) => self.known.get(other).is_some_and(|known| self.mentions(known, number)),
            other => other.parts().into_iter().any(|part| self.mentions(part, number)),
        }
    }

    /// The more general of two types, if they agree.
    pub fn join(&mut self, one: &Type, other: &Type) -> Type {
        if !self.fit(std::slice::from_ref(one), std::slice::from_ref(other)) {
            return Type::Dyn;
        }
        if one.says_no_more(other) { one.clone() } else { other.clone() }
    }
}
