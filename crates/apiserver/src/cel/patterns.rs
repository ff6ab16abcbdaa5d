//! Regular expressions of expressions, compiled once each, and what they may cost this process.

use std::cell::RefCell;
use std::collections::VecDeque;

use cel_core::{EvalError, Value as Cel};
use coxswain_meta::regexp;
use regex::Regex;

use super::operators::no_overload;

/// How many are kept.
const KEPT: usize = 32;

/// The largest program of one.
const LARGEST_BYTES: usize = 2 << 20;

thread_local! {
    static KNOWN: RefCell<VecDeque<(Box<str>, Regex)>> = const { RefCell::new(VecDeque::new()) };
}

/// About how many states a pattern has: what is repeated counts as often.
fn states(pattern: &str) -> u64 {
    // For each open group: its states so far, and those of its last item.
    let mut open = vec![(0u64, 0u64)];
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        let innermost = open.len() - 1;
        let (sum, last) = &mut open[innermost];
        match c {
            '(' => open.push((0, 0)),
            ')' if innermost > 0 => {
                let states = *sum;
                open.pop();
                if let Some((sum, last)) = open.last_mut() {
                    (*sum, *last) = (sum.saturating_add(states), states);
                }
            }
            '{' => {
                let counts: String = rest.by_ref().take_while(|c| *c != '}').collect();
                let most = counts.split(',').filter_map(|count| count.parse::<u64>().ok()).max().unwrap_or(1);
                let repeated = last.saturating_mul(most);
                (*sum, *last) = (sum.saturating_sub(*last).saturating_add(repeated), repeated);
            }
            '*' | '+' | '?' => {}
            _ => {
                if c == '\\' {
                    rest.next();
                }
                (*sum, *last) = (sum.saturating_add(1), 1);
            }
        }
    }
    open.iter().fold(0u64, |sum, (states, _)| sum.saturating_add(*states))
}

/// The work of compiling a pattern and of going through a text with it, in the meter's units.
pub fn work(pattern: &str, text: &str) -> u64 {
    let states = states(pattern);
    let is_known = KNOWN.with_borrow(|known| known.iter().any(|(written, _)| **written == *pattern));
    let compile = if is_known { 0 } else { states.saturating_mul(100).saturating_add(5_000) };
    compile.saturating_add((text.len() as u64).saturating_mul(states) / 32)
}

/// The compiled pattern.
///
/// # Errors
/// It is none.
pub fn compiled(pattern: &str) -> Result<Regex, EvalError> {
    KNOWN.with_borrow_mut(|known| {
        if let Some((_, one)) = known.iter().find(|(written, _)| **written == *pattern) {
            return Ok(one.clone());
        }
        let one = regexp::compile(pattern, LARGEST_BYTES).map_err(|_| {
            EvalError::invalid_argument(format!("Illegal regex: error parsing regexp: {pattern}"))
        })?;
        known.push_front((pattern.into(), one.clone()));
        known.truncate(KEPT);
        Ok(one)
    })
}

/// Whether a pattern is found in a text.
pub fn matches(text: &Cel, pattern: &Cel) -> Cel {
    match (text, pattern) {
        (Cel::String(text), Cel::String(pattern)) => match compiled(pattern) {
            Ok(pattern) => Cel::Bool(pattern.is_match(text)),
            Err(why) => Cel::error(why),
        },
        _ => Cel::error(no_overload()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_make_states() {
        for (pattern, expected) in [
            ("abc", 3),
            ("a{3}b", 4),
            ("(ab){2,10}", 20),
            ("((a{10}b){10})+", 110),
            ("\\{2\\(", 3),
            ("(x{1000}){1000}", 1_000_000),
            (")){{", 2),
        ] {
            assert_eq!(states(pattern), expected, "{pattern}");
        }
    }
}
