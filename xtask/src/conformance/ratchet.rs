//! What is known to pass, and stays so: `conformance/passing.txt`, a line a spec with the seconds it took. A spec enters
//! after three passes in a row, a seeded part of the list is run by CI.

use std::collections::BTreeMap;
use std::path::Path;

use super::outcome::{Outcome, State};

/// So many passes in a row make a spec one that passes.
const PASSES: u32 = 3;

/// The list: seconds by spec.
pub type Passing = BTreeMap<String, f64>;

/// Reads the list.
///
/// # Errors
/// A line is not seconds, tab, name.
pub fn read(path: &Path) -> anyhow::Result<Passing> {
    let text = if path.exists() { std::fs::read_to_string(path)? } else { String::new() };
    let parse = |line: &str| {
        let (seconds, name) = line.split_once('\t')?;
        Some((name.to_owned(), seconds.parse().ok()?))
    };
    text.lines()
        .map(|line| parse(line).ok_or_else(|| anyhow::anyhow!("{}: {line:?}", path.display())))
        .collect()
}

/// Counts the run's passes, and enters into the list what has passed often enough. Says how many are new.
///
/// # Errors
/// A file cannot be read or written.
pub fn advance(outcomes: &[Outcome], streaks: &Path, list: &Path) -> anyhow::Result<usize> {
    let mut counts: BTreeMap<String, u32> = match std::fs::read(streaks) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => BTreeMap::new(),
    };
    let mut passing = read(list)?;
    let known = passing.len();
    enter(outcomes, &mut counts, &mut passing);
    std::fs::write(streaks, serde_json::to_vec_pretty(&counts)?)?;
    let lines = passing.iter().map(|(name, seconds)| format!("{seconds:.0}\t{name}\n"));
    std::fs::write(list, lines.collect::<String>())?;
    Ok(passing.len() - known)
}

fn enter(outcomes: &[Outcome], streaks: &mut BTreeMap<String, u32>, passing: &mut Passing) {
    for outcome in outcomes {
        let streak = streaks.entry(outcome.name.clone()).or_default();
        *streak = match outcome.state {
            State::Passed => *streak + 1,
            State::Failed => 0,
            State::NotRun => *streak,
        };
        if *streak >= PASSES {
            passing.entry(outcome.name.clone()).or_insert(outcome.seconds);
        }
    }
}

/// A part of the list, other for every seed, that takes about `minutes` with `procs` at a time.
pub fn slice(passing: &Passing, minutes: u32, procs: u32, seed: u64) -> Vec<String> {
    let mut specs: Vec<(u64, &String, f64)> =
        passing.iter().map(|(name, seconds)| (rank(name, seed), name, *seconds)).collect();
    specs.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    // The longest spec may begin last, and namespaces have to be made and removed.
    let mut left = f64::from(minutes) * 60.0 * f64::from(procs) / 2.0;
    let mut chosen = Vec::new();
    for (_, name, seconds) in specs {
        let cost = seconds + 1.0;
        if cost <= left {
            left -= cost;
            chosen.push(name.clone());
        }
    }
    chosen
}

/// A number from name and seed (FNV-1a).
fn rank(name: &str, seed: u64) -> u64 {
    let bytes = seed.to_le_bytes();
    bytes
        .iter()
        .chain(name.as_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, state: State) -> Outcome {
        let empty = String::new;
        Outcome {
            name: name.into(),
            state,
            seconds: 10.0,
            message: empty(),
            output: empty(),
            times: (empty(), empty()),
        }
    }

    #[test]
    fn three_passes_in_a_row_enter_the_list() {
        let (mut streaks, mut passing) = (BTreeMap::new(), Passing::new());
        for state in [State::Passed, State::Passed, State::Failed, State::Passed, State::Passed] {
            enter(&[outcome("a", state)], &mut streaks, &mut passing);
        }
        assert!(passing.is_empty());
        enter(&[outcome("a", State::NotRun), outcome("a", State::Passed)], &mut streaks, &mut passing);
        assert_eq!(passing, Passing::from([("a".to_owned(), 10.0)]));
    }

    #[test]
    fn seeds_choose_other_parts_within_the_time_until_all_are_chosen() {
        let passing: Passing = (0..200).map(|number| (format!("spec {number}"), 9.0)).collect();
        let first = slice(&passing, 10, 1, 1);
        assert_eq!((first.len(), &first), (30, &slice(&passing, 10, 1, 1)));
        let all: std::collections::BTreeSet<_> =
            (0..60).flat_map(|seed| slice(&passing, 10, 1, seed)).collect();
        assert_eq!(all.len(), passing.len());
    }
}
