//! Histories of concurrent clients, and whether they are linearizable.
//!
//! What the watch tells is the order that the store claims: every write has its revision there. A history agrees with it when
//! every acknowledged write stands at its revision, once, and its comparison held there; when what was refused stands nowhere;
//! and when each operation can be given a moment between its call and its answer at which the state was what it saw.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

/// What a client asked. `expect` is the revision that has to be there, `0` for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Put { expect: u64, value: String },
    Delete { expect: u64 },
    Get,
    List,
}

/// What it was told. Revision `0` stands for absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, or that nobody knows.
    Unknown,
    Written(u64),
    /// The comparison failed; what is there.
    Refused(u64),
    Found(u64),
    /// The revision of the list, and what is in it.
    Listed(u64, BTreeMap<String, u64>),
}

/// One operation; times are places in the history.
#[derive(Clone, Debug)]
pub struct Operation {
    pub called: usize,
    pub answered: usize,
    pub key: String,
    pub call: Call,
    pub answer: Answer,
}

/// One event of the watch: a revision, its key, and the value or a deletion.
pub type Written = (u64, String, Option<String>);

/// The line for a call.
pub fn call_line(id: &str, key: &str, call: &Call) -> String {
    match call {
        Call::Put { expect, value } => format!("call {id} {key} put {expect} {value}"),
        Call::Delete { expect } => format!("call {id} {key} delete {expect}"),
        Call::Get => format!("call {id} {key} get"),
        Call::List => format!("call {id} {key} list"),
    }
}

/// The line for an answer.
pub fn answer_line(id: &str, answer: &Answer) -> String {
    match answer {
        Answer::Unknown => format!("answer {id} unknown"),
        Answer::Written(revision) => format!("answer {id} written {revision}"),
        Answer::Refused(revision) => format!("answer {id} refused {revision}"),
        Answer::Found(revision) => format!("answer {id} found {revision}"),
        Answer::Listed(revision, objects) => {
            let mut line = format!("answer {id} listed {revision}");
            objects.iter().for_each(|(name, at)| write!(line, " {name}={at}").unwrap());
            line
        }
    }
}

/// Reads the lines of a history. A line that was cut off by a crash is not there.
pub fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    let mut by_id: HashMap<String, usize> = HashMap::new();
    for (time, line) in lines.enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match (words[0], words.get(3).copied(), words.get(2).copied()) {
            ("call", Some(what), Some(key)) => {
                let call = match what {
                    "put" => Call::Put { expect: number(4).unwrap(), value: words[5].to_owned() },
                    "delete" => Call::Delete { expect: number(4).unwrap() },
                    "get" => Call::Get,
                    _ => Call::List,
                };
                by_id.insert(words[1].to_owned(), operations.len());
                let (key, answer) = (key.to_owned(), Answer::Unknown);
                operations.push(Operation { called: time, answered: usize::MAX, key, call, answer });
            }
            ("answer", _, Some(what)) => {
                let operation = &mut operations[by_id[words[1]]];
                let revision = number(3).unwrap_or_default();
                operation.answer = match what {
                    "written" => Answer::Written(revision),
                    "refused" => Answer::Refused(revision),
                    "found" => Answer::Found(revision),
                    "listed" => {
                        let pairs = words[4..].iter().filter_map(|word| word.split_once('='));
                        Answer::Listed(
                            revision,
                            pairs.map(|(name, at)| (name.to_owned(), at.parse().unwrap())).collect(),
                        )
                    }
                    _ => Answer::Unknown,
                };
                if operation.answer != Answer::Unknown {
                    operation.answered = time;
                }
            }
            _ => {}
        }
    }
    operations
}

/// Checks a history against what was written in the end; says what is wrong with it.
pub fn check(operations: &[Operation], written: &[Written]) -> Result<(), String> {
    if let Some(at) = (1..).zip(written).position(|(dense, (revision, ..))| dense != *revision) {
        return Err(format!("revisions are not dense at {:?}", written[at]));
    }
    let by_value: HashMap<&str, u64> =
        written.iter().filter_map(|(revision, _, value)| Some((value.as_deref()?, *revision))).collect();
    let puts = written.iter().filter(|(.., value)| value.is_some()).count();
    if by_value.len() != puts {
        return Err("a write happened twice".to_owned());
    }
    writes_stand(operations, written, &by_value)?;
    moments_exist(operations, &States::new(written))
}

/// The states of every key, by revision.
struct States(HashMap<String, Vec<(u64, u64)>>);

impl States {
    fn new(written: &[Written]) -> Self {
        let mut states: HashMap<String, Vec<(u64, u64)>> = HashMap::new();
        for (revision, key, value) in written {
            let now = if value.is_some() { *revision } else { 0 };
            states.entry(key.clone()).or_insert_with(|| vec![(0, 0)]).push((*revision, now));
        }
        Self(states)
    }

    fn of(&self, key: &str) -> &[(u64, u64)] {
        self.0.get(key).map_or(&[(0, 0)], Vec::as_slice)
    }

    /// What a key held at a moment.
    fn at(&self, key: &str, moment: u64) -> u64 {
        self.of(key).iter().take_while(|(since, _)| *since <= moment).last().map_or(0, |(_, state)| *state)
    }

    /// The first moment, from one on, at which a key held something.
    fn next(&self, key: &str, from: u64, state: u64) -> Option<u64> {
        if self.at(key, from) == state {
            return Some(from);
        }
        self.of(key).iter().find(|(since, now)| *since > from && *now == state).map(|(since, _)| *since)
    }
}

