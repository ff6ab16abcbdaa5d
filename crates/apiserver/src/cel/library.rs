//! Kubernetes' functions: lists, regular expressions, URLs, quantities, addresses and the authorizer.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use cel_core::{CelType, EvalError, FunctionDecl, OptionalValue, OverloadDecl, Value as Cel};
use coxswain_meta::Quantity;
use http::Uri;
use regex::Regex;

use super::opaque::{Authorizer, Cidr, Opaque};
use super::patterns;

pub type Outcome = Result<Cel, EvalError>;

pub fn bad() -> EvalError {
    EvalError::no_matching_overload("")
}

pub fn wrong(what: impl Into<String>) -> EvalError {
    EvalError::invalid_argument(what)
}

/// A function (or a method, whose receiver is the first argument) of some number of arguments.
pub fn declare(name: &str, arity: usize, method: bool, run: fn(&[Cel]) -> Outcome) -> FunctionDecl {
    let id = format!("kubernetes_{name}_{arity}_{method}");
    let params = vec![CelType::Dyn; arity];
    let overload = match method {
        true => OverloadDecl::method(id, params, CelType::Dyn),
        false => OverloadDecl::function(id, params, CelType::Dyn),
    };
    FunctionDecl::new(name)
        .with_overload(overload.with_impl(move |args| run(args).unwrap_or_else(Cel::error)))
}

pub fn text(value: &Cel) -> Result<&str, EvalError> {
    match value {
        Cel::String(text) => Ok(text),
        _ => Err(bad()),
    }
}

fn list(value: &Cel) -> Result<&[Cel], EvalError> {
    match value {
        Cel::List(items) => Ok(items),
        _ => Err(bad()),
    }
}

pub fn cel(text: impl AsRef<str>) -> Cel {
    Cel::String(Arc::from(text.as_ref()))
}

/// Every function.
pub fn functions() -> Vec<FunctionDecl> {
    [lists(), sets(), regexes(), urls(), quantities(), networks(), authorizers(), super::formats::functions()]
        .into_iter()
        .flatten()
        .collect()
}

fn compare(a: &Cel, b: &Cel) -> Ordering {
    a.compare(b).unwrap_or(Ordering::Equal)
}

fn extreme(items: &[Cel], wanted: Ordering, name: &str) -> Outcome {
    let mut items = items.iter();
    let first = items.next().ok_or_else(|| wrong(format!("{name} called on empty list")))?;
    Ok(items.fold(first, |best, item| if compare(item, best) == wanted { item } else { best }).clone())
}

fn position(args: &[Cel]) -> Option<i64> {
    let items = list(args.first()?).ok()?;
    items.iter().position(|item| Some(item) == args.get(1)).map(|at| at as i64)
}

/// Lists in lists as one, so many levels deep.
fn flat(items: &[Cel], depth: i64) -> Vec<Cel> {
    let each = items.iter().flat_map(|item| match item {
        Cel::List(inner) if depth > 0 => flat(inner, depth - 1),
        other => vec![other.clone()],
    });
    each.collect()
}

fn slice(args: &[Cel]) -> Outcome {
    let items = list(&args[0])?;
    let (Cel::Int(start), Cel::Int(end)) = (&args[1], &args[2]) else { return Err(bad()) };
    let why = match (*start, *end) {
        (start, end) if start < 0 || end < 0 => "negative indexes not supported".to_owned(),
        (start, end) if start > end => "start index must be less than or equal to end index".to_owned(),
        (_, end) if end > items.len() as i64 => "list is length ".to_owned() + &items.len().to_string(),
        (start, end) => return Ok(Cel::List(items[start as usize..end as usize].into())),
    };
    Err(wrong(format!("cannot slice({start}, {end}), {why}")))
}

/// The values of those that have one.
fn unwrapped(args: &[Cel]) -> Outcome {
    let mut values = Vec::new();
    for item in list(&args[0])? {
        match item {
            Cel::Optional(OptionalValue::Some(value)) => values.push((**value).clone()),
            Cel::Optional(OptionalValue::None) => {}
            _ => return Err(bad()),
        }
    }
    Ok(Cel::List(values.into()))
}

