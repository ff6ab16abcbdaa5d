//! Structural schemas of custom resources: parse, prune, default, validate (KEP-1111, "Specifying a structural schema").

mod default;
mod format;
mod prune;
mod typed;
mod validate;

use std::collections::BTreeMap;

use crate::json::{Map, Value};
use regex::Regex;

use crate::field::{ErrorList, FieldError, Path};

pub use default::{default, drop_nulls};
pub use format::holds as is_format;
pub use prune::prune;
pub use typed::typed_errors;
pub use validate::{validate, validate_embedded_members};

/// How a list merges and what is unique in it, by `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ListType {
    /// As a whole.
    #[default]
    Atomic,
    /// As a set of scalars.
    Set,
    /// As a map by some fields of its items.
    Map,
}

/// A structural schema.
#[derive(Debug, Default)]
pub struct Structural {
    /// `object`, `array`, `string`…; empty where any is allowed.
    pub type_: String,
    /// Whether null is a value.
    pub nullable: bool,
    /// Named members.
    pub properties: BTreeMap<String, Structural>,
    /// The schema of members that are not named.
    pub additional: Option<Box<Structural>>,
    /// The schema of a list's items.
    pub items: Option<Box<Structural>>,
    /// The value of a member that is left out.
    pub default: Option<Value>,
    /// Unknown members stay.
    pub preserves_unknown: bool,
    /// The value is a whole object with type and metadata.
    pub embedded: bool,
    /// An integer or text.
    pub int_or_string: bool,
    /// How a list merges.
    pub list_type: ListType,
    /// The keys of a `Map` list.
    pub map_keys: Vec<String>,
    /// A map merges as a whole.
    pub atomic_map: bool,
    /// Rules of `x-kubernetes-validations`, as they are written.
    pub rules: Vec<Value>,
    /// Whether rules stand here or anywhere below.
    pub has_rules: bool,
    checks: Checks,
}

/// What a value must satisfy besides its type.
#[derive(Debug, Default)]
struct Checks {
    required: Vec<String>,
    allowed: Vec<Value>,
    pattern: Option<(String, Option<Regex>)>,
    format: String,
    numbers: Map,
    all_of: Vec<Structural>,
    any_of: Vec<Structural>,
    one_of: Vec<Structural>,
    not: Option<Box<Structural>>,
}

/// The largest program of a pattern.
const LARGEST_PATTERN_BYTES: usize = 10 << 20;

/// The limits that are numbers.
const NUMBERS: [&str; 11] = [
    "maximum",
    "minimum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
];

impl Structural {
    /// Reads an `openAPIV3Schema`; what keeps it from being structural goes to `errors`.
    pub fn parse(schema: &Value, path: &Path, errors: &mut ErrorList) -> Self {
        let parsed = Self::read(schema, path, errors, true);
        if parsed.type_.is_empty() {
            errors.push(FieldError::required(&path.child("type"), "must not be empty at the root"));
        } else if parsed.type_ != "object" {
            let why = "must be object at the root";
            errors.push(FieldError::invalid(&path.child("type"), parsed.type_.as_str(), why));
        }
        parsed
    }

