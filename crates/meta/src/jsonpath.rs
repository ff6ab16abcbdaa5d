//! The JSONPath of printer columns and scale paths: `.spec.x`, `.a['b.c']`, `[0]`, `[*]`, `[?(@.type=="Ready")]`.

use crate::json::{Map, Value};

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    All,
    /// Items whose member at a path compares as told with a value.
    Filter(Vec<Step>, bool, Value),
}

/// A parsed path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path; none where it is not understood.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(rest);
        rest = rest.strip_prefix(['$', '@']).unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (name, left) = member(after);
                match name.as_str() {
                    "" if !left.starts_with('[') && !left.is_empty() => return None,
                    "" => {}
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Member(name)),
                }
                rest = left;
            } else {
                let inner = rest.strip_prefix('[')?;
                let end = closing(inner)?;
                steps.push(bracket(&inner[..end])?);
                rest = &inner[end + 1..];
            }
        }
        Some(Self(steps))
    }

    /// The values at the path.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        find(&self.0, root)
    }

    /// The value at a path of members alone, to be written; made where it is missing.
    pub fn slot<'a>(&self, root: &'a mut Value) -> Option<&'a mut Value> {
        self.0.iter().try_fold(root, |at, step| {
            let Step::Member(name) = step else { return None };
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            Some(at.as_object_mut()?.entry(name.clone()).or_insert(Value::Null))
        })
    }
}

/// A member's name up to the next step, escapes resolved.
fn member(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, &text[at..]),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket ends, quotes and inner brackets aside.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"'))
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(condition) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (operator, equal) = if condition.contains("!=") { ("!=", false) } else { ("==", true) };
        let (path, value) = condition.split_once(operator)?;
        let value = match quoted(value) {
            Some(text) => text.into(),
            None => serde_json::from_str(value.trim()).ok()?,
        };
        return Some(Step::Filter(JsonPath::parse(path.trim())?.0, equal, value));
    }
    match quoted(text) {
        Some(name) => Some(Step::Member(name.to_owned())),
        None => text.parse().ok().map(Step::Index),
    }
}

fn find<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![root];
    for step in steps {
        found = found.into_iter().flat_map(|value| step.of(value)).collect();
    }
    found
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let all = || -> Vec<&'a Value> {
            match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            }
        };
        match self {
            Step::Member(name) => value.get(name).into_iter().collect(),
            Step::Index(at) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let at = if *at < 0 { items.len() as i64 + at } else { *at };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            Step::All => all(),
            Step::Filter(path, equal, wanted) => all()
                .into_iter()
                .filter(|item| (find(path, item).first() == Some(&wanted)) == *equal)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn finds_what_columns_ask_for() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}]}});
        for (path, wanted) in [
            (".spec.list[0].v", vec![json!(1)]),
            (".spec.list[-1].v", vec![json!(2)]),
            (".spec.list[*].v", vec![json!(1), json!(2)]),
            (r#".spec.list[?(@.n=="y")].v"#, vec![json!(2)]),
            (r".spec.a\.b", vec![json!(1)]),
            ("{.spec['a.b']}", vec![json!(1)]),
            (".nothing", vec![]),
        ] {
            let found: Vec<Value> =
                JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(found, wanted, "{path}");
        }
        assert_eq!(JsonPath::parse(".a[?(x"), None);
        let mut empty = json!({});
        *JsonPath::parse(".spec.replicas").unwrap().slot(&mut empty).unwrap() = json!(3);
        assert_eq!(empty, json!({"spec": {"replicas": 3}}));
    }
}