fn lists() -> Vec<FunctionDecl> {
    vec![
        declare("jsonpatch.escapeKey", 1, false, |args| {
            Ok(cel(text(&args[0])?.replace('~', "~0").replace('/', "~1")))
        }),
        declare("isSorted", 1, true, |args| {
            let items = list(&args[0])?;
            Ok(Cel::Bool(items.windows(2).all(|pair| compare(&pair[0], &pair[1]) != Ordering::Greater)))
        }),
        declare("sum", 1, true, |args| {
            let items = list(&args[0])?;
            let all_int = items.iter().all(|item| matches!(item, Cel::Int(_)));
            if all_int {
                let sum = items.iter().try_fold(0i64, |sum, item| match item {
                    Cel::Int(number) => sum.checked_add(*number),
                    _ => None,
                });
                return sum.map(Cel::Int).ok_or_else(|| EvalError::overflow("integer overflow"));
            }
            let number = |item: &Cel| match item {
                Cel::Double(number) => Ok(*number),
                Cel::Int(number) => Ok(*number as f64),
                Cel::UInt(number) => Ok(*number as f64),
                _ => Err(bad()),
            };
            Ok(Cel::Double(items.iter().map(number).sum::<Result<f64, _>>()?))
        }),
        declare("min", 1, true, |args| extreme(list(&args[0])?, Ordering::Less, "min")),
        declare("max", 1, true, |args| extreme(list(&args[0])?, Ordering::Greater, "max")),
        declare("indexOf", 2, true, |args| {
            list(&args[0])?;
            Ok(Cel::Int(position(args).unwrap_or(-1)))
        }),
        declare("lastIndexOf", 2, true, |args| {
            let found = list(&args[0])?.iter().rposition(|item| *item == args[1]);
            Ok(Cel::Int(found.map_or(-1, |at| at as i64)))
        }),
        declare("flatten", 1, true, |args| Ok(Cel::List(flat(list(&args[0])?, 1).into()))),
        declare("flatten", 2, true, |args| match &args[1] {
            Cel::Int(depth) if *depth >= 0 => Ok(Cel::List(flat(list(&args[0])?, *depth).into())),
            Cel::Int(_) => Err(wrong("level must be non-negative")),
            _ => Err(bad()),
        }),
        declare("reverse", 1, true, |args| Ok(Cel::List(list(&args[0])?.iter().rev().cloned().collect()))),
        declare("slice", 3, true, slice),
        declare("lists.range", 1, false, |args| match &args[0] {
            Cel::Int(count) => Ok(Cel::List((0..*count).map(Cel::Int).collect())),
            _ => Err(bad()),
        }),
        declare("distinct", 1, true, |args| {
            let mut out: Vec<Cel> = Vec::new();
            for item in list(&args[0])? {
                if !out.contains(item) {
                    out.push(item.clone());
                }
            }
            Ok(Cel::List(out.into()))
        }),
        declare("sort", 1, true, |args| {
            let mut items = list(&args[0])?.to_vec();
            items.sort_by(compare);
            Ok(Cel::List(items.into()))
        }),
        declare(super::macros::SORT, 2, true, |args| {
            let (items, keys) = (list(&args[0])?, list(&args[1])?);
            let mut both: Vec<(&Cel, &Cel)> = keys.iter().zip(items).collect();
            both.sort_by(|(one, _), (other, _)| compare(one, other));
            Ok(Cel::List(both.into_iter().map(|(_, item)| item.clone()).collect()))
        }),
        declare("first", 1, true, |args| Ok(super::optional(list(&args[0])?.first().cloned()))),
        declare("last", 1, true, |args| Ok(super::optional(list(&args[0])?.last().cloned()))),
        declare("unwrapOpt", 1, true, unwrapped),
        declare("optional.unwrap", 1, false, unwrapped),
    ]
}

fn sets() -> Vec<FunctionDecl> {
    vec![
        declare("sets.contains", 2, false, |args| {
            let (all, wanted) = (list(&args[0])?, list(&args[1])?);
            Ok(Cel::Bool(wanted.iter().all(|item| all.contains(item))))
        }),
        declare("sets.equivalent", 2, false, |args| {
            let (a, b) = (list(&args[0])?, list(&args[1])?);
            Ok(Cel::Bool(a.iter().all(|item| b.contains(item)) && b.iter().all(|item| a.contains(item))))
        }),
        declare("sets.intersects", 2, false, |args| {
            let (a, b) = (list(&args[0])?, list(&args[1])?);
            Ok(Cel::Bool(a.iter().any(|item| b.contains(item))))
        }),
    ]
}

fn pattern(value: &Cel) -> Result<Regex, EvalError> {
    patterns::compiled(text(value)?)
}

