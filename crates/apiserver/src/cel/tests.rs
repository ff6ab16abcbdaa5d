//! Expressions as Kubernetes' documentation shows them.

use coxswain_meta::field::{ErrorList, Path};
use coxswain_meta::json::{Map, json};
use coxswain_meta::structural::Structural;

use super::*;

fn holds(source: &str, object: &Value) -> Result<bool, String> {
    let mut scope = Scope::empty();
    scope.set("object", of_json(object));
    Expression::compile(source, &typing::POLICY)
        .is_true(&scope, &mut Budget::one())
        .map_err(|why| why.to_string())
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
        "!format.dns1123Label().validate('a-b').hasValue() && format.dns1123Label().validate('A').value().size() == 1",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format'] && !format.named('x').hasValue()",
        "!format.dns1123LabelPrefix().validate('a-').hasValue() && format.uri().validate('::').hasValue() && format.byte() == format.byte()",
        "isSemver('1.2.3-rc.1+b') && !isSemver('v1.2') && isSemver('v1.02', true) && semver('v1.2', true) == semver('1.2.0')",
        "semver('1.2.3-rc.1').isLessThan(semver('1.2.3')) && semver('1.10.0').compareTo(semver('1.9.0')) == 1 && semver('1.2.3').minor() == 2",
        "lists.range(4).reverse() == [3, 2, 1, 0] && [1, 2, 3].slice(1, 3) == [2, 3] && [[[1], [2]], [[3]]].flatten(2) == [1, 2, 3]",
        "[3, 1, 2].sortBy(n, -n) == [3, 2, 1] && ['bb', 'a'].sortBy(s, s.size()).first().value() == 'a' && [1, 2].last() == optional.of(2)",
        "{'a': 1, 'b': 2}.transformMapEntry(k, v, v > 1, {v: k}) == {2: 'b'} && ['x'].transformMapEntry(i, v, {v: i}) == {'x': 0}",
        "[optional.of(1), optional.none()].unwrapOpt() == [1] && optional.unwrap([optional.of('a')]) == ['a']",
        "'%s has %d'.format(['x', 3]) == 'x has 3' && 'A'.lowerAscii() == 'a'",
        "duration('1h') < duration('90m') && timestamp('2020-01-01T00:00:00Z') < timestamp('2021-01-01T00:00:00Z')",
    ] {
        assert_eq!(holds(source, &object), Ok(true), "{source}");
    }
    assert_eq!(holds("object.spec.nothing == 1", &object), Err("no such key: nothing".into()));
    assert!(holds("object.spec.", &object).is_err());
    assert!(holds("unknown.x", &object).unwrap_err().starts_with(
        "compilation failed: ERROR: <input>:1:1: undeclared reference to 'unknown' (in container '')"
    ));
    let long: Vec<i64> = (0..2000).collect();
    let cost = holds("object.all(a, object.all(b, object.all(c, a == a)))", &json!(long));
    assert_eq!(cost, Err("operation cancelled: actual cost limit exceeded".into()));
    let unbounded = "lists.range(1000).all(a, lists.range(1000).all(b, lists.range(1000).all(c, true)))";
    for source in [unbounded, "lists.range(9223372036854775807).size() > 0"] {
        let cost = holds(source, &json!({}));
        assert_eq!(cost, Err("operation cancelled: actual cost limit exceeded".into()), "{source}");
    }
}

#[test]
fn schemas_have_rules() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'min %d is too large'.format([self.min])"},
            {"rule": "!has(oldSelf.max) || self.max >= oldSelf.max", "message": "max may not shrink", "fieldPath": ".max", "reason": "FieldValueForbidden"}],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 100"}]}}}}});
    let mut errors = ErrorList::new();
    let schema = Structural::parse(&schema, &Path::root(), &mut errors);
    definition::check_rules(&schema, &Path::root(), false, &mut errors);
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
        let written = Expression::compile(source, &typing::POLICY)
            .eval(&scope, &mut Budget::one())
            .map(|value| to_json(&value));
        assert_eq!(written, Ok(Some(value)), "{source}");
    }
}

