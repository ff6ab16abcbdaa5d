//! `x-kubernetes-validations`: CEL rules in the schemas of custom resources (KEP-2876).

use std::collections::BTreeMap;

use cel_core::Value as Cel;
use coxswain_meta::field::{ErrorKind, ErrorList, FieldError, Path};
use coxswain_meta::structural::{ListType, Structural};
use serde_json::Value;

use super::{Expression, Scope, optional, value};

/// The rules of a schema, in the shape of the schema.
#[derive(Default)]
pub struct Rules {
    own: Vec<Rule>,
    members: BTreeMap<String, Rules>,
    /// Of the items or the members that are not named.
    inner: Option<Box<Rules>>,
}

struct Rule {
    condition: Expression,
    message: Option<String>,
    message_expression: Option<Expression>,
    reason: ErrorKind,
    field_path: String,
    uses_old: bool,
    old_is_optional: bool,
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let text = |key: &str| rule[key].as_str().map(str::to_owned).filter(|text| !text.is_empty());
        let source = text("rule").unwrap_or_default();
        let variables = ["self", "oldSelf"];
        Self {
            uses_old: mentions(&source, "oldSelf"),
            condition: Expression::compile(&source, &variables),
            message: text("message"),
            message_expression: text("messageExpression").map(|text| Expression::compile(&text, &variables)),
            reason: match rule["reason"].as_str() {
                Some("FieldValueRequired") => ErrorKind::Required,
                Some("FieldValueForbidden") => ErrorKind::Forbidden,
                Some("FieldValueDuplicate") => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            },
            field_path: text("fieldPath").unwrap_or_default().trim_start_matches('.').to_owned(),
            old_is_optional: rule["optionalOldSelf"] == true,
        }
    }
}

/// Whether an expression has a word in it.
fn mentions(source: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    source.split(|c| !is_part(c)).any(|part| part == word)
}

/// The most that the rules of a schema may cost on the largest object it allows.
const BUDGET: u64 = 10_000_000;
const TOO_COSTLY: &str = "estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
/// How many items a list may have that names no limit: as many as fit into a request.
const MOST_ITEMS: u64 = 1_000_000;

/// The first field a rule names that its schema does not have, as a fault of compilation.
fn undefined_field(source: &str, schema: &Structural) -> Option<String> {
    for (start, _) in source.match_indices("self.") {
        let before = source[..start].chars().next_back();
        // Within text, or the end of another name.
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.')
            || source[..start].matches(['\'', '"']).count() % 2 == 1
        {
            continue;
        }
        let mut at = Some(schema);
        let mut offset = start + "self".len();
        while let (Some(here), Some(rest)) = (at, source[offset..].strip_prefix('.')) {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let called = rest[name.len()..].trim_start().starts_with('(');
            if name.is_empty()
                || called
                || here.type_ != "object"
                || here.preserves_unknown
                || here.additional.is_some()
            {
                break;
            }
            let known = here.properties.iter().find(|(known, _)| value::escape(known) == name);
            if known.is_none()
                && !(here.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata"))
            {
                let column = source[..offset].chars().count() + 1;
                return Some(format!(
                    "ERROR: <input>:1:{column}: undefined field '{name}'\n | {source}\n | {}^",
                    ".".repeat(column - 1)
                ));
            }
            at = known.map(|(_, inner)| inner);
            offset += 1 + name.len();
        }
    }
    None
}

/// About what a rule costs on the largest value of its schema: its macros walk over all items, one in another.
fn cost(source: &str, schema: &Structural) -> u64 {
    let items = [".all(", ".exists(", ".exists_one(", ".map(", ".filter("];
    let (mut deepest, mut depths, mut depth) = (0, Vec::new(), 0usize);
    for (at, c) in source.char_indices() {
        match c {
            '(' => {
                if items.iter().any(|open| source[..=at].ends_with(open)) {
                    depths.push(depth);
                    deepest = deepest.max(depths.len());
                }
                depth += 1;
            }
            ')' => {
                depth = depth.saturating_sub(1);
                if depths.last() == Some(&depth) {
                    depths.pop();
                }
            }
            _ => {}
        }
    }
    largest(schema).saturating_pow(u32::try_from(deepest).unwrap_or(u32::MAX))
}

/// The items of the largest list or map in a value.
fn largest(schema: &Structural) -> u64 {
    let own = match schema.type_.as_str() {
        "array" => schema.most("maxItems").unwrap_or(MOST_ITEMS),
        "object" if schema.additional.is_some() => schema.most("maxProperties").unwrap_or(MOST_ITEMS),
        _ => 1,
    };
    let inner = [&schema.items, &schema.additional].into_iter().flatten().map(AsRef::as_ref);
    own.max(schema.properties.values().chain(inner).map(largest).max().unwrap_or(1))
}

/// What is wrong with the rules of a schema.
pub fn check_rules(schema: &Structural, path: &Path, errors: &mut ErrorList) {
    check_rules_at(schema, path, 1, errors);
}

/// `times` is how often a value of the schema may occur in an object.
fn check_rules_at(schema: &Structural, path: &Path, times: u64, errors: &mut ErrorList) {
    for (at, rule) in schema.rules.iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(at);
        let source = rule["rule"].as_str().unwrap_or_default();
        let parsed = Rule::parse(rule);
        if source.trim().is_empty() {
            errors.push(FieldError::required(&path.child("rule"), "rule is not specified"));
        } else if let Some(fault) = parsed.condition.fault() {
            errors.push(FieldError::invalid(
                &path.child("rule"),
                source,
                format!("compilation failed: {fault}"),
            ));
        } else if let Some(fault) = undefined_field(source, schema) {
            let why = format!("compilation failed: {fault}");
            errors.push(FieldError::invalid(&path.child("rule"), source, why));
        } else if cost(source, schema).saturating_mul(times) > BUDGET {
            errors.push(FieldError::forbidden(&path.child("rule"), TOO_COSTLY));
        }
        if let Some(fault) = parsed.message_expression.as_ref().and_then(Expression::fault) {
            let why = format!("messageExpression compilation failed: {fault}");
            let found = rule["messageExpression"].clone();
            errors.push(FieldError::invalid(&path.child("messageExpression"), found, why));
        }
        if parsed.old_is_optional && !parsed.uses_old {
            let why = "may not be set if oldSelf is not used in rule";
            errors.push(FieldError::invalid(&path.child("optionalOldSelf"), true, why));
        }
    }
    for (name, inner) in &schema.properties {
        check_rules_at(inner, &path.child("properties").key(name), times, errors);
    }
    for (name, inner, limit) in
        [("items", &schema.items, "maxItems"), ("additionalProperties", &schema.additional, "maxProperties")]
    {
        if let Some(inner) = inner {
            let times = times.saturating_mul(schema.most(limit).unwrap_or(MOST_ITEMS));
            check_rules_at(inner, &path.child(name), times, errors);
        }
    }
}

