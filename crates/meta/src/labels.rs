//! Label selectors: parsed from query strings and from `LabelSelector` objects.

use std::collections::BTreeMap;
use std::fmt;

use crate::json::Value;

use crate::field::{FieldError, Path};
use crate::names;

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
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Equal(String),
    NotEqual(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl Test {
    /// A missing label satisfies the negative tests.
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Test::Equal(want) => value == Some(want),
            Test::NotEqual(other) => value != Some(other),
            Test::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Test::NotIn(set) => !value.is_some_and(|v| set.iter().any(|s| s == v)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Greater(bound) => number().is_some_and(|n| n > *bound),
            Test::Less(bound) => number().is_some_and(|n| n < *bound),
        }
    }
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
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { tokens: lex(text), at: 0 };
        let requirements = parser.requirements().map_err(|why| match why.strip_prefix("key: ") {
            Some(why) => ParseError(format!("unable to parse requirement: <nil>: {why}")),
            None if why.ends_with("expected: ',' or 'end of string'") => ParseError(why),
            None => ParseError(format!("unable to parse requirement: {why}")),
        })?;
        Ok(Selector { nothing: false, requirements })
    }

    /// From a `LabelSelector` object; null selects nothing, an empty one everything.
    pub fn from_label_selector(selector: &Value) -> Result<Self, ParseError> {
        if selector.is_null() {
            return Ok(Selector::nothing());
        }
        let mut requirements = Selector::from_map(&selector["matchLabels"]).requirements;
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values: Vec<String> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                other => {
                    return Err(ParseError(format!("\"{other}\" is not a valid label selector operator")));
                }
            };
            requirements.push(Requirement { key, test });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { nothing: false, requirements })
    }

    /// From a plain map of labels, as services and replication controllers select.
    pub fn from_map(labels: &Value) -> Self {
        let requirements = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| Requirement {
                key: k.to_owned(),
                test: Test::Equal(v.as_str().unwrap_or_default().to_owned()),
            })
            .collect();
        Selector { nothing: false, requirements }
    }

    /// True when it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The labels that everything selected has, with their values.
    pub fn equalities(&self) -> impl Iterator<Item = (&str, &str)> {
        self.requirements.iter().filter_map(|requirement| match &requirement.test {
            Test::Equal(value) => Some((requirement.key.as_str(), value.as_str())),
            Test::In(values) => match values.as_slice() {
                [only] => Some((requirement.key.as_str(), only.as_str())),
                _ => None,
            },
            _ => None,
        })
    }

    /// How many requirements there are.
    pub fn size(&self) -> usize {
        self.requirements.len()
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(&|key| labels.get(key).map(String::as_str))
    }

    /// Whether the labels that `get` looks up satisfy every requirement.
    pub fn matches_with<'a>(&self, get: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.test.holds(get(&r.key)))
    }

    /// Whether the labels of a JSON map satisfy every requirement.
    pub fn matches_json(&self, labels: &Value) -> bool {
        self.matches_with(&|key| labels.get(key).and_then(Value::as_str))
    }
}