    fn read(schema: &Value, path: &Path, errors: &mut ErrorList, structural: bool) -> Self {
        let flag = |key: &str| schema[key] == true;
        let text = |key: &str| schema[key].as_str().unwrap_or_default();
        let mut out = Structural {
            type_: text("type").into(),
            nullable: flag("nullable"),
            default: schema.get("default").filter(|v| !v.is_null()).cloned(),
            preserves_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            atomic_map: text("x-kubernetes-map-type") == "atomic",
            list_type: match text("x-kubernetes-list-type") {
                "set" => ListType::Set,
                "map" => ListType::Map,
                _ => ListType::Atomic,
            },
            map_keys: strings(&schema["x-kubernetes-list-map-keys"]),
            rules: schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default(),
            checks: Checks::read(schema, path, errors),
            ..Structural::default()
        };
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let at = path.child("properties").key(name);
            let member = Self::read(member, &at, errors, structural);
            if structural {
                member.need_type(&at, "must not be empty for specified object fields", errors);
            }
            out.properties.insert(name.to_owned(), member);
        }
        out.additional = match &schema["additionalProperties"] {
            Value::Bool(true) => {
                Some(Box::new(Structural { preserves_unknown: true, ..Structural::default() }))
            }
            inner @ Value::Object(_) => {
                let at = path.child("additionalProperties");
                let inner = Self::read(inner, &at, errors, structural);
                if structural {
                    inner.need_type(&at, "must not be empty for specified object fields", errors);
                }
                Some(Box::new(inner))
            }
            _ => None,
        };
        if schema["items"].is_object() {
            let at = path.child("items");
            let inner = Self::read(&schema["items"], &at, errors, structural);
            if structural {
                inner.need_type(&at, "must not be empty for specified array items", errors);
            }
            out.items = Some(Box::new(inner));
        } else if structural && out.type_ == "array" {
            errors.push(FieldError::required(&path.child("items"), "must be specified"));
        }
        if structural {
            out.check(schema, path, errors);
        }
        out.has_rules = !out.rules.is_empty() || out.children().any(|child| child.has_rules);
        out
    }

    fn children(&self) -> impl Iterator<Item = &Structural> {
        let inner = [&self.additional, &self.items].into_iter().flatten().map(AsRef::as_ref);
        self.properties.values().chain(inner)
    }

    fn need_type(&self, path: &Path, why: &str, errors: &mut ErrorList) {
        if self.type_.is_empty() && !self.int_or_string && !self.preserves_unknown {
            errors.push(FieldError::required(&path.child("type"), why));
        }
    }

    /// Forbidden combinations.
    fn check(&self, schema: &Value, path: &Path, errors: &mut ErrorList) {
        if !self.properties.is_empty() && self.additional.is_some() {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(&path.child("additionalProperties"), why));
        }
        if schema["uniqueItems"] == true {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.push(FieldError::forbidden(&path.child("uniqueItems"), why));
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == false {
            let why = "must be true or undefined";
            errors.push(FieldError::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), false, why));
        }
        if self.embedded && self.properties.is_empty() && !self.preserves_unknown {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            errors.push(FieldError::required(&path.child("properties"), why));
        }
        if self.list_type == ListType::Map && self.map_keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            errors.push(FieldError::required(&path.child("x-kubernetes-list-map-keys"), why));
        }
        if self.list_type != ListType::Map && !self.map_keys.is_empty() {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            let found = schema["x-kubernetes-list-type"].clone();
            errors.push(FieldError::invalid(&path.child("x-kubernetes-list-type"), found, why));
        }
        for forbidden in ["definitions", "dependencies", "patternProperties", "id", "$ref"] {
            if schema.get(forbidden).is_some_and(|v| !v.is_null()) {
                errors.push(FieldError::forbidden(
                    &path.child(forbidden),
                    format!("{forbidden} is not supported"),
                ));
            }
        }
    }

    /// Whether all types in it are ones that JSON has.
    pub fn has_known_types(&self) -> bool {
        let known = matches!(
            self.type_.as_str(),
            "" | "array" | "boolean" | "integer" | "number" | "object" | "string"
        );
        let inner = self.additional.iter().chain(&self.items).map(|inner| &**inner);
        known && inner.chain(self.properties.values()).all(Self::has_known_types)
    }

    /// A limit that is a number, such as `maxItems`.
    pub fn most(&self, name: &str) -> Option<u64> {
        self.checks.numbers.get(name)?.as_u64()
    }

    /// The members an object must have.
    pub fn required(&self) -> &[String] {
        &self.checks.required
    }

    /// The only values there may be; none where any may.
    pub fn allowed(&self) -> &[Value] {
        &self.checks.allowed
    }

    /// The format of text, such as `date-time`.
    pub fn format(&self) -> &str {
        &self.checks.format
    }

    /// The schema of a member by its name; nothing where the schema knows none.
    pub fn member(&self, name: &str) -> Option<&Structural> {
        self.properties.get(name).or(self.additional.as_deref())
    }
}

impl Checks {
    fn read(schema: &Value, path: &Path, errors: &mut ErrorList) -> Self {
        let each = |key: &str, errors: &mut ErrorList| -> Vec<Structural> {
            let list = schema[key].as_array().into_iter().flatten().enumerate();
            list.map(|(at, inner)| Structural::read(inner, &path.child(key).index(at), errors, false))
                .collect()
        };
        let (all_of, any_of, one_of) = (each("allOf", errors), each("anyOf", errors), each("oneOf", errors));
        let not = schema["not"]
            .is_object()
            .then(|| Box::new(Structural::read(&schema["not"], &path.child("not"), errors, false)));
        let pattern = schema["pattern"].as_str().filter(|text| !text.is_empty()).map(|text| {
            let compiled = crate::regexp::compile(text, LARGEST_PATTERN_BYTES);
            if compiled.is_err() {
                let why =
                    format!("must be a valid regular expression, but isn't: error parsing regexp: {text}");
                errors.push(FieldError::invalid(&path.child("pattern"), text, why));
            }
            (text.to_owned(), compiled.ok())
        });
        let numbers = NUMBERS.iter().filter_map(|key| Some(((*key).to_owned(), schema.get(*key)?.clone())));
        Self {
            required: strings(&schema["required"]),
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            pattern,
            format: schema["format"].as_str().unwrap_or_default().into(),
            numbers: numbers.collect(),
            all_of,
            any_of,
            one_of,
            not,
        }
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
