//! Expressions as Kubernetes' documentation shows them.

use coxswain_meta::field::{ErrorList, Path};
use coxswain_meta::structural::Structural;
use serde_json::json;

use super::*;

fn holds(source: &str, object: &Value) -> Result<bool, String> {
    let mut scope = Scope::empty();
    scope.set("object", of_json(object));
    Expression::compile(source, &["object"]).is_true(&scope)
}

#[test]
fn kubernetes_functions_are_there() {
    let object = json!({"spec": {"replicas": 3, "mem": "1Gi", "names": ["a", "b"], "host": "10.1.2.3",
        "url": "https://example.com:80/path?k=v"}, "metadata": {"labels": {"x": "y"}}});
    for source in [
        "object.spec.replicas <= 5 && object.spec.replicas * 2 == 6",
        "has(object.metadata.labels) && !has(object.metadata.annotations)",
        "object.metadata.labels.all(k, k.startsWith('x'))",
        "quantity(object.spec.mem).isGreaterThan(quantity('500Mi'))",
        "quantity('1').add(quantity('1')).compareTo(quantity('2')) == 0",
        "object.spec.names.isSorted() && object.spec.names.indexOf('b') == 1",
        "[1, 2, 3].sum() == 6 && [3, 1].min() == 1",
        "cidr('10.0.0.0/8').containsIP(ip(object.spec.host)) && ip('::1').family() == 6",
        "isURL(object.spec.url) && url(object.spec.url).getHostname() == 'example.com' && url(object.spec.url).getPort() == '80'",
        "'abc123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]').size() == 2",
        "object.spec.names.exists(n, n == 'a') && object.spec.names.map(n, n + '!') == ['a!', 'b!']",
        "object.?spec.?nothing.orValue(7) == 7",
        "sets.contains(['a', 'b'], object.spec.names)",
        "'%s has %d'.format(['x', 3]) == 'x has 3' && 'A'.lowerAscii() == 'a'",
        "duration('1h') < duration('90m') && timestamp('2020-01-01T00:00:00Z') < timestamp('2021-01-01T00:00:00Z')",
    ] {
        assert_eq!(holds(source, &object), Ok(true), "{source}");
    }
    assert_eq!(holds("object.spec.nothing == 1", &object), Err("no such key: nothing".into()));
    assert!(holds("object.spec.", &object).is_err());
    assert!(
        holds("unknown.x", &object)
            .unwrap_err()
            .starts_with("compilation failed: ERROR: <input>:1:1: undeclared reference")
    );
    let long: Vec<i64> = (0..2000).collect();
    let cost = holds("object.all(a, object.all(b, object.all(c, a == a)))", &json!(long));
    assert_eq!(cost, Err("operation cancelled: actual cost limit exceeded".into()));
}

#[test]
fn schemas_have_rules() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is too large'"},
            {"rule": "!has(oldSelf.max) || self.max >= oldSelf.max", "message": "max may not shrink", "fieldPath": ".max", "reason": "FieldValueForbidden"}],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 100"}]}}}}});
    let mut errors = ErrorList::new();
    let schema = Structural::parse(&schema, &Path::root(), &mut errors);
    schema::check_rules(&schema, &Path::root(), &mut errors);
    assert_eq!(errors.to_string(), "[]");
    let rules = schema::Rules::compile(&schema);
    let spec = |min: i64, max: i64| json!({"spec": {"min": min, "max": max}});
    let check = |new: Value, old: Option<Value>| rules.check(&schema, &new, old.as_ref()).to_string();
    assert_eq!(check(spec(1, 2), None), "[]");
    assert_eq!(check(spec(3, 2), None), "spec: Invalid value: min 3 is too large");
    assert_eq!(check(spec(1, 2), Some(spec(1, 5))), "spec.max: Forbidden: max may not shrink");
    assert_eq!(check(spec(1, 200), None), "spec.max: Invalid value: 200: failed rule: self < 100");
}

#[test]
fn objects_can_be_written() {
    let mut scope = Scope::empty();
    scope.set("object", of_json(&json!({"metadata": {"labels": {}}})));
    for (source, value) in [
        ("Object{spec: Object.spec{replicas: 3}}", json!({"spec": {"replicas": 3}})),
        (
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'x'}]",
            json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "x"}]),
        ),
    ] {
        let written = Expression::compile(source, &["object"]).eval(&scope).map(|value| to_json(&value));
        assert_eq!(written, Ok(Some(value)), "{source}");
    }
}