impl fmt::Display for Selector {
    /// The query form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |values: &[String]| {
            let mut sorted = values.to_vec();
            sorted.sort();
            sorted.join(",")
        };
        for (i, Requirement { key, test }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::Equal(v) => write!(f, "{key}={v}")?,
                Test::NotEqual(v) => write!(f, "{key}!={v}")?,
                Test::In(v) => write!(f, "{key} in ({})", set(v))?,
                Test::NotIn(v) => write!(f, "{key} notin ({})", set(v))?,
                Test::Exists => f.write_str(key)?,
                Test::Absent => write!(f, "!{key}")?,
                Test::Greater(n) => write!(f, "{key}>{n}")?,
                Test::Less(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// Splits into words and the operators `( ) , ! = == != < >`.
fn lex(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let special = "(),!=<>".contains(c);
        if (special || c.is_whitespace()) && !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if special {
            let double = "!=".contains(c) && chars.next_if_eq(&'=').is_some();
            tokens.push(if double { format!("{c}=") } else { c.to_string() });
        } else if !c.is_whitespace() {
            word.push(c);
        }
    }
    if !word.is_empty() {
        tokens.push(word);
    }
    tokens
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_owned();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        while self.at < self.tokens.len() {
            out.push(self.requirement()?);
            match self.next().as_str() {
                "" => break,
                "," if matches!(self.peek(), "" | ",") => {
                    return Err(format!("found '{}', expected: identifier after ','", self.peek()));
                }
                "," => {}
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
        out.sort_by(|a: &Requirement, b| a.key.cmp(&b.key));
        Ok(out)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == "!";
        if negated {
            self.at += 1;
        }
        let key = self.next();
        if is_operator(&key) || key.is_empty() {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(rule) = names::qualified_name(&key).first() {
            return Err(FieldError::invalid(&Path::new("key"), key, rule).to_string());
        }
        if negated {
            return Ok(Requirement { key, test: Test::Absent });
        }
        let test = self.test(&key)?;
        Ok(Requirement { key, test })
    }

    fn test(&mut self, key: &str) -> Result<Test, String> {
        match self.peek() {
            "" | "," => return Ok(Test::Exists),
            _ => {}
        }
        match self.next().as_str() {
            "=" | "==" => self.value(key).map(Test::Equal),
            "!=" => self.value(key).map(Test::NotEqual),
            "in" => self.values(key).map(Test::In),
            "notin" => self.values(key).map(Test::NotIn),
            ">" => self.number(key).map(Test::Greater),
            "<" => self.number(key).map(Test::Less),
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }

    /// A value, which may be empty.
    fn value(&mut self, key: &str) -> Result<String, String> {
        if matches!(self.peek(), "" | "," | ")") {
            return Ok(String::new());
        }
        let value = self.next();
        if is_operator(&value) {
            return Err(format!("found '{value}', expected: identifier"));
        }
        match names::label_value(&value).first() {
            Some(rule) => {
                Err(FieldError::invalid(&Path::new("values").index(0).key(key), value, rule).to_string())
            }
            None => Ok(value),
        }
    }

    fn number(&mut self, key: &str) -> Result<i64, String> {
        let text = self.value(key)?;
        text.parse().map_err(|_| {
            let path = Path::new("values").index(0);
            FieldError::invalid(&path, text, "for 'Gt', 'Lt' operators, the value must be an integer")
                .to_string()
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("found '{open}', expected: '('"));
        }
        let mut out = Vec::new();
        while self.at < self.tokens.len() {
            out.push(self.value(key)?);
            match self.next().as_str() {
                "," => {}
                ")" => return Ok(out),
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
        Err("found '', expected: ',' or ')'".to_owned())
    }
}

fn is_operator(token: &str) -> bool {
    matches!(token, "(" | ")" | "," | "!" | "=" | "==" | "!=" | "<" | ">")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::json;

    #[test]
    fn matching() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier", true),
            ("app!=web", false),
            ("other!=x", true),
            ("app in (a, web)", true),
            ("app notin (a,b),!zone", true),
            ("!app", false),
            ("tier>0,tier<2", true),
            ("tier>1", false),
            ("zone in ()", false),
            ("in in (in)", false),
            ("zone=", false),
        ] {
            let selector = Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches(&labels), want, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()), Ok(selector), "{text}");
        }
    }

    #[test]
    fn malformed() {
        for text in
            ["a b", "a in b", "a in (b", "=a", "a=b,", "a,,b", "-bad-", "a==b=c", "a>x", "a=!", "a/b/c=d"]
        {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn objects() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions":
            [{"key": "c", "operator": "NotIn", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}]});
        let selector = Selector::from_label_selector(&selector).expect("valid");
        assert_eq!(selector.to_string(), "a=b,c notin (x,y),d");
        assert!(selector.matches_json(&json!({"a": "b", "d": ""})));
        assert!(!selector.matches_json(&json!({"a": "b", "c": "x", "d": ""})));
        assert!(!Selector::from_label_selector(&Value::Null).expect("null").matches_json(&json!({})));
        assert!(Selector::from_label_selector(&json!({})).expect("empty").is_everything());
    }
}
