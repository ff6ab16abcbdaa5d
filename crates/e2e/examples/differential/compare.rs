//! What counts as equal, and the report.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use coxswain_testkit::Response;
use regex::Regex;
use serde_json::Value;

/// Differences that are meant, `<text that the question or difference contains>: <reason>` a line.
const KNOWN: &str = include_str!("known.txt");

/// An answer.
pub struct Answer {
    pub code: u16,
    pub body: Value,
}

impl Answer {
    pub fn of(response: Response) -> Self {
        let text = || Value::from(response.text());
        Self { code: response.code, body: serde_json::from_slice(&response.body).unwrap_or_else(|_| text()) }
    }

    /// The answer without what is random or counts in the texts of a refusal: messages may show whole objects.
    fn neutral(&self) -> Self {
        let body = if self.body["kind"] == "Status" { neutral(&self.body) } else { self.body.clone() };
        Self { code: self.code, body }
    }
}

/// Identities, times, versions and addresses in a text, however often its quotes are escaped.
static OWN_IN_TEXT: LazyLock<Regex> = LazyLock::new(|| {
    let parts = [
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
        r#"resourceVersion[\\":]+\d+"#,
        r"10\.43\.\d+\.\d+",
        "kube-api-access-[a-z0-9]{5}",
    ];
    Regex::new(&parts.join("|")).expect("a fixed expression")
});

fn neutral(value: &Value) -> Value {
    match value {
        Value::String(text) => OWN_IN_TEXT.replace_all(text, "<own>").into_owned().into(),
        Value::Array(items) => items.iter().map(neutral).collect(),
        Value::Object(map) => map.iter().map(|(key, inner)| (key.clone(), neutral(inner))).collect(),
        other => other.clone(),
    }
}

/// What was asked.
pub struct Question {
    pub kind: String,
    pub what: String,
}

#[derive(Default)]
struct Count {
    asked: usize,
    equal: usize,
    known: usize,
}

/// What came out.
#[derive(Default)]
pub struct Report {
    kinds: BTreeMap<String, (Count, Vec<String>)>,
}

impl Report {
    /// Compares two answers.
    pub fn add(&mut self, question: Question, ours: &Answer, theirs: &Answer) {
        if theirs.code == 0 {
            return;
        }
        let (count, differences) = self.kinds.entry(question.kind.clone()).or_default();
        count.asked += 1;
        let found = differences_of(ours, theirs);
        if found.is_empty() {
            count.equal += 1;
            return;
        }
        let text = format!("{}: {}\n{found}", question.kind, question.what);
        match known(&text) {
            Some(reason) => {
                count.known += 1;
                differences.push(format!("{text}  known: {reason}\n"));
            }
            None => differences.push(text),
        }
    }

    /// Prints the differences (into a file where one is given) and the shares.
    pub fn print(&self, file: Option<&Path>) -> anyhow::Result<()> {
        let mut out = String::new();
        for (_, differences) in self.kinds.values() {
            differences.iter().for_each(|text| out.push_str(text));
        }
        match file {
            Some(file) => std::fs::write(file, &out)?,
            None => print!("{out}"),
        }
        let mut all = Count::default();
        let mut table = String::new();
        for (kind, (count, _)) in &self.kinds {
            let share = 100.0 * count.equal as f64 / count.asked as f64;
            writeln!(
                table,
                "{kind:36} {:5} of {:5} equal ({share:5.1} %), {} known",
                count.equal, count.asked, count.known
            )?;
            all.asked += count.asked;
            all.equal += count.equal;
            all.known += count.known;
        }
        print!("{table}");
        println!(
            "{} of {} equal: {:.2} %; {} more are known and have a reason",
            all.equal,
            all.asked,
            100.0 * all.equal as f64 / all.asked.max(1) as f64,
            all.known
        );
        Ok(())
    }
}

fn known(text: &str) -> Option<&'static str> {
    let rules =
        KNOWN.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" => "));
    rules.filter(|(part, _)| text.contains(part)).map(|(_, reason)| reason).next()
}