impl Rules {
    /// Compiles the rules of a schema.
    pub fn compile(schema: &Structural) -> Self {
        let ruled = schema.properties.iter().filter(|(_, inner)| inner.has_rules);
        let inner = schema.items.as_deref().or(schema.additional.as_deref()).filter(|inner| inner.has_rules);
        Self {
            own: schema.rules.iter().map(Rule::parse).collect(),
            members: ruled.map(|(name, inner)| (name.clone(), Self::compile(inner))).collect(),
            inner: inner.map(|inner| Box::new(Self::compile(inner))),
        }
    }

    /// The rules that an object breaks; `old` is what it was before.
    pub fn check(&self, schema: &Structural, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        self.walk(schema, (object, old), &Path::root(), true, &mut errors);
        errors
    }

    fn walk(
        &self,
        schema: &Structural,
        (value, old): (&Value, Option<&Value>),
        path: &Path,
        whole: bool,
        errors: &mut ErrorList,
    ) {
        if value.is_null() {
            return;
        }
        for rule in &self.own {
            rule.check(schema, (value, old), path, whole, errors);
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let Some(inner) = schema.member(name) else { continue };
                    let Some(rules) = self.members.get(name).or(self.inner.as_deref()) else { continue };
                    let named = schema.properties.contains_key(name);
                    let path = if named { path.child(name) } else { path.key(name) };
                    let old = old.and_then(|old| old.get(name));
                    rules.walk(inner, (value, old), &path, inner.embedded, errors);
                }
            }
            Value::Array(items) => {
                let (Some(inner), Some(rules)) = (schema.items.as_deref(), &self.inner) else { return };
                for (at, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| counterpart(schema, old, item));
                    rules.walk(inner, (item, old), &path.index(at), inner.embedded, errors);
                }
            }
            _ => {}
        }
    }
}

/// The item of the old list with the same keys; only keyed lists have one.
fn counterpart<'a>(schema: &Structural, old: &'a Value, item: &Value) -> Option<&'a Value> {
    if schema.list_type != ListType::Map {
        return None;
    }
    old.as_array()?.iter().find(|old| schema.map_keys.iter().all(|key| old.get(key) == item.get(key)))
}

impl Rule {
    fn check(
        &self,
        schema: &Structural,
        (value, old): (&Value, Option<&Value>),
        path: &Path,
        whole: bool,
        errors: &mut ErrorList,
    ) {
        if self.uses_old && old.is_none() && !self.old_is_optional {
            return;
        }
        let mut scope = Scope::empty();
        scope.set("self", value::typed(value, schema, whole));
        let old = old.map(|old| value::typed(old, schema, whole));
        match (self.old_is_optional, old) {
            (true, old) => scope.set("oldSelf", optional(old)),
            (false, Some(old)) => scope.set("oldSelf", old),
            (false, None) => {}
        }
        let source = self.condition.source();
        let invalid = |detail: String| FieldError::invalid(path, schema.type_.as_str(), detail);
        match self.condition.eval(&scope) {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => errors.push(self.broken(schema, value, path, &scope)),
            Err(why) if why == "no such overload" => errors.push(invalid(format!(
                "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {source}"
            ))),
            Err(why) if why.starts_with("operation cancelled") => errors.push(invalid(format!(
                "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {source}"
            ))),
            Err(why) if why.starts_with("compilation failed") => {
                errors.push(invalid(format!("rule compile error: {why}")));
            }
            Err(why) => errors.push(invalid(format!("{why} evaluating rule: {source}"))),
        }
    }

    fn broken(&self, schema: &Structural, value: &Value, path: &Path, scope: &Scope) -> FieldError {
        let said = self.message_expression.as_ref().and_then(|expression| expression.text(scope).ok());
        let said = said.filter(|text| !text.trim().is_empty() && !text.contains('\n'));
        let detail = said
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", self.condition.source()));
        let path = if self.field_path.is_empty() { path.clone() } else { path.child(&self.field_path) };
        let shown = matches!(self.reason, ErrorKind::Invalid | ErrorKind::Duplicate)
            && !matches!(schema.type_.as_str(), "object" | "array");
        FieldError {
            kind: self.reason,
            field: path.to_string(),
            value: shown.then(|| value.clone()),
            detail: if self.reason == ErrorKind::Duplicate { String::new() } else { detail },
        }
    }
}