fn regexes() -> Vec<FunctionDecl> {
    fn find_all(args: &[Cel], limit: usize) -> Outcome {
        let (subject, pattern) = (text(&args[0])?, pattern(&args[1])?);
        Ok(Cel::List(pattern.find_iter(subject).take(limit).map(|found| cel(found.as_str())).collect()))
    }
    vec![
        declare("find", 2, true, |args| {
            let (subject, pattern) = (text(&args[0])?, pattern(&args[1])?);
            Ok(cel(pattern.find(subject).map_or("", |found| found.as_str())))
        }),
        declare("findAll", 2, true, |args| find_all(args, usize::MAX)),
        declare("findAll", 3, true, |args| match &args[2] {
            Cel::Int(limit) => find_all(args, usize::try_from(*limit).unwrap_or(usize::MAX)),
            _ => Err(bad()),
        }),
    ]
}

pub fn parse_url(text: &str) -> Option<Uri> {
    let absolute = text.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty());
    let uri: Uri = text.parse().ok()?;
    (absolute || text.starts_with('/')).then_some(uri)
}

fn url(value: &Cel) -> Result<(&str, &Uri), EvalError> {
    match Opaque::of(value) {
        Some(Opaque::Url(text, uri)) => Ok((text, uri)),
        _ => Err(bad()),
    }
}

fn urls() -> Vec<FunctionDecl> {
    vec![
        declare("url", 1, false, |args| {
            let text = text(&args[0])?;
            let uri = parse_url(text).ok_or_else(|| {
                wrong(format!(
                    "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
                ))
            })?;
            Ok(Opaque::Url(text.to_owned(), uri).into_cel())
        }),
        declare("isURL", 1, false, |args| Ok(Cel::Bool(parse_url(text(&args[0])?).is_some()))),
        declare("getScheme", 1, true, |args| Ok(cel(url(&args[0])?.1.scheme_str().unwrap_or_default()))),
        declare("getHost", 1, true, |args| {
            let authority = url(&args[0])?.1.authority().map_or("", |authority| authority.as_str());
            Ok(cel(authority.rsplit('@').next().unwrap_or_default()))
        }),
        declare("getHostname", 1, true, |args| {
            Ok(cel(url(&args[0])?.1.host().unwrap_or_default().trim_matches(['[', ']'])))
        }),
        declare("getPort", 1, true, |args| {
            Ok(cel(url(&args[0])?.1.port().map_or(String::new(), |port| port.to_string())))
        }),
        declare("getEscapedPath", 1, true, |args| {
            let (written, uri) = url(&args[0])?;
            let path = uri.path();
            let bare = path == "/" && !written.split('?').next().unwrap_or_default().ends_with('/');
            Ok(cel(if bare { "" } else { path }))
        }),
        declare("getQuery", 1, true, |args| {
            let query = url(&args[0])?.1.query().unwrap_or_default();
            let mut pairs: Vec<(String, Vec<Cel>)> = Vec::new();
            for (key, value) in form_urlencoded::parse(query.as_bytes()) {
                match pairs.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, values)) => values.push(cel(value)),
                    None => pairs.push((key.into_owned(), vec![cel(value)])),
                }
            }
            Ok(Cel::map(pairs.into_iter().map(|(key, values)| (key, Cel::List(values.into())))))
        }),
    ]
}

fn quantity(value: &Cel) -> Result<&Quantity, EvalError> {
    match Opaque::of(value) {
        Some(Opaque::Quantity(quantity)) => Ok(quantity),
        _ => Err(bad()),
    }
}

fn other_quantity(value: &Cel) -> Result<Quantity, EvalError> {
    match value {
        Cel::Int(number) => number.to_string().parse().map_err(|_| bad()),
        value => quantity(value).copied(),
    }
}

/// The order of two quantities, or of two versions.
fn order(args: &[Cel]) -> Result<Ordering, EvalError> {
    match (Opaque::of(&args[0]), Opaque::of(&args[1])) {
        (Some(Opaque::Semver(one)), Some(Opaque::Semver(other))) => Ok(one.compare(other)),
        _ => Ok(quantity(&args[0])?.cmp(&other_quantity(&args[1])?)),
    }
}