/// What a definition with a schema is told. The texts and factors below are kube-apiserver's (1.36) answers to the same.
fn told(schema: Value) -> Vec<String> {
    let mut errors = ErrorList::new();
    let schema = Structural::parse(&schema, &Path::root(), &mut errors);
    definition::check_rules(&schema, &Path::root(), false, &mut errors);
    errors.iter().map(ToString::to_string).collect()
}

fn limited(inner: Value, most: u64) -> Value {
    json!({"type": "array", "items": inner, "maxItems": most})
}

fn spec(inner: Value) -> Value {
    json!({"type": "object", "properties": {"spec": inner}})
}

#[test]
fn rules_cost_what_upstream_says() {
    let text = |most: u64| json!({"type": "string", "maxLength": most});
    let open = |inner: Value| json!({"type": "array", "items": inner});
    let map = |inner: Value, most: u64| json!({"type": "object", "additionalProperties": inner, "maxProperties": most});
    let number = json!({"type": "integer"});
    let item = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": number, "c": text(20)}});
    let properties = json!({
        "s": {"type": "string"}, "s10": text(10), "s100": text(100), "s1000": text(1000), "l": open(json!({"type": "string"})),
        "li": open(number.clone()), "lo": open(item), "l10": limited(text(10), 10), "l100": limited(text(100), 100),
        "l1000": limited(text(63), 1000), "ll": limited(limited(number.clone(), 100), 100), "b": {"type": "boolean"},
        "mm": map(map(text(5), 5), 5), "ml": map(limited(text(10), 10), 10), "n": number,
        "ios": {"x-kubernetes-int-or-string": true}});
    let ruled = |rule: &str| json!({"type": "object", "properties": properties, "x-kubernetes-validations": [{"rule": rule}]});
    let factor = |schema: Value| {
        let told = told(schema).into_iter().find(|text| text.contains("estimated rule cost exceeds"));
        told.and_then(|text| Some(text.split_once("factor of ")?.1.split_once(" (try")?.0.to_owned()))
    };
    let too_much = |factor: &str| Some(factor.to_owned());
    for (rule, expected) in [
        ("self.l.map(x, x).size() > 0", "1.363149x"),
        ("self.l.filter(x, x == 'a').size() > 0", "1.6x"),
        ("self.l1000.all(x, self.l1000.exists(y, x == y))", "3.2x"),
        ("self.l1000.all(x, self.l1000.exists_one(y, x == y))", "3.0x"),
        ("self.l1000.all(x, oldSelf.l1000.exists(y, x == y))", "3.2x"),
        ("self.li.all(x, x > 0 && x < 10)", "1.101004x"),
        ("self.lo.map(x, x.a).all(y, y == 'abc')", "1.9x"),
        ("self.lo.map(x, x.c).all(y, y.startsWith('abc'))", "2.0x"),
        ("self.lo.filter(x, x.b > 0).map(x, x.c).size() > 3", "3.1x"),
        ("self.s.split(',').all(x, x == 'a')", "1.321205x"),
        ("self.?l.orValue([]).all(x, x == 'a')", "more than 100x"),
        ("quantity(self.s10) != quantity('5')", "more than 100x"),
    ] {
        assert_eq!(factor(ruled(rule)), too_much(expected), "{rule}");
    }
    for (rule, expected) in [
        ("self.s1000.matches('^[a-z]+([0-9]{3,5}|foo|bar)$')", "28.1x"),
        ("self.l100.all(x, x.startsWith('a'))", "5.0x"),
        ("self.l10.map(x, x + x).all(y, y.matches('[a-z]+'))", "2.9x"),
        ("self.mm.all(k, self.mm[k].all(j, self.mm[k][j] == 'aaaaaa'))", "2.9x"),
        ("self.ml.all(k, self.ml[k].all(j, j == k))", "5.8x"),
        ("self.l100.isSorted()", "41.0x"),
        ("self.s1000.lowerAscii().contains('abc')", "8.0x"),
        ("self.s10.replace('', 'bbbbbbbbbbbb').contains('abcdefghijklm')", "1.180000x"),
        ("self.s100.replace(self.s10, self.s10).contains('abcdefghijklm')", "33.7x"),
        ("self.l10.join(',').contains('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')", "2.1x"),
        ("isIP(self.s100) && ip(self.s100) == ip(self.s100)", "1.270000x"),
        ("self.ll.flatten().all(x, x > 0)", "6.1x"),
        ("(self.b ? self.l10 : self.l100).all(x, x == 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')", "4.0x"),
        ("dyn(self.l100).all(x, x == 'a')", "4.0x"),
    ] {
        assert_eq!(factor(spec(limited(ruled(rule), 100_000))), too_much(expected), "{rule}");
    }
    // Without a limit, as many as fit into a request.
    assert_eq!(factor(spec(open(ruled("self.l100.all(x, x == 'a')")))), too_much("52.7x"));
    assert_eq!(factor(spec(limited(ruled("has(self.s) && self.n > 1"), 1_000_000))), None);
}

