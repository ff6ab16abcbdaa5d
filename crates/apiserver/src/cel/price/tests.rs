//! What evaluations cost: the counts are those of cel-go with Kubernetes' libraries (1.36) for the same expressions.

use std::time::Duration;

use coxswain_meta::json::json;

use crate::cel::*;

/// What this thread has computed so far, however busy the machine is.
fn computed() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    Duration::from_nanos(told.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number"))
}

fn scope() -> Scope<'static> {
    let mut scope = Scope::empty();
    let values = json!({"s": "hello world, this is a text of fifty-one letters", "n": 7,
        "l": ["a", "bb", "ccc", "dddddddddddddddddddddd"], "li": [5, 4, 3, 2, 1], "m": {"a": "x", "b": "y"}, "b": true});
    let mut object = values.clone();
    object["d"] = json!({"e": {"f": 1}});
    for (name, value) in values.as_object().into_iter().flatten() {
        scope.set(name, of_json(value));
    }
    scope.set("object", of_json(&object));
    scope
}

/// Expressions, and what cel-go says they cost.
const COSTS: &[(&str, u64)] = &[
    ("n", 1),
    ("s == 'a'", 2),
    ("s == ''", 1),
    ("n == 7", 2),
    ("object.n == 7", 3),
    ("object.d.e.f == 1", 5),
    ("has(object.d)", 1),
    ("has(object.d.e.f)", 3),
    ("!has(object.zz)", 2),
    ("has(object.zz) && object.zz == 1", 1),
    ("b ? object.d.e.f : n", 4),
    ("b ? n : object.n", 1),
    ("b ? n + 1 : 2", 3),
    ("b ? 'a' : 'b'", 1),
    ("l[0]", 2),
    ("li[n - 3]", 4),
    ("li[li[4]]", 3),
    ("l[size(l) - 1]", 5),
    ("m['a']", 2),
    ("m.a", 2),
    ("object.m['a'] == 'x'", 4),
    ("object.l[0] == object.l[1]", 7),
    ("-n", 2),
    ("-1 == n", 2),
    ("[1, 2, 3]", 0),
    ("[n, 2]", 11),
    ("{'a': 1}", 0),
    ("{'a': n}", 31),
    ("n in [1, 2, 7]", 1),
    ("n in []", 0),
    ("n in li", 7),
    ("'a' in l", 5),
    ("object.n in object.li", 5),
    ("'a' in m", 2),
    ("'a' in object.m", 3),
    ("'a' in object.l", 3),
    ("duration('1h') < duration('2h')", 1),
    ("int('5') == n", 2),
    ("string(n) == '7'", 3),
    ("l.all(x, x.startsWith('a'))", 14),
    ("l.all(x, true)", 14),
    ("l.all(x, size(x) > 0)", 26),
    ("li.all(x, x > 0)", 27),
    ("li.exists(x, x == 1)", 32),
    ("li.exists(x, x == 5)", 11),
    ("li.exists_one(x, x == 1)", 15),
    ("li.map(x, x * 2)", 72),
    ("li.map(x, 1)", 12),
    ("li.map(x, x > 2, x * 2)", 54),
    ("li.filter(x, x > 2)", 51),
    ("li.filter(x, x > 2)[0]", 53),
    ("li.filter(x, x > 2).size()", 52),
    ("l.all(x, l.exists(y, x == y))", 103),
    ("m.all(k, m[k] != '')", 12),
    ("m.all(k, v, v != '')", 10),
    ("li.all(i, v, i < v + 10)", 37),
    ("li.transformList(i, v, i + v)", 77),
    ("m.transformMap(k, v, v + 'x')", 12),
    ("object.?d.?e.orValue(1)", 3),
    ("object.?zz.?e.hasValue()", 2),
    ("object.?n.optMap(x, x + 1).orValue(5) == 8", 10),
    ("object[?'n'].orValue(1)", 2),
    ("s + 'abc'", 7),
    ("object.s + 'abc'", 8),
    ("object.s + object.s", 5),
    ("s < 'abc'", 2),
    ("object.s < object.s", 5),
    ("object.s < 'a'", 3),
    ("s.matches('^[a-z]+$')", 11),
    ("object.s.matches('^[a-z]+$')", 12),
    ("s.contains('text of')", 6),
    ("s.startsWith('hello')", 6),
    ("object.s.endsWith('x')", 7),
    ("s.size()", 2),
    ("s.lowerAscii()", 6),
    ("s.replace('o', '0')", 11),
    ("s.split(' ')", 11),
    ("l.join(',')", 8),
    ("'%s has %d'.format([s, n])", 13),
    ("'%s 2026'.format(['a'])", 1),
    ("s.substring(3)", 6),
    ("s.indexOf('w')", 5),
    ("s.charAt(2)", 2),
    ("strings.quote(s)", 6),
    ("quantity('5Gi').isGreaterThan(quantity('4Gi'))", 3),
    ("quantity('5') == quantity('5')", 3),
    ("ip('10.0.0.1').family() == 4", 3),
    ("cidr('10.0.0.0/8').containsIP('10.1.1.1')", 3),
    ("cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))", 6),
    ("url('https://a.b/c').getHost() == 'a.b'", 4),
    ("li.sum() == 15", 7),
    ("li.isSorted()", 6),
    ("l.min()", 3),
    ("li.indexOf(3)", 6),
    ("lists.range(4)", 15),
    ("li.slice(1, 3)", 14),
    ("li.sort()", 62),
    ("l.sort()", 45),
    ("li.reverse()", 17),
    ("li.distinct()", 62),
    ("[li, li].flatten()", 25),
    ("li + li", 3),
    ("object.li + object.li", 5),
    ("sets.contains(li, [1])", 7),
    ("sets.intersects([1, 2], li)", 12),
    ("sets.equivalent(li, li)", 53),
    ("s.find('[a-z]+')", 11),
    ("s.findAll('[a-z]+')", 11),
    ("s.findAll('[a-z]+', 2)", 11),
    ("format.dns1123Label().validate(s).hasValue()", 43),
    ("semver('1.2.3').major() == 1", 3),
    ("type(n) == int", 3),
    ("dyn(n) == 7", 3),
    ("[[n], [2]][0][0] == 7", 25),
    ("timestamp('2020-01-01T00:00:00Z').getFullYear() == 2020", 2),
    ("n > 1 && n < 10 || n == 3", 4),
    ("n > 100 || n == 7", 4),
    ("li == li", 3),
    ("object.li == object.li", 5),
    ("m == m", 3),
    ("(b ? object.d : object.m).e", 3),
    ("[1, 2][0] == 1", 3),
    ("{'a': 1}.a == 1", 3),
    ("optional.of(n).value()", 3),
    ("object.l.all(x, x != '')", 19),
    ("object.l.exists(x, x == 'bb')", 18),
    ("object.l.map(x, x + x)", 63),
    ("isQuantity('5')", 1),
    ("isURL(s)", 2),
    ("object.zz == 1 || n == 7", 5),
    ("object.?d", 2),
    ("object.?d.e.f", 4),
    ("object.d.?e.?f.orValue(1)", 4),
    ("object.d.?e.f.orValue(1)", 4),
    ("object.?d.?e.?f", 4),
    ("object.?d.e.?f", 4),
    ("l[?0].orValue('x')", 2),
    ("m[?'a'].hasValue()", 3),
    ("m[?s].hasValue()", 2),
    ("object.d[?'e'].f", 4),
    ("object.?l[0]", 3),
    ("object.?l[n]", 2),
    ("object.?zz.e.f", 1),
    ("object.?n.optMap(x, x + 1)", 9),
    ("optional.of(object.d).e", 5),
    ("optional.of(object.d).?e.f", 6),
    ("object.?d.hasValue() && object.?d.e.f.value() == 1", 9),
    ("has(object.zz.f) || true", 1),
    ("object.li[-1] == 3 || true", 4),
    ("object.li[0] / 0 == 1 || n == 7", 7),
    ("object.zz.startsWith('a') || true", 3),
    ("size(object.zz) > 1 || true", 4),
    ("!object.zz || true", 3),
    ("object.l.exists(x, object.zz == 1 || x == 'bb')", 24),
    ("l.exists_one(x, x == 'a')", 13),
    ("l.all(x, x in object.l)", 30),
    ("l.all(x, x in ['a', 'bb', 'ccc', 'd'])", 18),
    ("type(object.n) == int", 4),
    ("timestamp('2020-01-01T00:00:00Z') - timestamp('2019-01-01T00:00:00Z') > duration('1h')", 2),
    ("format.dns1123Subdomain().validate(s).hasValue()", 78),
    ("format.qualifiedName().validate(s).hasValue()", 78),
    ("format.labelValue().validate(s).hasValue()", 53),
    ("format.uri().validate(s).hasValue()", 1383),
    ("format.uuid().validate(s).hasValue()", 93),
    ("format.byte().validate(s).hasValue()", 108),
    ("format.date().validate(s).hasValue()", 93),
    ("format.datetime().validate(s).hasValue()", 93),
    ("format.dns1035Label().validate(s).hasValue()", 43),
    ("format.dns1123LabelPrefix().validate(s).hasValue()", 43),
    ("format.dns1123SubdomainPrefix().validate(s).hasValue()", 78),
    ("format.dns1035LabelPrefix().validate(s).hasValue()", 43),
    ("l.transformList(i, v, i > 0, v + 'x')", 54),
    ("m.transformMap(k, v, v != 'x', v + 'x')", 11),
    ("m.exists(k, v, v == 'y')", 14),
    ("li.map(x, [x])", 117),
    ("li.map(x, {'a': x})", 217),
    ("li.map(x, x + n).exists(y, y == 9)", 105),
    ("[1, 2, 3].all(x, x > 0)", 16),
    ("[n, n].all(x, x > 0)", 23),
    ("{'a': n}.all(k, k == 'a')", 37),
    ("li.all(x, x > 0 && x < 10)", 37),
    ("li.all(x, x > 0 || x < 10)", 27),
    ("li.all(x, !(x < 0))", 32),
    ("l.all(x, x.matches('^[a-z]*$'))", 30),
    ("object.l.filter(x, x.size() > 1).map(x, x + '!').join(',')", 106),
    ("b && n > 1 ? l[0] : l[1]", 4),
    ("string(object.n) + s", 9),
    ("bytes(s).size()", 7),
    ("object.m.map(k, object.m[k])", 33),
    ("object.d.e.f in [1, 2]", 4),
    ("li[li.size() - 1] == 1", 6),
    ("li[object.d.e.f] == 4", 6),
    ("object.li[object.d.e.f] == 4", 7),
    ("object.li[n - 6] == 4", 6),
    ("object.m[l[0]] == 'x'", 5),
    ("dyn(object).d.e.f == 1", 7),
];

