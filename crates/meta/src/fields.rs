//! Field selectors: `metadata.name=x,status.phase!=Running`.

use crate::labels::ParseError;

/// A conjunction of equalities and inequalities on fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

/// One requirement of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Such as `metadata.name`.
    pub field: String,
    /// The value compared with.
    pub value: String,
    /// False for `!=`.
    pub equal: bool,
}

impl Selector {
    /// Parses the query form; commas, equal signs and backslashes in values are escaped with a backslash.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            terms.push(parse_term(&part)?);
        }
        Ok(Selector { terms })
    }

    /// The requirements in order.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// True when it selects everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value `field` must be equal to, if there is one.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether the fields that `get` looks up satisfy every term; a missing field is the empty string.
    pub fn matches<'a>(&self, get: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field).unwrap_or("") == t.value) == t.equal)
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn parse_term(part: &str) -> Result<Term, ParseError> {
    // Field names contain none of these, so the first one begins the operator.
    let operator = part.find(['=', '!']).map(|at| part.split_at(at));
    let (field, rest) = operator.unwrap_or(("", part));
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Ok(Term { field: field.to_owned(), value: unescape(value)?, equal });
        }
    }
    Err(ParseError(format!("invalid selector: '{part}'; can't understand '{part}'")))
}

fn unescape(value: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                _ => {
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: {value}"
                    )));
                }
            },
            '=' | ',' => {
                return Err(ParseError(format!("invalid field selector: unescaped character: {value}")));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let selector = Selector::parse(r"metadata.name==a,status.phase!=Running,x=1\,2").expect("valid");
        assert_eq!(selector.required_value("metadata.name"), Some("a"));
        assert_eq!(selector.terms()[2].value, "1,2");
        let get = |field: &str| match field {
            "metadata.name" => Some("a"),
            "x" => Some("1,2"),
            _ => None,
        };
        assert!(selector.matches(&get));
        assert!(!Selector::parse("metadata.name!=a").expect("valid").matches(&get));
        assert!(Selector::parse("nonsense").is_err());
        assert!(Selector::parse("").expect("valid").is_everything());
    }
}
