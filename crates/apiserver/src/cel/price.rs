//! What an evaluation costs, as cel-go counts it, and what it may cost. Beside that each evaluation has a limit of work that
//! cel-go has not: for what it counts as one step, whatever its size.

use super::macros::SORT;
use cel_core::types::BinaryOp;
use cel_core::{OptionalValue, Value as Cel};

use super::opaque::Opaque;
use super::{formats, patterns};

/// What one expression may cost.
const CALL_LIMIT: u64 = 1_000_000;
/// The values that one expression may look at, make and copy, each by 8 bytes: half a second's work, and 128 MB.
const WORK_LIMIT: u64 = 16_000_000;
/// One check of the authorizer: two are all that an expression may ask for.
const CHECK: u64 = 350_000;
const CHARACTER: f64 = 0.1;
const PATTERN_CHARACTER: f64 = 0.25;
/// What writing a list, a map or an object costs.
pub const NEW_LIST: u64 = 10;
pub const NEW_MAP: u64 = 30;
pub const NEW_OBJECT: u64 = 40;

/// An evaluation was ended before it cost too much.
#[derive(Debug)]
pub struct Exceeded;

/// What is left to the expressions of one request or object together.
#[derive(Clone, Copy, Debug)]
pub struct Budget(u64);

impl Budget {
    /// For the rules of a custom resource, or the expressions of a policy.
    pub fn rules() -> Self {
        Self(10_000_000)
    }

    /// For the conditions of a webhook or of a policy.
    pub fn conditions() -> Self {
        Self(2_500_000)
    }

    /// For an expression that shares with no other.
    pub fn one() -> Self {
        Self(u64::MAX)
    }

    /// What was paid of a budget that was for one.
    pub fn spent_of_one(self) -> u64 {
        u64::MAX - self.0
    }

    /// Whether there is none left.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes a cost off it, if there is as much.
    pub fn pay(&mut self, cost: u64) -> bool {
        let left = self.0.checked_sub(cost);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}

/// Counts what an evaluation costs.
#[derive(Debug, Default)]
pub struct Meter {
    spent: u64,
    work: u64,
}

impl Meter {
    /// What it cost so far.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Counts a cost.
    ///
    /// # Errors
    /// It is too much.
    pub fn charge(&mut self, cost: u64) -> Result<(), Exceeded> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent > CALL_LIMIT { Err(Exceeded) } else { Ok(()) }
    }

    /// Counts work.
    ///
    /// # Errors
    /// It is too much.
    pub fn toil(&mut self, work: u64) -> Result<(), Exceeded> {
        self.work = self.work.saturating_add(work);
        if self.work > WORK_LIMIT { Err(Exceeded) } else { Ok(()) }
    }

    /// Counts values that are put into a list.
    pub fn items(&mut self, count: usize) -> Result<(), Exceeded> {
        self.toil(4 * count as u64)
    }

    /// Counts a walk through all of a value, and says how much that is.
    pub fn weigh(&mut self, value: &Cel) -> Result<u64, Exceeded> {
        let before = self.work;
        self.walk(value)?;
        Ok(self.work - before)
    }

    fn walk(&mut self, value: &Cel) -> Result<(), Exceeded> {
        match value {
            Cel::String(text) => self.toil(1 + text.len() as u64 / 8),
            Cel::Bytes(bytes) => self.toil(1 + bytes.len() as u64 / 8),
            Cel::List(items) => {
                self.toil(1)?;
                items.iter().try_for_each(|item| self.walk(item))
            }
            Cel::Map(map) => {
                self.toil(1 + map.len() as u64)?;
                map.values().try_for_each(|value| self.walk(value))
            }
            Cel::Optional(OptionalValue::Some(inner)) => self.walk(inner),
            _ => self.toil(1),
        }
    }

    /// Counts the work of an operator before it is done.
    pub fn toil_of_operator(&mut self, op: BinaryOp, left: &Cel, right: &Cel) -> Result<(), Exceeded> {
        match (op, left, right) {
            (BinaryOp::Add, Cel::List(left), Cel::List(right)) => self.items(left.len() + right.len()),
            (BinaryOp::In, _, Cel::List(items)) => {
                let each = self.weigh(left)?;
                self.toil(each.saturating_mul(items.len() as u64))?;
                match left {
                    Cel::List(_) | Cel::Map(_) => self.walk(right),
                    _ => Ok(()),
                }
            }
            (_, Cel::List(_) | Cel::Map(_), Cel::List(_) | Cel::Map(_)) => self.walk(left),
            (_, Cel::String(left), Cel::String(right)) => self.toil((left.len() + right.len()) as u64 / 8),
            (_, Cel::Bytes(left), Cel::Bytes(right)) => self.toil((left.len() + right.len()) as u64 / 8),
            _ => Ok(()),
        }
    }