fn quantities() -> Vec<FunctionDecl> {
    fn parse(value: &Cel) -> Result<Option<Quantity>, EvalError> {
        Ok(text(value)?.parse().ok())
    }
    vec![
        declare("quantity", 1, false, |args| {
            let parsed = parse(&args[0])?;
            let why = || {
                wrong(
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                )
            };
            Ok(Opaque::Quantity(parsed.ok_or_else(why)?).into_cel())
        }),
        declare("isQuantity", 1, false, |args| Ok(Cel::Bool(parse(&args[0])?.is_some()))),
        declare("isInteger", 1, true, |args| Ok(Cel::Bool(quantity(&args[0])?.as_f64().fract() == 0.0))),
        declare("asInteger", 1, true, |args| {
            let number = quantity(&args[0])?.as_f64();
            match number.fract() == 0.0 && number.abs() < i64::MAX as f64 {
                true => Ok(Cel::Int(number as i64)),
                false => Err(wrong("cannot convert value to integer")),
            }
        }),
        declare("asApproximateFloat", 1, true, |args| Ok(Cel::Double(quantity(&args[0])?.as_f64()))),
        declare("sign", 1, true, |args| {
            let number = quantity(&args[0])?.as_f64();
            Ok(Cel::Int(if number == 0.0 { 0 } else { number.signum() as i64 }))
        }),
        declare("isGreaterThan", 2, true, |args| Ok(Cel::Bool(order(args)? == Ordering::Greater))),
        declare("isLessThan", 2, true, |args| Ok(Cel::Bool(order(args)? == Ordering::Less))),
        declare("compareTo", 2, true, |args| Ok(Cel::Int(order(args)? as i64))),
        declare("add", 2, true, |args| {
            let sum = *quantity(&args[0])? + other_quantity(&args[1])?;
            Ok(Opaque::Quantity(sum).into_cel())
        }),
        declare("sub", 2, true, |args| {
            let difference = *quantity(&args[0])? - other_quantity(&args[1])?;
            Ok(Opaque::Quantity(difference).into_cel())
        }),
    ]
}

fn address(value: &Cel) -> Result<IpAddr, EvalError> {
    match (value, Opaque::of(value)) {
        (_, Some(Opaque::Ip(address))) => Ok(*address),
        (Cel::String(text), _) => text
            .parse()
            .map_err(|_| wrong(format!("IP Address {text:?} parse error during conversion from string"))),
        _ => Err(bad()),
    }
}

fn network(value: &Cel) -> Result<Cidr, EvalError> {
    match (value, Opaque::of(value)) {
        (_, Some(Opaque::Cidr(network))) => Ok(*network),
        (Cel::String(text), _) => Cidr::parse(text).ok_or_else(|| {
            wrong(format!("network address parse error during conversion from string: {text:?}"))
        }),
        _ => Err(bad()),
    }
}

/// A method on an address.
fn of_address(name: &str, run: fn(&[Cel]) -> Outcome) -> FunctionDecl {
    declare(name, 1, true, run)
}