#[test]
fn a_schema_may_not_cost_too_much_in_all() {
    let rule = json!({"rule": "self.matches('^[a-z]+([0-9]{3,5}|foo|bar)$')"});
    let text = json!({"type": "string", "maxLength": 1000, "x-kubernetes-validations": [rule]});
    let lists: Map = (0..14).map(|n| (format!("f{n}"), limited(text.clone(), 400 + n * 1000))).collect();
    let told = told(json!({"type": "object", "properties": lists}));
    let cost = |n: u64| (400 + n * 1000) * (401 * 7 + 1);
    let expensive = (0..14).filter(|n| cost(*n) > 10_000_000).count();
    assert_eq!(told.len(), expensive + 4 + 1);
    let most = "properties[f13].items.x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
    assert_eq!(told[expensive], most);
    let total = (0..14).map(cost).sum::<u64>() as f64 / 100_000_000.0;
    let whole = format!(
        "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of {total:.1}x"
    );
    assert!(told[told.len() - 1].contains(&whole), "{told:?}");
}

#[test]
fn rules_fit_their_schema() {
    let of = |rule: Value| {
        told(spec(json!({"type": "object", "x-kubernetes-validations": [rule],
        "properties": {"s": {"type": "string"}, "i": {"type": "integer"}}})))
    };
    let shown = |rule: &str, message: &str| {
        format!(
            "Invalid value: {{\"Rule\":\"{rule}\",\"Message\":\"\",\"MessageExpression\":\"{message}\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}}: "
        )
    };
    let at = "properties[spec].x-kubernetes-validations[0]";
    assert_eq!(
        of(json!({"rule": "self.s"})),
        [format!("{at}.rule: {}cel expression must evaluate to a bool", shown("self.s", ""))]
    );
    assert_eq!(
        of(json!({"rule": "self.i == 1", "messageExpression": "self.i"})),
        [format!(
            "{at}.messageExpression: {}messageExpression must evaluate to a string",
            shown("self.i == 1", "self.i")
        )]
    );
    let missing = of(json!({"rule": "self.nope == self.s.length"}));
    assert!(missing[0].contains("ERROR: <input>:1:5: undefined field 'nope'\n | self.nope == self.s.length\n | ....^\nERROR: <input>:1:20: type 'string' does not support field selection"), "{missing:?}");
    let old = told(spec(
        json!({"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf"}]}, "maxItems": 3}),
    ));
    assert_eq!(
        old,
        [
            "properties[spec].items.x-kubernetes-validations[0].rule: Invalid value: \"self > oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within properties[spec]"
        ]
    );
}