    /// Counts the work of a function before it is done.
    pub fn toil_of_call(&mut self, name: &str, args: &[Cel]) -> Result<(), Exceeded> {
        let mut texts = 0;
        for arg in args {
            if let Cel::String(text) = arg {
                texts += text.len() as u64;
            }
        }
        self.toil(texts / 8)?;
        let pieces = |text: &str, part: &str| (text.len() / part.len().max(1) + 1) as u64;
        match (name, args) {
            ("matches" | "find" | "findAll", [Cel::String(text), Cel::String(pattern), ..]) => {
                self.toil(patterns::work(pattern, text))?;
                if name == "findAll" { self.toil(text.len() as u64) } else { Ok(()) }
            }
            ("replace", [Cel::String(text), Cel::String(from), Cel::String(to), ..]) => {
                self.toil(pieces(text, from).saturating_mul(to.len() as u64) / 8)
            }
            ("split", [Cel::String(text), Cel::String(between), ..]) => self.toil(6 * pieces(text, between)),
            ("join", [Cel::List(items), rest @ ..]) => {
                let between = rest.iter().map(|arg| if let Cel::String(text) = arg { text.len() } else { 0 });
                let between = between.sum::<usize>() as u64;
                self.toil(between.saturating_mul(items.len() as u64) / 8)?;
                self.walk(&args[0])
            }
            ("format", [Cel::String(text), values]) => {
                // No number has more digits than that, unless it is written with more.
                let digits =
                    |verb: &str| verb.trim_start_matches('.').bytes().take_while(u8::is_ascii_digit).count();
                if text.split('%').skip(1).any(|verb| digits(verb) > 3) {
                    return Err(Exceeded);
                }
                let count = if let Cel::List(values) = values { values.len() } else { 0 };
                self.toil(count as u64 * 64)?;
                self.walk(values)
            }
            ("sets.contains" | "sets.intersects" | "sets.equivalent", [one, other]) => {
                let (one_weight, other_weight) = (self.weigh(one)?, self.weigh(other)?);
                self.toil(one_weight.saturating_mul(size(other)).max(other_weight.saturating_mul(size(one))))
            }
            ("distinct" | "sort" | SORT, [.., list]) => {
                let weight = self.weigh(list)?;
                self.toil(weight.saturating_mul(size(list)))
            }
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "flatten", [list, ..]) => {
                self.walk(list)
            }
            ("reverse" | "slice", [Cel::List(items), ..]) => self.items(items.len()),
            _ => Ok(()),
        }
    }
}

fn scaled(count: u64, factor: f64) -> u64 {
    (count as f64 * factor).ceil() as u64
}

fn matching(text: u64, pattern: u64) -> u64 {
    scaled(1 + text, CHARACTER).saturating_mul(scaled(pattern, PATTERN_CHARACTER))
}

/// The cost of an operator other than those of logic.
pub fn of_operator(op: BinaryOp, left: &Cel, right: &Cel) -> u64 {
    let is_text = |value: &Cel| matches!(value, Cel::String(_) | Cel::Bytes(_));
    match op {
        BinaryOp::Eq | BinaryOp::Ne if Opaque::of(left).is_some() && op == BinaryOp::Eq => 1,
        BinaryOp::Eq | BinaryOp::Ne => scaled(size(left).min(size(right)), CHARACTER),
        BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge if is_text(left) && is_text(right) => {
            scaled(size(left).min(size(right)), CHARACTER)
        }
        BinaryOp::Add if is_text(left) && is_text(right) => scaled(size(left) + size(right), CHARACTER),
        BinaryOp::In => match right {
            Cel::List(items) => items.len() as u64,
            _ => 1,
        },
        _ => 1,
    }
}

/// The cost of a text that was joined.
pub fn of_joined(text: &Cel) -> u64 {
    scaled(size(text), 2.0 * CHARACTER)
}

