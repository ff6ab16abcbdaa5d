//! Priority and fairness: FlowSchema and PriorityLevelConfiguration.

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::check::{one_of, or_null, required_one_of, texts};
use crate::table::{AGE, NAME, age, column, name, or};
use crate::value::{filled, flag, has, int, items, present, set_default, text};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const MOST_PRECEDENCE: i64 = 10_000;
const MOST_QUEUES: i64 = 10_000_000;
/// The bits of the hash that flows are dealt to queues by.
const HASH_BITS: f64 = 60.0;

pub(crate) const SCHEMA: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::status(GROUP, "v1", "FlowSchema")],
    status: true,
    columns: SCHEMA_COLUMNS,
    hooks: Hooks {
        default: |v| {
            if let Some(spec) = present(v, "spec")
                && int(spec, "matchingPrecedence").unwrap_or(0) == 0
            {
                crate::value::set(spec, "matchingPrecedence", 1000);
            }
        },
        validate: validate_schema,
        row: schema_row,
        ..Hooks::COUNTED
    },
    ..kind!("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "flowschema")
};
const SCHEMA_COLUMNS: &[Column] = &[
    NAME,
    column("PriorityLevel", "The priority level of the requests."),
    column("MatchingPrecedence", "Lower ones are asked first."),
    column("DistinguisherMethod", "What makes requests a flow."),
    AGE,
    column("MissingPL", "Whether the priority level does not exist."),
];

pub(crate) const LEVEL: Kind = Kind {
    namespaced: false,
    subresources: &[Subresource::status(GROUP, "v1", "PriorityLevelConfiguration")],
    status: true,
    columns: LEVEL_COLUMNS,
    hooks: Hooks { default: default_level, validate: validate_level, row: level_row, ..Hooks::COUNTED },
    ..kind!(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration"
    )
};
const LEVEL_COLUMNS: &[Column] = &[
    NAME,
    column("Type", "Exempt or Limited."),
    column("NominalConcurrencyShares", "Its share of the seats."),
    column("Queues", "Number of queues."),
    column("HandSize", "Queues dealt to a flow."),
    column("QueueLengthLimit", "Requests a queue holds."),
    AGE,
];

fn schema_row(schema: &Value, now: i64) -> Vec<Value> {
    let spec = &schema["spec"];
    let dangling = items(&schema["status"], "conditions").iter().find(|c| text(c, "type") == "Dangling");
    vec![
        name(schema),
        text(&spec["priorityLevelConfiguration"], "name").into(),
        int(spec, "matchingPrecedence").unwrap_or(0).into(),
        or(text(&spec["distinguisherMethod"], "type"), "<none>").into(),
        age(schema, now),
        dangling.map_or("?", |c| text(c, "status")).into(),
    ]
}

fn level_row(level: &Value, now: i64) -> Vec<Value> {
    let spec = &level["spec"];
    let queuing = &spec["limited"]["limitResponse"]["queuing"];
    let number = |object: &Value, key: &str| int(object, key).map_or("<none>".into(), Value::from);
    vec![
        name(level),
        text(spec, "type").into(),
        number(&spec["limited"], "nominalConcurrencyShares"),
        number(queuing, "queues"),
        number(queuing, "handSize"),
        number(queuing, "queueLengthLimit"),
        age(level, now),
    ]
}

fn default_level(level: &mut Value) {
    let Some(spec) = present(level, "spec") else { return };
    if let Some(exempt) = present(spec, "exempt") {
        set_default(exempt, "nominalConcurrencyShares", 0);
        set_default(exempt, "lendablePercent", 0);
    }
    let Some(limited) = present(spec, "limited") else { return };
    set_default(limited, "nominalConcurrencyShares", 30);
    set_default(limited, "lendablePercent", 0);
    if let Some(queuing) = present(limited, "limitResponse").and_then(|r| present(r, "queuing")) {
        for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if int(queuing, key).unwrap_or(0) == 0 {
                crate::value::set(queuing, key, value);
            }
        }
    }
}

fn validate_schema(schema: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&schema["spec"], Path::new("spec"));
    let precedence = int(spec, "matchingPrecedence").unwrap_or(0);
    let mut rule = |broken: bool, rule: String| {
        if broken {
            errors.push(FieldError::invalid(&path.child("matchingPrecedence"), precedence, rule));
        }
    };
    rule(precedence <= 0, "must be a positive value".into());
    rule(precedence > MOST_PRECEDENCE, format!("must not be greater than {MOST_PRECEDENCE}"));
    rule(
        precedence == 1 && crate::value::name(schema) != "exempt",
        "only the schema named 'exempt' may have matchingPrecedence 1".into(),
    );
    let method = &spec["distinguisherMethod"];
    if method.is_object() && !["ByNamespace", "ByUser"].contains(&text(method, "type")) {
        let at = path.child("distinguisherMethod.type");
        let shown = crate::schema::internal(method, "io.k8s.api.flowcontrol.v1.FlowDistinguisherMethod");
        let known = "supported values: \"ByNamespace\", \"ByUser\"";
        errors.push(FieldError::not_supported_shown(&at, &shown, known));
    }
    let level = text(&spec["priorityLevelConfiguration"], "name");
    let at = path.child("priorityLevelConfiguration.name");
    match level {
        "" => errors.push(FieldError::required(&at, "must reference a priority level")),
        level => errors.invalid_each(&at, level, names::dns1123_subdomain(level)),
    }
    for (i, rules) in items(spec, "rules").iter().enumerate() {
        validate_rules(&mut errors, rules, &path.child("rules").index(i));
    }
    errors
}