/// Every acknowledged write stands where it was said to, its comparison held, and what was refused stands nowhere.
fn writes_stand(
    operations: &[Operation],
    written: &[Written],
    by_value: &HashMap<&str, u64>,
) -> Result<(), String> {
    let states = States::new(written);
    let mut accounted = HashSet::new();
    for operation in operations {
        let (expect, value) = match &operation.call {
            Call::Put { expect, value } => (*expect, Some(value.clone())),
            Call::Delete { expect } => (*expect, None),
            Call::Get | Call::List => continue,
        };
        let stands = match (&operation.answer, &value) {
            (Answer::Written(revision), _) => Some(*revision),
            (_, Some(value)) => by_value.get(value.as_str()).copied(),
            // A deletion without an answer is found by what it deletes.
            (Answer::Unknown, None) => written
                .iter()
                .find(|(at, key, value)| {
                    *key == operation.key && value.is_none() && states.at(key, at - 1) == expect
                })
                .map(|(at, ..)| *at),
            (_, None) => None,
        };
        let Some(revision) = stands else { continue };
        if matches!(operation.answer, Answer::Refused(_)) {
            return Err(format!("refused, but written at {revision}: {operation:?}"));
        }
        let event = written.get(revision as usize - 1);
        if event != Some(&(revision, operation.key.clone(), value)) {
            return Err(format!("acknowledged and lost: {operation:?}; there is {event:?}"));
        }
        if states.at(&operation.key, revision - 1) != expect {
            return Err(format!("the comparison did not hold: {operation:?}"));
        }
        accounted.insert(revision);
    }
    match written.iter().find(|(revision, ..)| !accounted.contains(revision)) {
        Some(event) => Err(format!("nobody wrote {event:?}")),
        None => Ok(()),
    }
}

/// Each operation can have happened at a moment between its call and its answer: not before what was over when it was called,
/// and not after what was called when it was over. Giving each the earliest moment leaves most room to the others.
fn moments_exist(operations: &[Operation], states: &States) -> Result<(), String> {
    let mut by_call: Vec<&Operation> =
        operations.iter().filter(|operation| operation.answer != Answer::Unknown).collect();
    by_call.sort_by_key(|operation| operation.called);
    // Moments of what is over, in the order of answers: the greatest so far.
    let mut over: BTreeMap<usize, u64> = BTreeMap::new();
    let mut moments = Vec::new();
    for operation in by_call {
        let earliest = over.range(..operation.called).map(|(_, moment)| *moment).max().unwrap_or(0);
        let key = &operation.key;
        let moment = match &operation.answer {
            Answer::Written(revision) => (*revision >= earliest).then_some(*revision),
            Answer::Found(state) | Answer::Refused(state) => states.next(key, earliest, *state),
            Answer::Listed(revision, objects) => {
                let agrees = states
                    .0
                    .keys()
                    .all(|key| states.at(key, *revision) == objects.get(key).copied().unwrap_or(0));
                (agrees && *revision >= earliest).then_some(*revision)
            }
            Answer::Unknown => continue,
        };
        let Some(moment) = moment else {
            return Err(format!("it saw what was not there from {earliest} on: {operation:?}"));
        };
        over.insert(operation.answered, moment);
        moments.push((operation, moment));
    }
    // Writes called after an operation was over are not what it saw.
    for (operation, moment) in &moments {
        let later = moments.iter().filter(|(other, at)| {
            other.called > operation.answered && matches!(other.answer, Answer::Written(_)) && *at <= *moment
        });
        if let Some((other, _)) = later.clone().find(|(other, _)| other.called != operation.called) {
            return Err(format!("{operation:?} saw what was written after it: {other:?}"));
        }
    }
    Ok(())
}

fn judged(lines: &str, written: &[(u64, &str, Option<&str>)]) -> Result<(), String> {
    let written: Vec<Written> =
        written.iter().map(|(at, key, value)| (*at, (*key).to_owned(), value.map(str::to_owned))).collect();
    check(&parse(lines.lines().map(str::trim)), &written)
}

#[test]
fn a_history_that_is_none_is_told() {
    let written = [(1, "k", Some("one")), (2, "k", Some("two")), (3, "k", None)];
    let good = "call a k put 0 one
        call b k get
        answer a written 1
        answer b found 0
        call c k put 1 two
        call d k delete 2
        answer d written 3
        call e k get
        answer e found 0
        call f k list
        answer f listed 3";
    assert_eq!(judged(good, &written), Ok(()), "what has no answer may have happened");
    let refuted = |lines: &str, why: &str| {
        let error = judged(lines, &written).unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refuted(&good.replace("e found 0", "e found 2"), "not there from 3");
    refuted(&good.replace("f listed 3", "f listed 2 k=2"), "not there from 3");
    refuted(&good.replace("f listed 3", "f listed 3 k=2"), "not there");
    refuted(&good.replace("answer d written 3", "answer d written 2"), "lost");
    refuted(&good.replace("k put 1 two", "k put 0 two"), "comparison");
    refuted(
        &good.replace("answer d written 3", "answer d written 3\ncall g x put 0 new\nanswer g written 4"),
        "lost",
    );
    refuted(&good.replace("answer d written 3", "answer d written 3\nanswer c refused 1"), "refused, but");
    assert!(judged(good, &written[..2]).unwrap_err().contains("lost"));
    assert!(judged(good, &[(1, "k", Some("one")), (3, "k", None)]).unwrap_err().contains("dense"));
    assert!(judged("", &written[..1]).unwrap_err().contains("nobody"));
}
