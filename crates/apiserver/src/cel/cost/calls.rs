//! What operators and functions cost, and the types and sizes of what they make: cel-go's rules and those of Kubernetes' libraries.

use cel_core::types::BinaryOp;

use super::super::macros::SORT;
use super::{CHARACTER, NEW_LIST, Node, PATTERN_CHARACTER, Place, Size, Type, is_order, scaled};

/// The longest pattern of a named format.
const FORMAT_PATTERN: f64 = 128.0;
/// The longest named format.
const FORMAT_LENGTH: u64 = 64;

/// Whether functions are named after a space of this name.
pub fn is_space(name: &str) -> bool {
    ["sets", "optional", "lists", "strings", "ip", "format"].contains(&name)
}

/// An operator and its operands.
pub fn binary(op: BinaryOp, ty: Type, left: &Node, right: &Node) -> Node {
    let operands = left.cost.saturating_add(right.cost);
    let with = |cost: u64| operands.saturating_add(cost);
    let (one, other) = (left.size(), right.size());
    let smaller = || scaled(one.max.min(other.max), CHARACTER);
    match op {
        BinaryOp::And | BinaryOp::Or => Node::made(operands, ty, None),
        BinaryOp::Eq => {
            let cost = same_opaque(left, right).unwrap_or_else(smaller);
            Node::made(with(cost), ty, None)
        }
        BinaryOp::Ne => Node::made(with(smaller()), ty, None),
        op if is_order(op) => {
            let cost = match (&left.ty, &right.ty) {
                (a, b) if a.is_dyn() && b.is_dyn() => smaller().max(1),
                (a, b) if a.is_text() || b.is_text() => smaller(),
                _ => 1,
            };
            Node::made(with(cost), ty, None)
        }
        BinaryOp::In => {
            let cost = match right.ty {
                Type::List(_) => other.max,
                Type::Map(..) => 1,
                _ => other.max.max(1),
            };
            Node::made(with(cost), ty, None)
        }
        BinaryOp::Add => add(ty, left, right),
        _ => Node::made(with(1), ty, None),
    }
}

fn add(ty: Type, left: &Node, right: &Node) -> Node {
    let operands = left.cost.saturating_add(right.cost);
    let size = left.size().plus(right.size());
    let entry = super::Entry::or(left.entry, right.entry);
    let (cost, size) = match &ty {
        // A map grows by an entry: a call of a function, not of a sum.
        Type::Map(..) => {
            let made = Node::made(operands.saturating_sub(super::NEW_MAP).saturating_add(1), ty, None);
            return Node { entry: None, ..made };
        }
        Type::List(_) => (1, Some(size)),
        Type::String | Type::Bytes => (size.cost(CHARACTER), Some(size)),
        Type::Dyn => (size.cost(CHARACTER).max(1), Some(size)),
        _ => (1, None),
    };
    let made = Node::made(operands.saturating_add(cost), ty, size);
    Node { entry: entry.filter(|_| size.is_some()), ..made }
}

/// What it costs whether two values of a type of Kubernetes' libraries are the same.
fn same_opaque(left: &Node, right: &Node) -> Option<u64> {
    match (&left.ty, &right.ty) {
        (Type::Opaque(one), Type::Opaque(other)) if one == other => Some(match *one {
            "kubernetes.NamedFormat" => scaled(FORMAT_LENGTH, CHARACTER),
            "kubernetes.URL" => right.size.map_or(Size::fixed(1), |size| size).cost(CHARACTER),
            _ => 1,
        }),
        _ => None,
    }
}

/// What a call costs beside its arguments, and the size of what it makes where its type does not say it.
struct Cost(u64, Option<Size>);

/// A call of a function, or of a method of `target`.
pub fn call(name: &str, ty: Type, target: Option<&Node>, args: &[Node]) -> Node {
    let Cost(cost, size) = kubernetes(name, target, args)
        .or_else(|| lists(name, target, args))
        .unwrap_or_else(|| standard(name, target, args));
    let operands = target.into_iter().chain(args).map(|operand| operand.cost);
    Node::made(operands.fold(cost, u64::saturating_add), ty, size)
}