/// The cost of a call of a function.
pub fn of_call(name: &str, args: &[Cel]) -> u64 {
    let size = |at: usize| args.get(at).map_or(0, size);
    let is_text = |at: usize| matches!(args.get(at), Some(Cel::String(_)));
    match (name, args.first()) {
        ("check", _) => CHECK,
        // It costs by its result.
        ("join", _) => 0,
        ("ip", Some(value)) if matches!(Opaque::of(value), Some(Opaque::Cidr(_))) => 1,
        ("string", Some(Cel::Bytes(_))) | ("bytes", Some(Cel::String(_))) => scaled(size(0), CHARACTER),
        ("startsWith" | "endsWith" | "format" | "strings.quote", _) => scaled(size(0), CHARACTER),
        ("contains", _) => scaled(size(0), CHARACTER).saturating_mul(scaled(size(1), CHARACTER)),
        ("matches" | "find" | "findAll", _) => matching(size(0), size(1)),
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(list)) => traversal(list),
        (
            "url"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim"
            | "jsonpatch.escapeKey"
            | "cidr"
            | "ip"
            | "isIP"
            | "isCIDR"
            | "quantity"
            | "isQuantity"
            | "semver"
            | "isSemver",
            _,
        ) => scaled(size(0), CHARACTER),
        ("replace" | "split" | "ip.isCanonical", _) => scaled(size(0), 2.0 * CHARACTER),
        ("containsIP", _) => {
            scaled(2 * size(0), CHARACTER) + if is_text(1) { scaled(size(1), CHARACTER) } else { 0 }
        }
        ("containsCIDR", _) => {
            let other = if is_text(1) { scaled(size(1), CHARACTER) } else { 0 };
            scaled(2 * size(0), CHARACTER) + scaled(size(0), CHARACTER) + 1 + other
        }
        ("validate", Some(format)) => match Opaque::of(format) {
            Some(Opaque::Format(name)) => {
                scaled(1 + size(1), CHARACTER).saturating_mul(formats::pattern_cost(name))
            }
            _ => 1,
        },
        ("fieldSelector" | "labelSelector", _) => {
            NEW_LIST
                + scaled(size(1), CHARACTER)
                + scaled(scaled(size(1), 0.5), (NEW_LIST + NEW_OBJECT) as f64)
        }
        _ => of_lists(name, args),
    }
}

/// The cost of the functions that make lists or compare them, and of all that cost nothing in particular.
fn of_lists(name: &str, args: &[Cel]) -> u64 {
    let size = |at: usize| args.get(at).map_or(0, size);
    let number = |at: usize| match args.get(at) {
        Some(Cel::Int(number)) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    };
    let made = |cost: u64| cost.saturating_add(1 + NEW_LIST);
    match name {
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "lists.range" => made(number(0)),
        "reverse" if matches!(args.first(), Some(Cel::List(_))) => made(size(0)),
        "slice" => made(number(2).saturating_sub(number(1)).min(size(0))),
        "flatten" => made(size(0).saturating_mul(if args.len() == 2 { number(1) } else { 1 })),
        "distinct" | "sort" | SORT => {
            let first = match args.last() {
                Some(Cel::List(items)) => items.first(),
                _ => None,
            };
            let is_text = matches!(first, Some(Cel::String(_) | Cel::Bytes(_)));
            let factor = if is_text { 2.0 + CHARACTER } else { 2.0 };
            let size = size(args.len().saturating_sub(1));
            made((size.saturating_mul(size) as f64 * factor) as u64)
        }
        _ => 1,
    }
}

fn size(value: &Cel) -> u64 {
    match value {
        Cel::String(text) => text.chars().count() as u64,
        Cel::Bytes(bytes) => bytes.len() as u64,
        Cel::List(items) => items.len() as u64,
        Cel::Map(map) => map.len() as u64,
        Cel::Optional(OptionalValue::Some(inner)) => size(inner),
        other => Opaque::of(other).map_or(1, Opaque::size),
    }
}

/// A walk over all of a value.
fn traversal(value: &Cel) -> u64 {
    match value {
        Cel::String(text) => (text.len() as f64 * CHARACTER) as u64,
        Cel::Bytes(bytes) => (bytes.len() as f64 * CHARACTER) as u64,
        Cel::List(items) => items.iter().map(traversal).sum(),
        Cel::Map(map) => map.iter().map(|(key, value)| traversal(&key.to_value()) + traversal(value)).sum(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