#[test]
fn the_deepest_expressions_that_fit_do_not_end_the_server() {
    let around = |open: &str, inner: &str, close: &str| {
        let count = (LONGEST_BYTES - inner.len()) / (open.len() + close.len());
        format!("{}{inner}{}", open.repeat(count), close.repeat(count))
    };
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let environment = Environment::default().with("self", Type::Dyn).with("oldSelf", Type::Dyn);
    for (source, is_refused) in [
        (around("(", "1", ")"), true),
        (around("(", "", ""), true),
        (around("[", "1", "]"), true),
        (around("{1:", "1", "}"), true),
        (around("size(", "self", ")"), true),
        (around("true?true:", "true", ""), true),
        (around("", "1", "+1"), true),
        (around("", "self", ".a"), true),
        (around("", "self", "[0]"), true),
        (around("!", "true", ""), false),
        (around("-", "1", ""), false),
        (around("", "true", "||true"), false),
        (around("", "true", "&&true"), false),
        (around("", "a", "||a"), true),
    ] {
        let expression = Expression::compile(&source, &environment);
        assert_eq!(expression.fault().is_some(), is_refused, "{}", &source[..20]);
        let _ = expression.eval(&Scope::empty(), &mut Budget::one());
        let rules = json!([{"rule": source}]);
        let mut with_rules = schema.clone();
        with_rules["x-kubernetes-validations"] = rules;
        let mut errors = ErrorList::new();
        let structural = Structural::parse(&with_rules, &Path::new("schema"), &mut errors);
        definition::check_rules(&structural, &Path::new("schema"), false, &mut errors);
        assert_eq!(errors.is_empty(), matches!(source.get(..5), Some("!!!!!" | "true|" | "true&")));
    }
}

/// The texts are kube-apiserver's (1.36) answers to the same.
#[test]
fn expressions_of_policies_fit_their_places() {
    let told = |plural: &str, spec: Value| -> Vec<String> {
        let errors = check::expressions("admissionregistration.k8s.io", plural, &json!({"spec": spec}));
        errors.iter().map(ToString::to_string).collect()
    };
    let validations =
        |list: &[&str]| -> Vec<Value> { list.iter().map(|e| json!({"expression": e})).collect() };
    let of = |name: &str, expression: &str| json!({"name": name, "expression": expression});
    let spec = json!({
        "variables": [of("a", "1"), of("b", "variables.a + 'x'"), of("q", "quantity('1')")],
        "validations": validations(&["object.x", "variables.a == 1", "variables.q == 1", "params.x == 1"]),
        "auditAnnotations": [{"key": "k", "valueExpression": "1"}, {"key": "n", "valueExpression": "null"}]});
    let undeclared = |source: &str, name: &str| {
        format!(
            "Invalid value: {source:?}: compilation failed: ERROR: <input>:1:1: undeclared reference to '{name}' (in container '')\n | {source}\n | ^"
        )
    };
    assert_eq!(
        told("validatingadmissionpolicies", spec),
        [
            "spec.variables[1].expression: Invalid value: \"variables.a + 'x'\": compilation failed: ERROR: <input>:1:13: found no matching overload for '_+_' applied to '(int, string)'\n | variables.a + 'x'\n | ............^".to_owned(),
            "spec.validations[0].expression: Invalid value: \"object.x\": must evaluate to bool but got dyn".to_owned(),
            format!("spec.validations[3].expression: {}", undeclared("params.x == 1", "params")),
            "spec.auditAnnotations[0].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int".to_owned(),
        ]
    );
    let spec = json!({"validations": [{"expression": "true", "messageExpression": "authorizer"}, {"expression": "variables.a"}]});
    assert_eq!(
        told("validatingadmissionpolicies", spec),
        [
            format!("spec.validations[0].messageExpression: {}", undeclared("authorizer", "authorizer")),
            format!("spec.validations[1].expression: {}", undeclared("variables.a", "variables")),
        ]
    );
    let patch = |expression: &str| json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]});
    assert_eq!(
        told(
            "mutatingadmissionpolicies",
            patch("[JSONPatch{op: 'add', path: '/' + jsonpatch.escapeKey('a')}]")
        ),
        [""; 0]
    );
    assert_eq!(
        told("mutatingadmissionpolicies", patch("JSONPatch{op: 'add'}")),
        [
            "spec.mutations[0].jsonPatch.expression: Invalid value: \"JSONPatch{op: 'add'}\": must evaluate to list(JSONPatch) but got JSONPatch"
        ]
    );
}