/// The functions that cel-go itself brings.
fn standard(name: &str, target: Option<&Node>, args: &[Node]) -> Cost {
    match (name, target, args) {
        ("format", Some(target), _) => Cost(target.size().cost(CHARACTER), None),
        ("bytes", None, [text]) if !matches!(text.ty, Type::Bytes) => {
            let size = text.size();
            Cost(
                size.cost(CHARACTER).max(u64::from(text.ty.is_dyn())),
                Some(Size { max: size.max.wrapping_mul(4), ..size }),
            )
        }
        ("string", None, [bytes]) if matches!(bytes.ty, Type::Bytes | Type::Dyn) => {
            let size = bytes.size();
            Cost(
                size.cost(CHARACTER).max(u64::from(bytes.ty.is_dyn())),
                Some(Size { min: size.min / 4, ..size }),
            )
        }
        ("strings.quote", None, [text]) => {
            let size = text.size();
            let quoted = |size: u64, times: u64| size.wrapping_mul(times).wrapping_add(2);
            Cost(size.cost(CHARACTER), Some(Size { min: quoted(size.min, 1), max: quoted(size.max, 2) }))
        }
        ("startsWith" | "endsWith", _, [part]) => Cost(part.size().cost(CHARACTER), None),
        ("matches", Some(text), [pattern]) => Cost(matching(text.size(), pattern.size()), None),
        ("contains", Some(text), [part]) => {
            Cost(text.size().cost(CHARACTER).saturating_mul(part.size().cost(CHARACTER)), None)
        }
        ("sets.contains" | "sets.intersects", None, [one, other]) => {
            Cost(one.size().times(other.size()).cost(1.0).saturating_add(1), None)
        }
        ("sets.equivalent", None, [one, other]) => {
            Cost(one.size().times(other.size()).cost(2.0).saturating_add(1), None)
        }
        _ => Cost(1, None),
    }
}

/// A text against a regular expression; even an empty text costs.
fn matching(text: Size, pattern: Size) -> u64 {
    text.plus(Size::fixed(1)).cost(CHARACTER).saturating_mul(pattern.cost(PATTERN_CHARACTER))
}

/// The functions that make lists of lists.
fn lists(name: &str, target: Option<&Node>, args: &[Node]) -> Option<Cost> {
    let literal = |node: &Node, otherwise: u64| {
        node.literal.map_or(otherwise, |number| u64::try_from(number).unwrap_or(0))
    };
    let made = |size: Size, factor: f64| {
        let cost = size.cost(factor).saturating_add(1).saturating_add(NEW_LIST);
        Some(Cost(cost, Some(size)))
    };
    match (name, target, args) {
        ("slice", Some(list), [from, to]) => {
            let (from, to) = (literal(from, 0), literal(to, list.size().max));
            made(Size::fixed(to.wrapping_sub(from)), 1.0)
        }
        ("lists.range", None, [count]) => made(Size::fixed(literal(count, u64::MAX)), 1.0),
        ("reverse", Some(list), []) => made(list.size(), 1.0),
        ("flatten", Some(list), []) => made(list.size(), 1.0),
        ("flatten", Some(list), [depth]) => made(list.size(), literal(depth, u64::MAX) as f64),
        ("distinct", Some(list), []) => made(list.size().times(list.size()), 2.0),
        ("sort", Some(list), []) | (SORT, Some(_), [list]) => {
            let text = if list.ty.inner().is_text() || list.ty.inner().is_dyn() { CHARACTER } else { 0.0 };
            made(list.size().times(list.size()), 2.0 + text)
        }
        _ => None,
    }
}

