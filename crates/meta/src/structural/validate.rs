//! Validation against a structural schema, in the words of upstream's OpenAPI validation.

use crate::json::{Map, Value, json};

use super::{ListType, Structural, format};
use crate::field::{ErrorList, FieldError, Path};

/// All that is wrong with a value at a path.
pub fn validate(value: &Value, schema: &Structural, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    check(value, schema, path, &mut errors);
    lists(value, schema, path, &mut errors);
    errors
}

/// What is missing of the resources embedded in an object: they name their type.
pub fn validate_embedded_members(object: &Value, schema: &Structural) -> ErrorList {
    let mut errors = ErrorList::new();
    each_child(object, schema, &Path::root(), &mut |value, schema, path| {
        embedded(value, schema, path, &mut errors);
    });
    errors
}

fn embedded(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    if schema.embedded && value.is_object() {
        for field in ["apiVersion", "kind"] {
            if value[field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(&path.child(field), "must not be empty"));
            }
        }
    }
    each_child(value, schema, path, &mut |value, schema, path| embedded(value, schema, path, errors));
}

/// Visits the members and items that the schema describes.
fn each_child(
    value: &Value,
    schema: &Structural,
    path: &Path,
    visit: &mut dyn FnMut(&Value, &Structural, &Path),
) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(inner) = schema.member(name) {
                    visit(value, inner, &path.child(name));
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.items.as_deref() {
                items.iter().enumerate().for_each(|(at, item)| visit(item, inner, &path.index(at)));
            }
        }
        _ => {}
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) | Value::Raw(_) => "object",
    }
}

/// `spec.x in body should …`
fn body(path: &Path, rule: &str) -> String {
    format!("{} in body {rule}", path.as_str())
}

fn check(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    if value.is_null() && schema.nullable {
        return;
    }
    let found = type_of(value);
    let wanted =
        if schema.int_or_string && schema.type_.is_empty() { "integer,string" } else { &schema.type_ };
    let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
    let fits = wanted.is_empty()
        || wanted.split(',').any(|wanted| {
            wanted == found || (wanted == "number" && found == "integer") || (wanted == "integer" && whole)
        });
    if !fits {
        let format = &schema.checks.format;
        let (wanted, found) = match value {
            Value::Null | Value::String(_) | Value::Array(_) => (wanted, found),
            _ if !format::is_known(format) => (wanted, found),
            Value::Number(number) if number.is_f64() => (format.as_str(), "float64"),
            Value::Number(_) => (format.as_str(), "int64"),
            _ => (format.as_str(), ""),
        };
        let rule = format!("must be of type {wanted}: {found:?}");
        errors.push(FieldError::type_invalid(path, found, body(path, &rule)));
        check_allowed(value, schema, path, errors);
        return check_combinations(value, schema, path, errors);
    }
    match value {
        Value::String(text) => check_text(text, schema, path, errors),
        Value::Number(_) => check_number(value, schema, path, errors),
        Value::Array(items) => {
            let items = items.len();
            if let Some(most) = schema.limit("maxItems").filter(|most| items > *most) {
                errors.push(FieldError::too_many(path, items, most));
            }
            if let Some(least) = schema.limit("minItems").filter(|least| items < *least) {
                let rule = body(path, &format!("should have at least {least} items"));
                errors.push(FieldError::invalid(path, items, rule));
            }
        }
        Value::Object(map) => {
            if let Some(most) = schema.limit("maxProperties").filter(|most| map.len() > *most) {
                errors.push(FieldError::too_many(path, map.len(), most));
            }
            if let Some(least) = schema.limit("minProperties").filter(|least| map.len() < *least) {
                let rule = body(path, &format!("should have at least {least} properties"));
                errors.push(FieldError::invalid(path, map.len(), rule));
            }
            for name in schema.checks.required.iter().filter(|name| !map.contains_key(name)) {
                errors.push(FieldError::required(&path.child(name), ""));
            }
        }
        _ => {}
    }
    check_allowed(value, schema, path, errors);
    each_child(value, schema, path, &mut |value, schema, path| check(value, schema, path, errors));
    check_combinations(value, schema, path, errors);
}

fn check_allowed(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    let allowed = &schema.checks.allowed;
    if !allowed.is_empty() && !allowed.iter().any(|known| equal(known, value)) {
        let shown: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &shown));
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && b.is_number() && a.as_f64() == b.as_f64())
}

impl Structural {
    fn limit(&self, name: &str) -> Option<usize> {
        self.checks.numbers.get(name)?.as_u64().map(|limit| limit as usize)
    }

    fn bound(&self, name: &str) -> Option<f64> {
        self.checks.numbers.get(name)?.as_f64()
    }
}

