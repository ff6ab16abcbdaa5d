//! What a run leaves behind for people: the table by group, `docs/conformance.md`, a file for each spec that failed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::go::VERSION;
use super::outcome::{Outcome, State};

#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    not_run: usize,
}

impl Count {
    fn add(&mut self, state: State) {
        match state {
            State::Passed => self.passed += 1,
            State::Failed => self.failed += 1,
            State::NotRun => self.not_run += 1,
        }
    }
}

/// The table by group, with the sum.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut groups: BTreeMap<&str, Count> = BTreeMap::new();
    let mut all = Count::default();
    for outcome in outcomes {
        groups.entry(outcome.sig()).or_default().add(outcome.state);
        all.add(outcome.state);
    }
    let mut text = "| group | passed | failed | not run |\n| --- | ---: | ---: | ---: |\n".to_owned();
    for (name, count) in groups.into_iter().chain([("all", all)]) {
        let _ = writeln!(text, "| {name} | {} | {} | {} |", count.passed, count.failed, count.not_run);
    }
    text
}

/// The page: how every spec ended when it ran last. `whole` is the time a run of all of them took, and how many ran at a
/// time.
pub fn page(outcomes: &[Outcome], whole: Option<(Duration, u32)>) -> String {
    let mut text =
        format!("# Conformance\n\nUpstream's conformance suite, {VERSION}, on a cluster of two nodes");
    match whole {
        Some((took, procs)) => {
            let (minutes, seconds) = (took.as_secs() / 60, took.as_secs() % 60);
            let _ = write!(text, ", {procs} specs at a time, in {minutes} min {seconds} s.");
        }
        None => text.push_str(": how every spec ended when it ran last."),
    }
    let _ = write!(text, " Made by `cargo xtask conformance`.\n\n{}\n", table(outcomes));
    if outcomes.iter().any(|outcome| outcome.state != State::Passed) {
        text.push_str("## What does not pass\n\n");
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.state != State::Passed) {
        let name = outcome.name.replace(" [Conformance]", "");
        let _ = match outcome.state {
            State::NotRun => writeln!(text, "- {name}: did not run to its end"),
            _ => writeln!(text, "- {name}: `{}`", outcome.reason().replace(['`', '|'], "'")),
        };
    }
    text
}

/// A file for each spec that failed: why, what it printed (events and pods among it), the server's log meanwhile.
pub fn failures(outcomes: &[Outcome], server_log: &str, directory: &Path) -> std::io::Result<()> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)?;
    }
    std::fs::create_dir_all(directory)?;
    for outcome in outcomes.iter().filter(|outcome| outcome.state == State::Failed) {
        let (begin, end) = &outcome.times;
        let meanwhile = server_log.lines().filter(|line| {
            // Lines begin with their time in UTC, as ginkgo's times are.
            let seconds = line.get(..19).unwrap_or_default();
            begin.get(..19).is_some_and(|begin| seconds >= begin)
                && end.get(..19).is_some_and(|end| seconds <= end)
        });
        let log = meanwhile.collect::<Vec<_>>().join("\n");
        let Outcome { name, message, output, .. } = outcome;
        let text = format!("{name}\n\n{message}\n\n--- output\n{output}\n--- server\n{log}\n");
        std::fs::write(directory.join(format!("{}.log", file_name(name))), text)?;
    }
    Ok(())
}

fn file_name(spec: &str) -> String {
    let plain = spec.replace("[Conformance]", "").replace("[NodeConformance]", "").to_lowercase();
    let words =
        plain.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").chars().take(180).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(name: &str, state: State) -> Outcome {
        let times = ("2026-01-01T00:00:05.5Z".to_owned(), "2026-01-01T00:00:09Z".to_owned());
        Outcome {
            name: name.to_owned(),
            state,
            seconds: 1.0,
            message: "a `b`".into(),
            output: "out".into(),
            times,
        }
    }

    #[test]
    fn the_page_counts_and_names_what_does_not_pass() {
        let outcomes =
            [outcome("[sig-a] x [Conformance]", State::Passed), outcome("[sig-b] y", State::Failed)];
        let page = page(&outcomes, Some((Duration::from_secs(61), 4)));
        assert!(page.contains(", 4 specs at a time, in 1 min 1 s. Made by"), "{page}");
        assert!(
            page.contains("| sig-a | 1 | 0 | 0 |\n| sig-b | 0 | 1 | 0 |\n| all | 1 | 1 | 0 |\n"),
            "{page}"
        );
        assert!(page.ends_with("## What does not pass\n\n- [sig-b] y: `a 'b'`\n"), "{page}");
    }

    #[test]
    fn a_failure_comes_with_the_log_of_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let log = "2026-01-01T00:00:04.9Z early\n2026-01-01T00:00:06.1Z within\n2026-01-01T00:00:10Z late\n";
        failures(&[outcome("[sig-b] y z", State::Failed)], log, directory.path()).unwrap();
        let text = std::fs::read_to_string(directory.path().join("sig-b-y-z.log")).unwrap();
        assert!(text.ends_with("--- server\n2026-01-01T00:00:06.1Z within\n"), "{text}");
    }
}