#[test]
fn evaluations_cost_what_they_cost_upstream() {
    let scope = scope();
    let mut wrong = Vec::new();
    for (source, expected) in COSTS {
        // No schema says what an object is; the types of the other variables are known.
        let untyped = source.contains("object");
        let expression = Expression::parse(source, untyped);
        let mut budget = Budget::one();
        let value = expression.eval(&scope, &mut budget);
        if budget.spent_of_one() != *expected || value.is_err() {
            wrong.push(format!("{source}: {} instead of {expected}, {value:?}", budget.spent_of_one()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_expression_holds_a_thread_or_eats_memory() {
    let numbers: Vec<u64> = (0..60_000).collect();
    let mut scope = Scope::empty();
    scope.set("object", of_json(&json!({"l": numbers, "s": "x".repeat(1 << 20), "two": [1, 2]})));
    let chain = |first: &str, next: &dyn Fn(&str) -> String, count: usize, last: &str| {
        let mut source = format!("cel.bind(v0, {first}, ");
        for at in 1..=count {
            source += &format!("cel.bind(v{at}, {}, ", next(&format!("v{}", at - 1)));
        }
        source + &last.replace('V', &format!("v{count}")) + &")".repeat(count + 1)
    };
    let attacks = [
        "object.l.all(a, object.l.all(b, object.l.all(c, true)))".to_owned(),
        "cel.bind(l, object.l, l.all(a, l.all(b, l.all(c, true))))".to_owned(),
        "object.l.exists(a, object.l.exists(b, a + b < 0))".to_owned(),
        "object.l.all(a, object.zz || object.l.all(b, object.zz))".to_owned(),
        "lists.range(1000).all(a, lists.range(1000).all(b, lists.range(1000).all(c, true)))".to_owned(),
        "lists.range(9223372036854775807).size() > 0".to_owned(),
        "object.l.all(a, [object.l] == [object.l])".to_owned(),
        "object.l.all(a, size(object.s) > 0)".to_owned(),
        "object.l.map(a, object.s + string(a)).size() > 0".to_owned(),
        "object.l.map(a, [a, a]).map(a, [a, a]).map(a, [a, a]).map(a, [a, a]).size() > 0".to_owned(),
        "object.l.all(a, !object.s.matches('^(x{1,100}){1,100}y' + string(a)))".to_owned(),
        "object.s.split('').map(a, object.s.split('')).size() > 0".to_owned(),
        "'%.2000000000f'.format([1.0]) == ''".to_owned(),
        "object.s.replace('', object.s) == ''".to_owned(),
        "object.s.split('').join(object.s) == ''".to_owned(),
        chain("object.s", &|v| format!("{v} + {v}"), 40, "V == ''"),
        chain("object.s", &|v| format!("'%s%s'.format([{v}, {v}])"), 40, "V == ''"),
        chain("object.l", &|v| format!("{v} + {v}"), 40, "V == []"),
        chain("object.two", &|v| format!("[{v}, {v}]"), 60, "V == [V]"),
        chain("object.two", &|v| format!("[{v}, {v}]"), 60, "V.flatten(70) == []"),
        chain("object.two", &|v| format!("[{v}, {v}]"), 60, "V in [V]"),
        chain("object.two", &|v| format!("{{'a': {v}, 'b': {v}}}"), 60, "V"),
        chain("object.two", &|v| format!("[{v}, {v}]"), 60, "'%s'.format([V]) == ''"),
        format!("optional.of(1){}.hasValue()", ".optMap(x, x)".repeat(200)),
    ];
    for source in attacks {
        let began = computed();
        let expression = Expression::compile(&source, &typing::POLICY);
        let value = expression.eval(&scope, &mut Budget::one());
        let is_refused = matches!(value, Err(Failure::Cancelled | Failure::Uncompiled(_)));
        assert!(is_refused, "{}: {:?}", &source[..source.len().min(90)], value.map(|value| value.cel_type()));
        let took = computed() - began;
        eprintln!("{took:?} {}", &source[..source.len().min(90)]);
        assert!(took < Duration::from_secs(10), "{} took {took:?}", &source[..source.len().min(90)]);
    }
}

#[test]
fn a_macro_does_not_copy_what_it_gathers() {
    let numbers: Vec<u64> = (0..60_000).collect();
    let mut scope = Scope::empty();
    scope.set("object", of_json(&json!(numbers)));
    let began = computed();
    let size = Expression::compile("object.map(a, a + 1).size() == 60000", &typing::POLICY);
    assert_eq!(size.is_true(&scope, &mut Budget::rules()), Ok(true));
    let took = computed() - began;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_budget_is_shared() {
    let scope = scope();
    let costly =
        Expression::compile("lists.range(1000).all(a, lists.range(40).all(b, a + b >= 0))", &typing::POLICY);
    let mut budget = Budget::conditions();
    let outcomes: Vec<_> = (0..9).map(|_| costly.is_true(&scope, &mut budget)).collect();
    let paid = outcomes.iter().filter(|outcome| **outcome == Ok(true)).count();
    assert!((1..9).contains(&paid), "{outcomes:?}");
    assert!(outcomes[paid..].iter().all(|outcome| *outcome == Err(Failure::OutOfBudget)), "{outcomes:?}");
    let conditions = json!(
        (0..9).map(|n| json!({"name": n.to_string(), "expression": costly.source()})).collect::<Vec<_>>()
    );
    let why = "validation failed due to running out of cost budget, no further validation rules will be run";
    assert_eq!(Conditions::parse(&conditions).hold(&scope), Err(why.into()));
}

#[test]
fn composed_variables_are_evaluated_when_they_are_looked_at() {
    let compile = |source: &str| Expression::compile(source, &typing::POLICY);
    let list = [
        ("first".to_owned(), compile("object.n + 1")),
        ("second".to_owned(), compile("variables.first * 2")),
        ("broken".to_owned(), compile("object.zz")),
        ("circle".to_owned(), compile("variables.circle")),
    ];
    let mut scope = scope();
    scope.compose(&list);
    let mut budget = Budget::one();
    assert_eq!(compile("variables.second == 16").is_true(&scope, &mut budget), Ok(true));
    // Its own 3, and once 3 for the first and 3 for the second.
    assert_eq!(budget.spent_of_one(), 9);
    let value =
        |source: &str| compile(source).eval(&scope, &mut Budget::one()).map_err(|why| why.to_string());
    let why = "composited variable \"broken\" fails to evaluate: no such key: zz";
    assert_eq!(value("variables.broken"), Err(why.into()));
    assert!(value("variables.circle").is_err());
}
