//! Kubernetes' functions of named formats and of semantic versions.

use std::cmp::Ordering;

use cel_core::{EvalError, FunctionDecl, Value as Cel};
use coxswain_meta::{names, structural};

use super::library::{Outcome, bad, cel, declare, text, wrong};
use super::opaque::Opaque;
use super::optional;

/// The formats by their names.
const FORMATS: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// What keeps a text from being of a format.
fn faults(format: &str, text: &str) -> Vec<String> {
    let prefix = names::mask_trailing_dash(text);
    let plain = |why: &str| match structural::is_format(format, text) {
        true => Vec::new(),
        false => vec![why.to_owned()],
    };
    match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns1123_label(&prefix),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&prefix),
        "dns1035LabelPrefix" => names::dns1035_label(&prefix),
        "labelValue" => names::label_value(text),
        "uuid" => plain("does not match the UUID format"),
        "byte" => plain("invalid base64"),
        "date" => plain("invalid date"),
        "datetime" => plain("invalid datetime"),
        _ => match super::library::parse_url(text) {
            Some(_) => Vec::new(),
            None => vec![format!("parse {text:?}: invalid URI for request")],
        },
    }
}

/// What the regular expression of a format costs, as upstream reckons its length.
pub fn pattern_cost(format: &str) -> u64 {
    match format {
        "dns1123Label" | "dns1035Label" | "dns1123LabelPrefix" | "dns1035LabelPrefix" => 8,
        "dns1123Subdomain" | "qualifiedName" | "dns1123SubdomainPrefix" => 15,
        "labelValue" => 10,
        "uuid" | "date" | "datetime" => 18,
        "byte" => 21,
        _ => 276,
    }
}

/// A format of this name.
macro_rules! format_of {
    ($($at:literal)*) => {
        vec![$(declare(&format!("format.{}", FORMATS[$at]), 0, false, |_| Ok(Opaque::Format(FORMATS[$at]).into_cel()))),*]
    };
}

/// Every function.
pub fn functions() -> Vec<FunctionDecl> {
    let mut functions = format_of!(0 1 2 3 4 5 6 7 8 9 10 11 12);
    functions.extend([
        declare("format.named", 1, false, |args| {
            let wanted = text(&args[0])?;
            let found = FORMATS.iter().find(|name| **name == wanted);
            Ok(optional(found.map(|name| Opaque::Format(name).into_cel())))
        }),
        declare("validate", 2, true, |args| {
            let Some(Opaque::Format(format)) = Opaque::of(&args[0]) else { return Err(bad()) };
            let faults = faults(format, text(&args[1])?);
            let told = (!faults.is_empty()).then(|| Cel::List(faults.iter().map(cel).collect()));
            Ok(optional(told))
        }),
        declare("semver", 1, false, |args| read(&args[0], false)),
        declare("semver", 2, false, |args| read(&args[0], truth(&args[1])?)),
        declare("isSemver", 1, false, |args| Ok(Cel::Bool(Semver::parse(text(&args[0])?, false).is_some()))),
        declare("isSemver", 2, false, |args| {
            Ok(Cel::Bool(Semver::parse(text(&args[0])?, truth(&args[1])?).is_some()))
        }),
        declare("major", 1, true, |args| number(&args[0], 0)),
        declare("minor", 1, true, |args| number(&args[0], 1)),
        declare("patch", 1, true, |args| number(&args[0], 2)),
    ]);
    functions
}

fn truth(value: &Cel) -> Result<bool, EvalError> {
    match value {
        Cel::Bool(truth) => Ok(*truth),
        _ => Err(bad()),
    }
}

fn read(value: &Cel, normalize: bool) -> Outcome {
    let text = text(value)?;
    let version = Semver::parse(text, normalize);
    version
        .map(|version| Opaque::Semver(version).into_cel())
        .ok_or_else(|| wrong("No Major.Minor.Patch elements found"))
}

fn number(value: &Cel, at: usize) -> Outcome {
    match Opaque::of(value) {
        Some(Opaque::Semver(version)) => Ok(Cel::Int(i64::try_from(version.numbers[at]).unwrap_or(i64::MAX))),
        _ => Err(bad()),
    }
}

/// A semantic version, without what says how it was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    /// Major, minor and patch.
    numbers: [u64; 3],
    before: Vec<Part>,
}

/// A part of what comes before a release: numbers before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl Semver {
    /// Reads a version; normalized, it may begin with `v`, be short, and have zeros in front.
    fn parse(text: &str, normalize: bool) -> Option<Self> {
        match normalize {
            true => Self::strict(&normalized(text)?),
            false => Self::strict(text),
        }
    }

    fn strict(text: &str) -> Option<Self> {
        let identifiers = |text: &str| {
            let is_part =
                |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            text.split('.').all(is_part)
        };
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (release, before) = rest.split_once('-').map_or((rest, None), |(rest, pre)| (rest, Some(pre)));
        if ![build, before].into_iter().flatten().all(identifiers) {
            return None;
        }
        let mut parts = release.split('.');
        let mut next = || parts.next().and_then(whole);
        let numbers = [next()?, next()?, next()?];
        let before = before.into_iter().flat_map(|before| before.split('.')).map(|part| {
            match part.bytes().all(|b| b.is_ascii_digit()) {
                true => whole(part).map(Part::Number),
                false => Some(Part::Word(part.to_owned())),
            }
        });
        let before = before.collect::<Option<_>>()?;
        parts.next().is_none().then_some(Self { numbers, before })
    }

    /// Which comes first.
    pub fn compare(&self, other: &Self) -> Ordering {
        let released = self.before.is_empty().cmp(&other.before.is_empty());
        self.numbers.cmp(&other.numbers).then(released).then_with(|| self.before.cmp(&other.before))
    }
}

/// A number without zeros in front.
fn whole(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if digits { text.parse().ok() } else { None }
}

fn normalized(text: &str) -> Option<String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text
        .splitn(3, '.')
        .map(|part| match part.trim_start_matches('0') {
            _ if part.len() < 2 => part.to_owned(),
            rest if rest.starts_with(|c: char| c.is_ascii_digit()) => rest.to_owned(),
            rest => format!("0{rest}"),
        })
        .collect();
    if parts.len() < 3 && parts.last()?.contains(['+', '-']) {
        return None;
    }
    parts.resize(3, "0".to_owned());
    Some(parts.join("."))
}
