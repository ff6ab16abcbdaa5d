//! What a run says about each spec: ginkgo's JSON report, reduced.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a spec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It passed.
    Passed,
    /// It did not.
    Failed,
    /// It was not run to an end: the run was over before, or it skipped itself.
    NotRun,
}

/// A spec and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its full name.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// How long it took.
    pub seconds: f64,
    /// Why it did not pass, at length.
    pub message: String,
    /// What it printed.
    #[serde(skip)]
    pub output: String,
    /// When it began and ended, in UTC.
    pub times: (String, String),
}

impl Outcome {
    /// Its special interest group, `sig-node`.
    pub fn sig(&self) -> &str {
        sig(&self.name)
    }

    /// Why it did not pass, in a line.
    pub fn reason(&self) -> String {
        let line = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut short: String = line.chars().take(180).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        short
    }
}

/// The group in front of a spec's name.
pub fn sig(name: &str) -> &str {
    name.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or("?")
}

/// Reads a report; specs that are not `chosen` are left out.
pub fn read(report: &Path, chosen: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Outcome>> {
    let bytes = std::fs::read(report).with_context(|| format!("ginkgo left no {}", report.display()))?;
    let suites: Vec<Value> = serde_json::from_slice(&bytes).context("ginkgo's report")?;
    let specs = suites.iter().flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten());
    let outcomes = specs.filter(|spec| spec["LeafNodeType"] == "It").map(outcome);
    Ok(outcomes.filter(|outcome| chosen(&outcome.name)).collect())
}

fn outcome(spec: &Value) -> Outcome {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let texts: Vec<&str> = containers
        .chain([&spec["LeafNodeText"]])
        .filter_map(Value::as_str)
        .filter(|text| !text.is_empty())
        .collect();
    let state = match spec["State"].as_str() {
        Some("passed") => State::Passed,
        // The run was over before the spec was.
        Some("timedout") if spec["Failure"]["Message"] == "A suite timeout occurred" => State::NotRun,
        Some("failed" | "panicked" | "timedout") => State::Failed,
        _ => State::NotRun,
    };
    let failure = &spec["Failure"];
    let mut message = text(&failure["Message"]);
    if let Some(panic) = failure["ForwardedPanic"].as_str() {
        message = format!("{message}: {panic}");
    }
    Outcome {
        name: texts.join(" "),
        state,
        seconds: spec["RunTime"].as_f64().unwrap_or_default() / 1e9,
        message,
        output: text(&spec["CapturedGinkgoWriterOutput"]),
        times: (text(&spec["StartTime"]), text(&spec["EndTime"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_reduced_to_names_states_and_reasons() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let spec = |leaf: &str, state: &str| {
            serde_json::json!({
                "ContainerHierarchyTexts": ["[sig-node] Pods", ""], "LeafNodeType": "It", "LeafNodeText": leaf,
                "State": state, "RunTime": 2_500_000_000u64, "Failure": {"Message": "one\n  two"},
            })
        };
        let suite = serde_json::json!([{"SpecReports": [
            spec("a [Conformance]", "passed"), spec("b [Conformance]", "failed"), spec("c", "skipped"),
            {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
        ]}]);
        std::fs::write(file.path(), suite.to_string()).unwrap();
        let outcomes = read(file.path(), |name| name.ends_with("[Conformance]")).unwrap();
        let short: Vec<_> =
            outcomes.iter().map(|o| (o.name.as_str(), o.state, o.sig(), o.reason())).collect();
        assert_eq!(short[0].0, "[sig-node] Pods a [Conformance]");
        assert_eq!((short[1].1, short[1].2, short[1].3.as_str()), (State::Failed, "sig-node", "one two"));
        assert_eq!((short.len(), outcomes[0].seconds), (2, 2.5));
    }
}