fn differences_of(ours: &Answer, theirs: &Answer) -> String {
    let mut out = String::new();
    let mut differ = |what: &str, a: &Value, b: &Value| {
        if a != b {
            // Infallible: a String takes all.
            let _ = writeln!(out, "    {what}\n      ours   {}\n      theirs {}", short(a), short(b));
        }
    };
    let (ours, theirs) = (&ours.neutral(), &theirs.neutral());
    differ("code", &ours.code.into(), &theirs.code.into());
    if theirs.body["kind"] == "Status" || ours.body["kind"] == "Status" {
        differ("reason", &ours.body["reason"], &theirs.body["reason"]);
        let (a, b) = (causes(&ours.body), causes(&theirs.body));
        for cause in a.iter().filter(|cause| !b.contains(cause)) {
            differ("cause", &cause.as_str().into(), &Value::Null);
        }
        for cause in b.iter().filter(|cause| !a.contains(cause)) {
            differ("cause", &Value::Null, &cause.as_str().into());
        }
        if a.is_empty() && b.is_empty() {
            differ("message", &ours.body["message"], &theirs.body["message"]);
        }
        return out;
    }
    walk("", &stable(&ours.body), &stable(&theirs.body), &mut differ);
    out
}

/// Every cause's field and message, sorted: upstream walks maps in any order.
fn causes(status: &Value) -> Vec<String> {
    let list = status["details"]["causes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out: Vec<String> =
        list.map(|c| format!("{}: {}", text(&c["field"]), text(&c["message"]))).collect();
    out.sort();
    out
}

/// What every server says in its own way.
const OWN: &[&str] = &[
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "continue",
    "lastTransitionTime",
    "lastPhaseTransitionTime",
];

/// Node ports in a table, which both servers choose at random.
static NODE_PORT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r":3[0-2]\d{3}/").expect("a fixed expression"));

/// The cell of a table without what differs from one server to the other.
fn cell(value: &Value) -> Value {
    match neutral(&stable(value)) {
        Value::String(text) => NODE_PORT.replace_all(&text, ":<own>/").into_owned().into(),
        other => other,
    }
}

/// An object without what differs from one server to the other.
fn stable(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            // Columns are described in other words.
            .filter(|(key, _)| *key != "description" || !map.contains_key("priority"))
            .filter(|(key, _)| !OWN.contains(&key.as_str()))
            .map(|(key, inner)| match (key.as_str(), inner) {
                ("cells", Value::Array(cells)) => (key.clone(), cells.iter().map(cell).collect()),
                _ => (key.clone(), stable(inner)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(stable).collect(),
        Value::String(text) if is_age(text) => "<age>".into(),
        Value::String(text) if text.starts_with("10.43.") => "<address>".into(),
        Value::String(text) if is_uid(text) => "<uid>".into(),
        Value::String(text) if text.starts_with("kube-api-access-") => "<volume of the token>".into(),
        other => other.clone(),
    }
}

fn is_uid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn is_age(text: &str) -> bool {
    text.strip_suffix('s')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit() || b == b'm'))
}

fn walk(at: &str, a: &Value, b: &Value, differ: &mut impl FnMut(&str, &Value, &Value)) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys().filter(|key| !x.contains_key(*key))) {
                // Both servers choose node ports at random.
                if key == "nodePort" && x.contains_key(key) && y.contains_key(key) {
                    continue;
                }
                let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                walk(&format!("{at}.{key}"), &get(x), &get(y), differ);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (a, b)) in x.iter().zip(y).enumerate() {
                walk(&format!("{at}[{i}]"), a, b, differ);
            }
        }
        _ => differ(at, a, b),
    }
}

fn short(value: &Value) -> String {
    const LONGEST: usize = 6000;
    let text = value.to_string();
    if text.chars().count() > LONGEST {
        text.chars().take(LONGEST).chain("…".chars()).collect()
    } else {
        text
    }
}
