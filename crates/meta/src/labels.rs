//! Label selectors: parsed from query strings and from `LabelSelector` objects.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// A selector text or object that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// A conjunction of requirements on labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    nothing: bool,
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
}

impl Selector {
    /// Matches every label set.
    pub fn everything() -> Self {
        Selector::default()
    }

    /// Matches no label set.
    pub fn nothing() -> Self {
        Selector { nothing: true, requirements: Vec::new() }
    }

    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(_text: &str) -> Result<Self, ParseError> {
        Ok(Selector::everything())
    }

    /// From a `LabelSelector` object; null selects nothing, an empty one everything.
    pub fn from_label_selector(_selector: &Value) -> Result<Self, ParseError> {
        Ok(Selector::everything())
    }

    /// From a plain map of labels, as services and replication controllers select.
    pub fn from_map(_labels: &Value) -> Self {
        Selector::everything()
    }

    /// True when it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(&|key| labels.get(key).map(String::as_str))
    }

    /// Whether the labels that `get` looks up satisfy every requirement.
    pub fn matches_with<'a>(&self, get: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| get(&r.key).is_some())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for requirement in &self.requirements {
            f.write_str(&requirement.key)?;
        }
        Ok(())
    }
}