fn networks() -> Vec<FunctionDecl> {
    vec![
        declare("ip", 1, false, |args| Ok(Opaque::Ip(address(&args[0])?).into_cel())),
        declare("isIP", 1, false, |args| Ok(Cel::Bool(text(&args[0])?.parse::<IpAddr>().is_ok()))),
        declare("ip.isCanonical", 1, false, |args| {
            Ok(Cel::Bool(address(&args[0])?.to_string() == text(&args[0])?))
        }),
        of_address("family", |args| Ok(Cel::Int(if address(&args[0])?.is_ipv4() { 4 } else { 6 }))),
        of_address("isUnspecified", |args| Ok(Cel::Bool(address(&args[0])?.is_unspecified()))),
        of_address("isLoopback", |args| Ok(Cel::Bool(address(&args[0])?.is_loopback()))),
        of_address("isLinkLocalMulticast", |args| {
            Ok(Cel::Bool(match address(&args[0])? {
                IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
                IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
            }))
        }),
        of_address("isLinkLocalUnicast", |args| {
            Ok(Cel::Bool(match address(&args[0])? {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            }))
        }),
        of_address("isGlobalUnicast", |args| {
            let address = address(&args[0])?;
            let local = match address {
                IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
            Ok(Cel::Bool(!local && !special))
        }),
        declare("cidr", 1, false, |args| Ok(Opaque::Cidr(network(&args[0])?).into_cel())),
        declare("isCIDR", 1, false, |args| Ok(Cel::Bool(Cidr::parse(text(&args[0])?).is_some()))),
        declare("containsIP", 2, true, |args| Ok(Cel::Bool(network(&args[0])?.contains(address(&args[1])?)))),
        declare("containsCIDR", 2, true, |args| {
            let (outer, inner) = (network(&args[0])?, network(&args[1])?);
            Ok(Cel::Bool(outer.1 <= inner.1 && outer.contains(inner.0)))
        }),
        declare("ip", 1, true, |args| Ok(Opaque::Ip(network(&args[0])?.0).into_cel())),
        declare("masked", 1, true, |args| Ok(Opaque::Cidr(network(&args[0])?.masked()).into_cel())),
        declare("prefixLength", 1, true, |args| Ok(Cel::Int(i64::from(network(&args[0])?.1)))),
        // Declaring the function for addresses takes the place of CEL's own conversion.
        declare("string", 1, false, |args| match (&args[0], Opaque::of(&args[0])) {
            (_, Some(Opaque::Ip(address))) => Ok(cel(address.to_string())),
            (_, Some(Opaque::Cidr(Cidr(address, length)))) => Ok(cel(format!("{address}/{length}"))),
            (Cel::String(text), _) => Ok(Cel::String(text.clone())),
            (Cel::Int(number), _) => Ok(cel(number.to_string())),
            (Cel::UInt(number), _) => Ok(cel(number.to_string())),
            (Cel::Double(number), _) => Ok(cel(number.to_string())),
            (Cel::Bool(flag), _) => Ok(cel(flag.to_string())),
            (Cel::Bytes(bytes), _) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(cel(text)),
                Err(_) => Err(wrong("invalid UTF-8 in bytes, cannot convert to string")),
            },
            (Cel::Timestamp(time), _) => Ok(cel(cel_core::time::format_timestamp(time))),
            (Cel::Duration(duration), _) => Ok(cel(cel_core::time::format_duration(duration))),
            _ => Err(bad()),
        }),
    ]
}

/// A method of the authorizer that fills one of its fields.
fn fills(name: &str, run: fn(&[Cel]) -> Outcome) -> FunctionDecl {
    declare(name, 2, true, run)
}

fn fill(args: &[Cel], set: impl Fn(&mut Authorizer, String)) -> Outcome {
    let Some(Opaque::Authorizer(asked)) = Opaque::of(&args[0]) else { return Err(bad()) };
    let mut asked = asked.clone();
    set(&mut asked, text(&args[1])?.to_owned());
    Ok(asked.into_cel())
}

fn authorizers() -> Vec<FunctionDecl> {
    vec![
        fills("path", |args| fill(args, |asked, value| asked.path = value)),
        fills("group", |args| fill(args, |asked, value| asked.group = value)),
        fills("resource", |args| fill(args, |asked, value| asked.resource = value)),
        fills("subresource", |args| fill(args, |asked, value| asked.subresource = value)),
        fills("namespace", |args| fill(args, |asked, value| asked.namespace = value)),
        fills("name", |args| fill(args, |asked, value| asked.name = value)),
        fills("fieldSelector", |args| fill(args, |asked, value| asked.field_selector = value)),
        // Nobody who decides looks at labels.
        fills("labelSelector", |args| fill(args, |_, _| {})),
        declare("serviceAccount", 3, true, |args| {
            let Some(Opaque::Authorizer(asked)) = Opaque::of(&args[0]) else { return Err(bad()) };
            let mut asked = asked.clone();
            asked.account = Some((text(&args[1])?.to_owned(), text(&args[2])?.to_owned()));
            Ok(asked.into_cel())
        }),
        fills("check", |args| {
            let Some(Opaque::Authorizer(asked)) = Opaque::of(&args[0]) else { return Err(bad()) };
            let mut asked = asked.clone();
            asked.verb = text(&args[1])?.to_owned();
            Ok(asked.check().into_cel())
        }),
        declare("allowed", 1, true, |args| match Opaque::of(&args[0]) {
            Some(Opaque::Decision(allowed, _)) => Ok(Cel::Bool(*allowed)),
            _ => Err(bad()),
        }),
        declare("reason", 1, true, |args| match Opaque::of(&args[0]) {
            Some(Opaque::Decision(_, reason)) => Ok(cel(reason)),
            _ => Err(bad()),
        }),
        declare("errored", 1, true, |_| Ok(Cel::Bool(false))),
        declare("error", 1, true, |_| Ok(cel(""))),
    ]
}
