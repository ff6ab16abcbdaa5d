//! Field paths and field errors, worded as upstream's validation words them.

use std::fmt;

use crate::json::Value;

use crate::golang;

/// Where in an object a value sits, such as `spec.containers[0].image`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The path of a top-level field.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// The path of the object itself; its children are top-level fields.
    pub fn root() -> Self {
        Path::default()
    }

    /// The field `name` below this path; dots in it descend further.
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { self.with([".", name, ""]) }
    }

    /// Element `i` of the list at this path.
    pub fn index(&self, i: usize) -> Self {
        self.with(["[", &i.to_string(), "]"])
    }

    /// Entry `key` of the map at this path.
    pub fn key(&self, key: &str) -> Self {
        self.with(["[", key, "]"])
    }

    /// The text with more at its end. Validation makes hundreds of paths for an object that is right: this is a copy, where
    /// formatting would be several times the work.
    fn with(&self, more: [&str; 3]) -> Self {
        let mut text =
            String::with_capacity(self.0.len() + more.iter().map(|part| part.len()).sum::<usize>());
        text.push_str(&self.0);
        more.iter().for_each(|part| text.push_str(part));
        Path(text)
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The class of a field error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A referenced value does not exist.
    NotFound,
    /// A value is missing.
    Required,
    /// A value that must be unique is not.
    Duplicate,
    /// A value breaks a rule.
    Invalid,
    /// A value is none of a fixed set.
    NotSupported,
    /// A value is not allowed here and now.
    Forbidden,
    /// Text is too long.
    TooLong,
    /// A list is too long.
    TooMany,
    /// Nothing the client did.
    Internal,
    /// A value has the wrong type.
    TypeInvalid,
}

impl ErrorKind {
    /// The cause reason in a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One broken rule: which, where, with which value.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// The class.
    pub kind: ErrorKind,
    /// The field path as text.
    pub field: String,
    /// The offending value, where the class shows one.
    pub value: Option<Value>,
    /// What the rule says.
    pub detail: String,
}

impl FieldError {
    fn new(kind: ErrorKind, path: &Path, value: Option<Value>, detail: impl Into<String>) -> Self {
        FieldError { kind, field: path.to_string(), value, detail: detail.into() }
    }

    /// `Required value[: detail]`
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, path, None, detail)
    }

    /// `Invalid value: <value>: detail`
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, Some(value.into()), detail)
    }

    /// `Invalid value: detail`
    pub fn invalid_without_value(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, path, None, detail)
    }

    /// `Invalid value: <value>: detail`, for a wrong JSON type.
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::TypeInvalid, path, Some(value.into()), detail)
    }

    /// `Unsupported value: <value>: supported values: "A", "B"`
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(ErrorKind::NotSupported, path, Some(value.into()), detail)
    }

    /// `Unsupported value: <shown>: detail`, for a value that is written out already.
    pub fn not_supported_shown(path: &Path, shown: &str, detail: &str) -> Self {
        Self::new(ErrorKind::NotSupported, path, None, format!("{shown}: {detail}"))
    }

    /// `Duplicate value: <value>`
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, path, Some(value.into()), "")
    }

    /// `Duplicate value: <shown>`, for a value that is written out already.
    pub fn duplicate_shown(path: &Path, shown: &str) -> Self {
        Self::new(ErrorKind::Duplicate, path, None, shown)
    }

    /// `Forbidden: detail`
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, path, None, detail)
    }

    /// `Too long: may not be more than N bytes`
    pub fn too_long(path: &Path, max_bytes: usize) -> Self {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        Self::new(ErrorKind::TooLong, path, None, format!("may not be more than {max_bytes} {unit}"))
    }

    /// `Too many: <actual>: must have at most N items`
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(ErrorKind::TooMany, path, Some(actual.into()), format!("must have at most {max} {unit}"))
    }

    /// `Not found: <value>`
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, path, Some(value.into()), "")
    }

    /// `Internal error: detail`
    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, path, None, detail)
    }

    /// The message without the field, as a `Status` cause carries it.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if let Some(value) = &self.value {
            // `Value` prints strings quoted and compounds as JSON, which is what upstream does.
            let shown = value.to_string();
            text.push_str(": ");
            match value {
                Value::Array(_) | Value::Object(_) => text.push_str(&golang::escaped(shown)),
                _ => text.push_str(&shown),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// All broken rules of one object, in the order found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ErrorList(Vec<FieldError>);

impl ErrorList {
    /// An empty list.
    pub fn new() -> Self {
        ErrorList::default()
    }

    /// Adds one error.
    pub fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// Adds `Invalid value` once for each message in `details` (the form the name checks return).
    pub fn invalid_each(&mut self, path: &Path, value: &str, details: Vec<String>) {
        self.0.extend(details.into_iter().map(|d| FieldError::invalid(path, value, d)));
    }

    /// True when nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of errors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The errors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }
}

impl Extend<FieldError> for ErrorList {
    fn extend<I: IntoIterator<Item = FieldError>>(&mut self, iter: I) {
        self.0.extend(iter);
    }
}

impl IntoIterator for ErrorList {
    type Item = FieldError;
    type IntoIter = std::vec::IntoIter<FieldError>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<FieldError> for ErrorList {
    fn from_iter<I: IntoIterator<Item = FieldError>>(iter: I) -> Self {
        ErrorList(iter.into_iter().collect())
    }
}

impl From<FieldError> for ErrorList {
    fn from(error: FieldError) -> Self {
        ErrorList(vec![error])
    }
}

impl fmt::Display for ErrorList {
    /// One error plainly, several as `[a, b]`; equal texts once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = Vec::with_capacity(self.0.len());
        for error in &self.0 {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        let image = Path::new("spec").child("containers").index(0).child("image");
        let check = |error: FieldError, want: &str| assert_eq!(error.to_string(), want);
        check(FieldError::required(&image, ""), "spec.containers[0].image: Required value");
        check(
            FieldError::not_supported(&Path::new("a"), "x", &["A", "B"]),
            r#"a: Unsupported value: "x": supported values: "A", "B""#,
        );
        check(FieldError::invalid(&Path::new("a").key("b/c"), 3, "no"), "a[b/c]: Invalid value: 3: no");
        check(FieldError::too_many(&Path::new("a"), 4, 3), "a: Too many: 4: must have at most 3 items");
        let tagged = crate::json!({"k": "<x>"});
        check(
            FieldError::invalid(&Path::new("a"), tagged, "no"),
            r#"a: Invalid value: {"k":"\u003cx\u003e"}: no"#,
        );
        let mut list = ErrorList::from(FieldError::duplicate(&Path::new("a"), "x"));
        list.push(FieldError::duplicate(&Path::new("a"), "x"));
        assert_eq!(list.to_string(), r#"a: Duplicate value: "x""#);
        list.push(FieldError::too_long(&Path::new("b"), 63));
        assert_eq!(
            list.to_string(),
            r#"[a: Duplicate value: "x", b: Too long: may not be more than 63 bytes]"#
        );
    }
}