fn check_text(text: &str, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    let length = text.chars().count();
    // Of these three, upstream reports the first that does not hold.
    if let Some(most) = schema.limit("maxLength").filter(|most| length > *most) {
        errors.push(FieldError::too_long(path, most));
    } else if let Some(least) = schema.limit("minLength").filter(|least| length < *least) {
        let rule = body(path, &format!("should be at least {least} chars long"));
        errors.push(FieldError::invalid(path, text, rule));
    } else if let Some((pattern, Some(regex))) = &schema.checks.pattern
        && !regex.is_match(text)
    {
        errors.push(FieldError::invalid(path, text, body(path, &format!("should match '{pattern}'"))));
    }
    let name = &schema.checks.format;
    if !format::holds(name, text) {
        errors.push(FieldError::type_invalid(
            path,
            text,
            body(path, &format!("must be of type {name}: {text:?}")),
        ));
    }
}

/// Whether a number is within the range of an integer's format.
fn fits_format(value: &Value, format: &str) -> bool {
    let whole = value.as_i64().or_else(|| {
        // Beyond that, a floating point number is no integer of 64 bits.
        let number = value.as_f64().filter(|number| number.abs() < 9.2e18)?;
        Some(number as i64)
    });
    whole.is_some_and(|whole| format != "int32" || i32::try_from(whole).is_ok())
}

fn check_number(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    let number = value.as_f64().unwrap_or(0.0);
    let numbers = &schema.checks.numbers;
    if schema.type_ == "integer" && !fits_format(value, &schema.checks.format) {
        let format = match schema.checks.format.as_str() {
            "" => "(default format)".to_owned(),
            format => format!("with format {format}"),
        };
        let rule = format!("Checked value must be of type integer {format} in {}", path.as_str());
        errors.push(FieldError::invalid(&Path::new("<nil>"), "", rule));
    }
    let mut refuse = |rule: String| errors.push(FieldError::invalid(path, value.clone(), body(path, &rule)));
    if let Some(most) = schema.bound("maximum") {
        let exclusive = numbers.get("exclusiveMaximum") == Some(&Value::Bool(true));
        if number > most || (exclusive && number == most) {
            let words = if exclusive { "less than" } else { "less than or equal to" };
            refuse(format!("should be {words} {}", numbers["maximum"]));
        }
    }
    if let Some(least) = schema.bound("minimum") {
        let exclusive = numbers.get("exclusiveMinimum") == Some(&Value::Bool(true));
        if number < least || (exclusive && number == least) {
            let words = if exclusive { "greater than" } else { "greater than or equal to" };
            refuse(format!("should be {words} {}", numbers["minimum"]));
        }
    }
    if let Some(factor) = schema.bound("multipleOf").filter(|factor| *factor > 0.0)
        && (number / factor).fract() != 0.0
    {
        refuse(format!("should be a multiple of {}", numbers["multipleOf"]));
    }
}

fn check_combinations(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    let judge = |inner: &Structural| {
        let mut found = ErrorList::new();
        check(value, inner, path, &mut found);
        found
    };
    let place = path.as_str();
    let mut refuse = |what: String, best: Option<ErrorList>| {
        errors.push(FieldError::invalid(&Path::root(), "", format!("{place:?} {what}")));
        errors.extend(best.unwrap_or_default());
    };
    let checks = &schema.checks;
    let fewest = |found: Vec<ErrorList>| found.into_iter().min_by_key(ErrorList::len);
    if !checks.any_of.is_empty() {
        let found: Vec<ErrorList> = checks.any_of.iter().map(judge).collect();
        if !found.iter().any(ErrorList::is_empty) {
            refuse("must validate at least one schema (anyOf)".into(), fewest(found));
        }
    }
    if !checks.one_of.is_empty() {
        let found: Vec<ErrorList> = checks.one_of.iter().map(judge).collect();
        match found.iter().filter(|errors| errors.is_empty()).count() {
            1 => {}
            0 => refuse(
                "must validate one and only one schema (oneOf). Found none valid".into(),
                fewest(found),
            ),
            valid => refuse(
                format!("must validate one and only one schema (oneOf). Found {valid} valid alternatives"),
                None,
            ),
        }
    }
    if !checks.all_of.is_empty() {
        let found: Vec<ErrorList> = checks.all_of.iter().map(judge).collect();
        let valid = found.iter().filter(|errors| errors.is_empty()).count();
        if valid < found.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            let mut all = ErrorList::new();
            found.into_iter().for_each(|errors| all.extend(errors));
            refuse(format!("must validate all the schemas (allOf){none}"), Some(all));
        }
    }
    if checks.not.as_ref().is_some_and(|inner| judge(inner).is_empty()) {
        refuse("must not validate the schema (not)".into(), None);
    }
}

/// Items of sets and keyed lists are unique.
fn lists(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    if let (Value::Array(items), true) = (value, schema.list_type != ListType::Atomic) {
        let mut seen = std::collections::HashSet::new();
        for (at, item) in items.iter().enumerate() {
            let key = match schema.list_type {
                ListType::Map => {
                    let keys =
                        schema.map_keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
                    json!(keys.collect::<Map>())
                }
                _ => item.clone(),
            };
            if !seen.insert(key.to_string()) {
                errors.push(FieldError::duplicate(&path.index(at), key));
            }
        }
    }
    each_child(value, schema, path, &mut |value, schema, path| lists(value, schema, path, errors));
}