fn validate_rules(errors: &mut ErrorList, rules: &Value, path: &Path) {
    if !filled(rules, "subjects") {
        let rule = "subjects must contain at least one value";
        errors.push(FieldError::required(&path.child("subjects"), rule));
    }
    for (i, subject) in items(rules, "subjects").iter().enumerate() {
        validate_subject(errors, subject, &path.child("subjects").index(i));
    }
    if !filled(rules, "resourceRules") && !filled(rules, "nonResourceRules") {
        let rule = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(path, rule));
    }
    for (i, rule) in items(rules, "resourceRules").iter().enumerate() {
        resource_rule(errors, rule, &path.child("resourceRules").index(i));
    }
    for (i, rule) in items(rules, "nonResourceRules").iter().enumerate() {
        let at = path.child("nonResourceRules").index(i);
        verbs(errors, rule, &at);
        let urls = texts(rule, "nonResourceURLs");
        let at = at.child("nonResourceURLs");
        match urls.as_slice() {
            [] => errors.push(FieldError::required(&at, "nonResourceURLs must contain at least one value")),
            many if many.contains(&"*") => {
                alone(errors, rule, "nonResourceURLs", "non-resource URLs", &at);
            }
            many => many.iter().enumerate().for_each(|(i, url)| url_path(errors, url, &at.index(i))),
        }
    }
}

fn validate_subject(errors: &mut ErrorList, subject: &Value, path: &Path) {
    let members = [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];
    let kind = text(subject, "kind");
    let Some((_, own)) = members.iter().find(|(k, _)| *k == kind) else {
        let known = &["Group", "ServiceAccount", "User"];
        errors.push(FieldError::not_supported(&path.child("kind"), kind, known));
        return;
    };
    let at = path.child(own);
    if !has(subject, own) {
        let rule = format!("{own} is required when subject kind is '{kind}'");
        errors.push(FieldError::required(&at, rule));
    } else {
        let who = &subject[*own];
        match text(who, "name") {
            "" => errors.push(FieldError::required(&at.child("name"), "")),
            "*" => {}
            name if *own == "serviceAccount" => {
                errors.invalid_each(&at.child("name"), name, names::dns1123_subdomain(name));
            }
            _ => {}
        }
        if *own == "serviceAccount" {
            match text(who, "namespace") {
                "" => {
                    let rule = "must specify namespace for service account";
                    errors.push(FieldError::required(&at.child("namespace"), rule));
                }
                name => errors.invalid_each(&at.child("namespace"), name, names::dns1123_label(name)),
            }
        }
    }
    // Upstream looks at the others in this order, whichever is its own.
    for (other_kind, other) in [members[2], members[0], members[1]] {
        if other != *own && has(subject, other) {
            let rule = format!("{other} is forbidden when subject kind is not '{other_kind}'");
            errors.push(FieldError::forbidden(&path.child(other), rule));
        }
    }
}

fn verbs(errors: &mut ErrorList, rule: &Value, path: &Path) {
    let at = path.child("verbs");
    match texts(rule, "verbs").as_slice() {
        [] => errors.push(FieldError::required(&at, "verbs must contain at least one value")),
        many if many.contains(&"*") => alone(errors, rule, "verbs", "verbs", &at),
        many if many.iter().any(|verb| !VERBS.contains(verb)) => {
            errors.push(FieldError::not_supported(&at, rule["verbs"].clone(), VERBS));
        }
        _ => {}
    }
}

fn alone(errors: &mut ErrorList, rule: &Value, key: &str, what: &str, path: &Path) {
    let list = texts(rule, key);
    if list.len() > 1 && list.contains(&"*") {
        let message = format!("if '*' is present, must not specify other {what}");
        errors.push(FieldError::invalid(path, rule[key].clone(), message));
    }
}

fn resource_rule(errors: &mut ErrorList, rule: &Value, path: &Path) {
    verbs(errors, rule, path);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let at = path.child(key);
        if !filled(rule, key) {
            let message = format!("resource rules must supply at least one {one}");
            errors.push(FieldError::required(&at, message));
        }
        alone(errors, rule, key, many, &at);
    }
    let (at, namespaces) = (path.child("namespaces"), texts(rule, "namespaces"));
    if namespaces.is_empty() && !flag(rule, "clusterScope") {
        let message = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(FieldError::required(&at, message));
    } else if namespaces.contains(&"*") {
        alone(errors, rule, "namespaces", "namespaces", &at);
    } else {
        for (i, namespace) in namespaces.iter().enumerate() {
            for message in names::dns1123_label(namespace) {
                let message = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errors.push(FieldError::invalid(&at.index(i), *namespace, message));
            }
        }
    }
}