/// The functions of Kubernetes' libraries.
fn kubernetes(name: &str, target: Option<&Node>, args: &[Node]) -> Option<Cost> {
    let plain = |cost: u64| Some(Cost(cost, None));
    Some(match (name, target, args) {
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(list), _) => search(list),
        ("url" | "jsonpatch.escapeKey", None, [text]) => Cost(text.size().cost(CHARACTER), Some(text.size())),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(text), _) => {
            Cost(text.size().cost(CHARACTER), Some(text.size()))
        }
        ("replace", Some(text), [from, to, ..]) => {
            let size = replaced(text.size(), from.size(), to.size());
            Cost(text.size().cost(2.0 * CHARACTER), Some(size))
        }
        ("split", Some(text), _) => {
            let limit = args.get(1).and_then(|limit| limit.literal).map(|limit| limit as u64);
            let size = Size { min: 0, max: limit.unwrap_or(text.size().max) };
            Cost(text.size().cost(2.0 * CHARACTER), Some(size))
        }
        ("join", Some(list), _) => {
            let size = joined(list, args.first());
            Cost(size.cost(CHARACTER), Some(size))
        }
        ("find" | "findAll", Some(text), [pattern, ..]) => {
            let size = Size { min: 0, max: text.size().max };
            Cost(matching(text.size(), pattern.size()), Some(size))
        }
        (
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver",
            _,
            [text, ..],
        ) => return plain(text.size().cost(CHARACTER)),
        ("ip.isCanonical", _, [text, ..]) => return plain(text.size().cost(2.0 * CHARACTER)),
        ("containsIP", _, [address, ..]) => {
            return plain(scaled(32, CHARACTER).saturating_add(as_text(address)));
        }
        ("containsCIDR", _, [network, ..]) => {
            let cost = scaled(32, CHARACTER) + scaled(16, CHARACTER) + 1;
            return plain(cost.saturating_add(as_text(network)));
        }
        ("validate", _, [text, ..]) => {
            return plain(scaled(text.size().cost(CHARACTER), FORMAT_PATTERN * PATTERN_CHARACTER));
        }
        _ => return None,
    })
}

/// What a function costs more for an argument that it must read from text first.
fn as_text(argument: &Node) -> u64 {
    match argument.ty {
        Type::Opaque(_) => 0,
        _ => argument.size().cost(CHARACTER),
    }
}

/// A walk over a list that compares its items, or over a text.
fn search(list: &Node) -> Cost {
    let Type::List(inner) = &list.ty else {
        return Cost(list.size().cost(CHARACTER), None);
    };
    let item = if inner.is_text() { items(list).cost(CHARACTER) } else { 0 };
    Cost(list.size().max.saturating_mul(item.saturating_add(1)), None)
}

/// The size of the items of a list, as the schema says it.
fn items(list: &Node) -> Size {
    match &list.place {
        Place::At(decl) => decl.inner.as_ref().map_or(Size::UNKNOWN, |inner| inner.size()),
        _ => Size::UNKNOWN,
    }
}

fn joined(list: &Node, separator: Option<&Node>) -> Size {
    let size = list.size();
    let texts = if list.ty.is_list() { size.times(items(list)) } else { Size::fixed(0) };
    let between = Size { min: size.min.saturating_sub(1), max: size.max.saturating_sub(1) };
    separator.map_or(texts, |separator| texts.plus(separator.size().times(between)))
}

/// The size of a text in which one part takes the place of another.
fn replaced(text: Size, from: Size, to: Size) -> Size {
    let parts = |whole: u64, part: u64| (whole as f64 / part as f64).ceil() as u64;
    let (most, kept_most) = match from.min {
        // Between all characters, and all of them stay.
        0 => (text.max.saturating_add(1), text.max),
        least if to.max <= least => (0, text.max),
        least => (parts(text.max, least), 0),
    };
    let (fewest, kept_least) = match from.max {
        0 => (text.min.saturating_add(1), text.min),
        longest if longest <= to.min => (0, text.min),
        longest => (parts(text.min, longest), 0),
    };
    let counts = Size { min: fewest, max: most };
    counts.times(to).plus(Size { min: kept_least, max: kept_most })
}
