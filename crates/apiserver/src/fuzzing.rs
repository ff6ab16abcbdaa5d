//! What fuzz targets need of this crate and nobody else does.

use coxswain_meta::json::json;
use coxswain_meta::structural::Structural;
use coxswain_meta::{ErrorList, Path};

use crate::cel::definition::check_rules;
use crate::cel::schema::Rules;
use crate::cel::typing::Environment;
use crate::cel::{Budget, Expression, Scope};

/// Compiles and evaluates an expression without variables, then as the rule of a schema: what it may cost, and what it says.
pub fn evaluate(source: &str) {
    let _ = Expression::compile(source, &Environment::default()).eval(&Scope::empty(), &mut Budget::one());
    let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": source}], "properties": {
        "text": {"type": "string"}, "time": {"type": "string", "format": "date-time"}, "number": {"type": "integer"},
        "list": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 9}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}}}});
    let schema = Structural::parse(&schema, &Path::root(), &mut ErrorList::new());
    check_rules(&schema, &Path::root(), false, &mut ErrorList::new());
    let object = json!({"text": "a", "time": "2026-01-02T03:04:05Z", "number": 7, "list": ["a", "b"], "map": {"a": 1}});
    Rules::compile(&schema).check(&schema, &object, Some(&object));
}