fn url_path(errors: &mut ErrorList, url: &str, path: &Path) {
    let rule = match url {
        "" => "must not be empty",
        "/" => return,
        url if !url.starts_with('/') => "must start with slash",
        url if url.contains(' ') => "must not contain white-space",
        url if url.contains("//") => "must not contain double slash",
        url if url.matches('*').count() > 1 || (url.contains('*') && !url.ends_with("/*")) => {
            "wildcard can only do suffix matching"
        }
        _ => return,
    };
    errors.push(FieldError::invalid(path, url, rule));
}

fn validate_level(level: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&level["spec"], Path::new("spec"));
    let kind = text(spec, "type");
    if (crate::value::name(level) == "exempt") != (kind == "Exempt") {
        let rule = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(FieldError::invalid(&path.child("type"), kind, rule));
    }
    match kind {
        "Exempt" => {
            if has(spec, "limited") {
                let rule = "must be nil if the type is not Limited";
                errors.push(FieldError::forbidden(&path.child("limited"), rule));
            }
            shares(&mut errors, &spec["exempt"], &path.child("exempt"));
            percent(&mut errors, &spec["exempt"], &path.child("exempt"));
        }
        "Limited" => {
            if has(spec, "exempt") {
                let rule = "must be nil if the type is Limited";
                errors.push(FieldError::forbidden(&path.child("exempt"), rule));
            }
            match has(spec, "limited") {
                true => validate_limited(&mut errors, &spec["limited"], &path.child("limited")),
                false => {
                    let rule = "must not be empty when type is Limited";
                    errors.push(FieldError::required(&path.child("limited"), rule));
                }
            }
        }
        _ => required_one_of(&mut errors, spec, "type", &["Exempt", "Limited"], &path),
    }
    errors
}

fn shares(errors: &mut ErrorList, part: &Value, path: &Path) {
    if let Some(n) = int(part, "nominalConcurrencyShares").filter(|n| *n < 0) {
        let at = path.child("nominalConcurrencyShares");
        errors.push(FieldError::invalid(&at, n, "must be a non-negative integer"));
    }
}

fn percent(errors: &mut ErrorList, part: &Value, path: &Path) {
    if let Some(n) = int(part, "lendablePercent").filter(|n| !(0..=100).contains(n)) {
        let rule = "must be between 0 and 100, inclusive";
        errors.push(FieldError::invalid(&path.child("lendablePercent"), n, rule));
    }
}

fn validate_limited(errors: &mut ErrorList, limited: &Value, path: &Path) {
    shares(errors, limited, path);
    let (response, at) = (&limited["limitResponse"], path.child("limitResponse"));
    match text(response, "type") {
        "Reject" if has(response, "queuing") => {
            let rule = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(&at.child("queuing"), rule));
        }
        "Reject" => {}
        "Queue" if has(response, "queuing") => queuing(errors, &response["queuing"], &at.child("queuing")),
        "Queue" => {
            let rule = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(FieldError::required(&at.child("queuing"), rule));
        }
        "" => errors.push(FieldError::required(&at.child("type"), "")),
        _ => one_of(errors, response, "type", &["Queue", "Reject"], &at),
    }
    percent(errors, limited, path);
    if let Some(n) = int(limited, "borrowingLimitPercent").filter(|n| *n < 0) {
        let rule = "if specified, must be a non-negative integer";
        errors.push(FieldError::invalid(&path.child("borrowingLimitPercent"), n, rule));
    }
}

fn queuing(errors: &mut ErrorList, queuing: &Value, path: &Path) {
    let get = |key: &str| int(queuing, key).unwrap_or(0);
    let (queues, hand) = (get("queues"), get("handSize"));
    let mut invalid = |key: &str, rule: String| {
        errors.push(FieldError::invalid(&path.child(key), or_null(&queuing[key]), rule));
    };
    if get("queueLengthLimit") <= 0 {
        invalid("queueLengthLimit", "must be positive".into());
    }
    if queues <= 0 {
        invalid("queues", "must be positive".into());
    } else if queues > MOST_QUEUES {
        invalid("queues", format!("must not be greater than {MOST_QUEUES}"));
    }
    // The number of hands that can be dealt must fit into the hash.
    let entropy = || ((queues as f64).log2() * hand as f64).ceil();
    if hand <= 0 {
        invalid("handSize", "must be positive".into());
    } else if hand > queues {
        invalid("handSize", format!("should not be greater than queues ({queues})"));
    } else if entropy() > HASH_BITS {
        invalid(
            "handSize",
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
            ),
        );
    }
}
