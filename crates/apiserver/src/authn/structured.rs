//! The AuthenticationConfiguration of a file: issuers of tokens, and who may come without any.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>

use std::collections::HashSet;
use std::sync::OnceLock;

use coxswain_meta::json::Value;

use super::jwks::ALGORITHMS;
use super::mapping::{Mappings, Rule, Source};
use super::oidc::{Oidc, Trust, discovery_of};
use crate::cel::Expression;
use crate::cel::typing::{CLAIMS, Environment, Type, USERS};
use crate::configuration::{self, ConfigurationError};

const API_GROUP: &str = "apiserver.config.k8s.io";
const MOST_ISSUERS: usize = 64;

/// Who may come without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Anybody, to what authorization lets him.
    #[default]
    Everywhere,
    /// Nobody.
    Nowhere,
    /// Anybody, to these paths alone.
    Paths(Vec<String>),
}

impl Anonymous {
    /// Whether a path is open to requests without credentials.
    pub fn may_ask(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::Paths(paths) => paths.iter().any(|known| known == path),
        }
    }
}

/// Whom the server takes besides its own users.
pub struct Authenticators {
    /// Issuers of tokens.
    pub issuers: Vec<Oidc>,
    /// Who may come without.
    pub anonymous: Anonymous,
}

type Checked<T> = Result<T, ConfigurationError>;

fn wrong<T>(at: &str, why: &str) -> Checked<T> {
    Err(ConfigurationError::at(at, why))
}

fn items<'a>(object: &'a Value, list: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    object[list].as_array().into_iter().flatten().enumerate()
}

impl Authenticators {
    /// Reads an AuthenticationConfiguration; none for who may come where it does not say.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &[u8]) -> Checked<(Vec<Oidc>, Option<Anonymous>)> {
        let kind = "AuthenticationConfiguration";
        let config = configuration::read(text, API_GROUP, &["v1", "v1beta1"], kind)?;
        configuration::only(&config, &["apiVersion", "kind", "jwt", "anonymous"], "")?;
        let mut urls = HashSet::new();
        let mut issuers = Vec::new();
        for (number, jwt) in items(&config, "jwt") {
            let at = format!("jwt[{number}]");
            if number >= MOST_ISSUERS {
                return wrong("jwt", "Too many: must have at most 64 items");
            }
            let trust = issuer(jwt, &at)?;
            if !urls.insert(trust.issuer_url.clone()) {
                return wrong(
                    &format!("{at}.issuer.url"),
                    &format!("Duplicate value: {:?}", trust.issuer_url),
                );
            }
            issuers.push(
                Oidc::trusting(trust)
                    .map_err(|error| ConfigurationError::at(&format!("{at}.issuer"), &error.to_string()))?,
            );
        }
        let anonymous = Some(&config["anonymous"]).filter(|anonymous| !anonymous.is_null());
        Ok((issuers, anonymous.map(self::anonymous).transpose()?))
    }
}

/// Who may come without credentials is said by the flag or by the file, and does not change with it.
pub struct AnonymousRules {
    flag: Option<Anonymous>,
    first: OnceLock<Option<Anonymous>>,
}

impl AnonymousRules {
    /// The rules with what the flag says.
    pub fn new(flag: Option<Anonymous>) -> Self {
        Self { flag, first: OnceLock::new() }
    }

    /// Reads an AuthenticationConfiguration.
    ///
    /// # Errors
    /// What is wrong with it, also beside the flag or what it said before.
    pub fn read(&self, text: &[u8]) -> Checked<Authenticators> {
        let (issuers, anonymous) = Authenticators::parse(text)?;
        if anonymous.is_some() && self.flag.is_some() {
            let why = "Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in authentication \
                configuration file";
            return wrong("anonymous", why);
        }
        if *self.first.get_or_init(|| anonymous.clone()) != anonymous {
            return wrong("anonymous", "Forbidden: changed from initial configuration file");
        }
        Ok(Authenticators { issuers, anonymous: anonymous.or_else(|| self.flag.clone()).unwrap_or_default() })
    }
}

fn anonymous(anonymous: &Value) -> Checked<Anonymous> {
    configuration::only(anonymous, &["enabled", "conditions"], "anonymous")?;
    let mut paths = Vec::new();
    for (number, condition) in items(anonymous, "conditions") {
        let at = format!("anonymous.conditions[{number}]");
        configuration::only(condition, &["path"], &at)?;
        match condition["path"].as_str() {
            Some(path) if !path.is_empty() => paths.push(path.to_owned()),
            _ => return wrong(&format!("{at}.path"), "Required value"),
        }
    }
    match (anonymous["enabled"] == true, paths.is_empty()) {
        (true, true) => Ok(Anonymous::Everywhere),
        (true, false) => Ok(Anonymous::Paths(paths)),
        (false, true) => Ok(Anonymous::Nowhere),
        (false, false) => wrong(
            "anonymous.conditions",
            "Invalid value: enabled should be set to true when conditions are defined",
        ),
    }
}

fn url(value: &Value, at: &str) -> Checked<String> {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() {
        return wrong(at, "Required value: URL is required");
    }
    let uri = text.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    let invalid = |why: &str| wrong(at, &format!("Invalid value: {text:?}: {why}"));
    match uri {
        None => invalid("URL scheme must be https"),
        Some(uri) if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            invalid("URL must not contain a username or password")
        }
        Some(uri) if uri.query().is_some() => invalid("URL must not contain a query"),
        Some(_) if text.contains('#') => invalid("URL must not contain a fragment"),
        Some(_) => Ok(text.to_owned()),
    }
}

fn issuer(jwt: &Value, at: &str) -> Checked<Trust> {
    configuration::only(
        jwt,
        &["issuer", "claimValidationRules", "claimMappings", "userValidationRules"],
        at,
    )?;
    let (issuer, issuer_at) = (&jwt["issuer"], format!("{at}.issuer"));
    let known = ["url", "discoveryURL", "certificateAuthority", "audiences", "audienceMatchPolicy"];
    configuration::only(issuer, &known, &issuer_at)?;
    let issuer_url = url(&issuer["url"], &format!("{issuer_at}.url"))?;
    let discovery_url = match &issuer["discoveryURL"] {
        Value::Null => discovery_of(&issuer_url),
        discovery => {
            let place = format!("{issuer_at}.discoveryURL");
            let discovery = url(discovery, &place)?;
            if discovery.trim_end_matches('/') == issuer_url.trim_end_matches('/') {
                return wrong(
                    &place,
                    &format!("Invalid value: {discovery:?}: discoveryURL must be different from URL"),
                );
            }
            discovery
        }
    };
    let audiences: Vec<String> =
        items(issuer, "audiences").filter_map(|(_, audience)| audience.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return wrong(
            &format!("{issuer_at}.audiences"),
            "Required value: at least one issuer.audiences is required",
        );
    }
    let policy = issuer["audienceMatchPolicy"].as_str().unwrap_or_default();
    if !matches!((policy, audiences.len()), ("MatchAny", _) | ("", 1)) {
        return wrong(
            &format!("{issuer_at}.audienceMatchPolicy"),
            &format!(
                "Invalid value: {policy:?}: audienceMatchPolicy must be MatchAny for multiple audiences"
            ),
        );
    }
    Ok(Trust {
        issuer_url,
        discovery_url,
        audiences,
        ca_pem: issuer["certificateAuthority"].as_str().filter(|pem| !pem.is_empty()).map(|pem| pem.into()),
        signing_algs: ALGORITHMS.iter().map(|&name| name.to_owned()).collect(),
        mappings: mappings(jwt, at)?,
    })
}

fn mappings(jwt: &Value, at: &str) -> Checked<Mappings> {
    let (mut required, mut claim_rules) = (Vec::new(), Vec::new());
    for (number, rule) in items(jwt, "claimValidationRules") {
        let place = format!("{at}.claimValidationRules[{number}]");
        configuration::only(rule, &["claim", "requiredValue", "expression", "message"], &place)?;
        match (rule["claim"].as_str(), rule["expression"].as_str()) {
            (Some(_), Some(_)) => {
                return wrong(&place, "Invalid value: claim and expression can't both be set");
            }
            (Some(_), None) if !rule["message"].is_null() => {
                return wrong(
                    &format!("{place}.message"),
                    "Invalid value: message can't be set when claim is set",
                );
            }
            (Some(claim), None) => {
                required
                    .push((claim.to_owned(), rule["requiredValue"].as_str().unwrap_or_default().to_owned()));
            }
            (None, Some(_)) if !rule["requiredValue"].is_null() => {
                let why = "Invalid value: requiredValue can't be set when expression is set";
                return wrong(&format!("{place}.requiredValue"), why);
            }
            (None, Some(_)) => claim_rules.push(rule_of(rule, &CLAIMS, &place)?),
            (None, None) => return wrong(&place, "Required value: claim or expression is required"),
        }
    }
    let mut user_rules = Vec::new();
    for (number, rule) in items(jwt, "userValidationRules") {
        let place = format!("{at}.userValidationRules[{number}]");
        configuration::only(rule, &["expression", "message"], &place)?;
        user_rules.push(rule_of(rule, &USERS, &place)?);
    }
    let (claims, claims_at) = (&jwt["claimMappings"], format!("{at}.claimMappings"));
    configuration::only(claims, &["username", "groups", "uid", "extra"], &claims_at)?;
    let username = source(&claims["username"], true, &format!("{claims_at}.username"))?;
    let Some(username) = username else {
        return wrong(&format!("{claims_at}.username"), "Required value: claim or expression is required");
    };
    let mappings = Mappings {
        required,
        claim_rules,
        username,
        groups: source(&claims["groups"], true, &format!("{claims_at}.groups"))?,
        uid: source(&claims["uid"], false, &format!("{claims_at}.uid"))?,
        extra: extra(claims, &claims_at)?,
        user_rules,
    };
    let Source::Expression(name) = &mappings.username else { return Ok(mappings) };
    let others = mappings.claim_rules.iter().map(|rule| &rule.expression);
    let others = others.chain(mappings.extra.iter().map(|(_, expression)| expression));
    let verified = others.chain([name]).any(|expression| mentions(expression, "claims.email_verified"));
    if mentions(name, "claims.email") && !verified {
        let why = "Invalid value: claims.email_verified must be used in claimMappings.username.expression or \
            claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
            claimMappings.username.expression";
        return wrong(&format!("{claims_at}.username.expression"), why);
    }
    Ok(mappings)
}

/// Whether an expression names a claim, and not only one whose name begins so.
fn mentions(expression: &Expression, claim: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    let source = expression.source();
    source.match_indices(claim).any(|(start, _)| !goes_on(&source[start + claim.len()..]))
}

fn extra(claims: &Value, at: &str) -> Checked<Vec<(String, Expression)>> {
    let mut keys = HashSet::new();
    let mut extra = Vec::new();
    for (number, item) in items(claims, "extra") {
        let place = format!("{at}.extra[{number}]");
        configuration::only(item, &["key", "valueExpression"], &place)?;
        let (key, key_at) = (item["key"].as_str().unwrap_or_default(), format!("{place}.key"));
        let domain = key.split_once('/').map(|(domain, _)| domain).filter(|domain| !domain.is_empty());
        let Some(domain) = domain else {
            return wrong(
                &key_at,
                &format!("Invalid value: {key:?}: must be a domain-prefixed path (such as \"acme.io/foo\")"),
            );
        };
        if key != key.to_lowercase() {
            return wrong(&key_at, &format!("Invalid value: {key:?}: must be lowercase"));
        }
        if ["k8s.io", "kubernetes.io"]
            .iter()
            .any(|own| domain == *own || domain.ends_with(&format!(".{own}")))
        {
            return wrong(&key_at, &format!("Invalid value: {key:?}: k8s.io and kubernetes.io are reserved"));
        }
        if !keys.insert(key) {
            return wrong(&key_at, &format!("Duplicate value: {key:?}"));
        }
        extra.push((
            key.to_owned(),
            expression(&item["valueExpression"], &CLAIMS, &format!("{place}.valueExpression"))?,
        ));
    }
    Ok(extra)
}

fn rule_of(rule: &Value, variables: &Environment, at: &str) -> Checked<Rule> {
    let at = format!("{at}.expression");
    let expression = expression(&rule["expression"], variables, &at)?;
    if !expression.ty().is(&Type::Bool) {
        return wrong(&at, &format!("Invalid value: {:?}: must evaluate to bool", expression.source()));
    }
    Ok(Rule { expression, message: rule["message"].as_str().unwrap_or_default().to_owned() })
}

fn expression(source: &Value, variables: &Environment, at: &str) -> Checked<Expression> {
    let source = source.as_str().filter(|source| !source.trim().is_empty());
    let Some(source) = source else { return wrong(at, "Required value: expression is required") };
    let expression = Expression::compile(source, variables);
    match expression.fault() {
        Some(fault) => wrong(at, &format!("Invalid value: {source:?}: compilation failed: {fault}")),
        None => Ok(expression),
    }
}

/// A claim, with what stands before it where that is known of it, or an expression.
fn source(mapping: &Value, prefixed: bool, at: &str) -> Checked<Option<Source>> {
    let known: &[&str] = if prefixed { &["claim", "prefix", "expression"] } else { &["claim", "expression"] };
    configuration::only(mapping, known, at)?;
    let text = |field: &str| mapping[field].as_str();
    match (text("claim").filter(|claim| !claim.is_empty()), text("expression"), text("prefix")) {
        (Some(_), Some(_), _) => wrong(at, "Invalid value: claim and expression can't both be set"),
        (None, Some(_), Some(_)) => {
            wrong(&format!("{at}.prefix"), "Invalid value: prefix can't be set when expression is set")
        }
        (None, Some(_), None) => expression(&mapping["expression"], &CLAIMS, &format!("{at}.expression"))
            .map(Source::Expression)
            .map(Some),
        (Some(_), None, None) if prefixed => wrong(
            &format!("{at}.prefix"),
            "Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
        ),
        (Some(claim), None, prefix) => {
            Ok(Some(Source::Claim(claim.to_owned(), prefix.unwrap_or_default().to_owned())))
        }
        (None, None, Some(_)) => wrong(at, "Required value: prefix needs a claim"),
        (None, None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    fn configured(change: impl Fn(&mut Value)) -> Value {
        let mut jwt = json!({"issuer": {"url": "https://issuer", "audiences": ["cox", "other"], "audienceMatchPolicy": "MatchAny"},
            "claimValidationRules": [{"claim": "tenant", "requiredValue": "a"},
                {"expression": "claims.exp - claims.iat <= 3600", "message": "too long"}],
            "claimMappings": {"username": {"expression": "'oidc:' + claims.sub"}, "uid": {"claim": "id"},
                "groups": {"expression": "claims.roles.filter(r, r != 'root')"},
                "extra": [{"key": "example.org/tenant", "valueExpression": "claims.tenant"},
                    {"key": "example.org/none", "valueExpression": "has(claims.none) ? claims.none : ''"}]},
            "userValidationRules": [{"expression": "!user.username.startsWith('oidc:system:')", "message": "reserved"}]});
        change(&mut jwt);
        jwt
    }

    fn claims() -> Value {
        json!({"sub": "ann", "id": "7", "tenant": "a", "roles": ["dev", "root", ""], "iat": 0, "exp": 60})
    }

    #[test]
    fn claims_become_a_user_by_expressions() {
        let mappings = mappings(&configured(|_| ()), "jwt[0]").unwrap();
        let user = mappings.user_of(&claims()).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("oidc:ann", "7"));
        assert_eq!(user.groups, ["dev", "system:authenticated"]);
        assert_eq!(
            user.extra.into_iter().collect::<Vec<_>>(),
            [("example.org/tenant".to_owned(), vec!["a".to_owned()])]
        );
        for (field, value, why) in [
            ("tenant", json!("b"), "tenant"),
            ("exp", json!(7200), "too long"),
            ("sub", json!("system:admin"), "reserved"),
            ("sub", json!(1), "no such overload"),
            ("roles", json!([1]), "groups"),
            ("id", json!(7), "uid"),
        ] {
            let mut claims = claims();
            claims[field] = value;
            let error = mappings.user_of(&claims).expect_err(why);
            assert!(error.contains(why), "{field}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let check = |jwt: Value, anonymous: Value| {
            let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
                "jwt": [jwt], "anonymous": anonymous});
            let error = |error: ConfigurationError| error.to_string();
            issuer(&config["jwt"][0], "jwt[0]")
                .map_err(error)
                .and_then(|_| super::anonymous(&config["anonymous"]).map_err(error))
        };
        let nothing = || json!({"enabled": true});
        assert_eq!(check(configured(|_| ()), nothing()), Ok(Anonymous::Everywhere));
        assert_eq!(check(configured(|_| ()), json!({"enabled": false})), Ok(Anonymous::Nowhere));
        let paths = json!({"enabled": true, "conditions": [{"path": "/livez"}]});
        let paths = check(configured(|_| ()), paths).unwrap();
        assert!(paths.may_ask("/livez") && !paths.may_ask("/livez/ping"));
        let mapped = |field: &'static str, value: Value| {
            configured(move |jwt| jwt["claimMappings"][field] = value.clone())
        };
        let issued =
            |field: &'static str, value: Value| configured(move |jwt| jwt["issuer"][field] = value.clone());
        for (jwt, anonymous, place) in [
            (issued("url", json!("http://issuer")), nothing(), "jwt[0].issuer.url: Invalid"),
            (
                issued("discoveryURL", json!("https://issuer/")),
                nothing(),
                "jwt[0].issuer.discoveryURL: Invalid",
            ),
            (issued("audiences", json!([])), nothing(), "jwt[0].issuer.audiences: Required"),
            (
                issued("audienceMatchPolicy", Value::Null),
                nothing(),
                "jwt[0].issuer.audienceMatchPolicy: Invalid",
            ),
            (
                mapped("username", json!({"claim": "sub"})),
                nothing(),
                "jwt[0].claimMappings.username.prefix: Required",
            ),
            (
                mapped("username", json!({"expression": "claims.email"})),
                nothing(),
                "jwt[0].claimMappings.username.expression: Invalid",
            ),
            (
                mapped("username", json!({"expression": "claim.sub"})),
                nothing(),
                "jwt[0].claimMappings.username.expression: Invalid",
            ),
            (
                mapped("groups", json!({"claim": "a", "expression": "b"})),
                nothing(),
                "jwt[0].claimMappings.groups: Invalid",
            ),
            (
                mapped("extra", json!([{"key": "kubernetes.io/a", "valueExpression": "''"}])),
                nothing(),
                "jwt[0].claimMappings.extra[0].key: Invalid",
            ),
            (mapped("more", json!(1)), nothing(), "jwt[0].claimMappings.more: unknown field"),
            (
                configured(|_| ()),
                json!({"enabled": false, "conditions": [{"path": "/a"}]}),
                "anonymous.conditions: Invalid",
            ),
        ] {
            let error = check(jwt, anonymous).expect_err(place);
            assert!(error.starts_with(place), "{error}");
        }
    }

    #[test]
    fn who_comes_without_credentials_is_said_once() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
        let says = |enabled: bool| format!("{head}anonymous: {{enabled: {enabled}}}").into_bytes();
        let read = |rules: &AnonymousRules, text: &[u8]| {
            rules.read(text).map(|read| read.anonymous).map_err(|error| error.to_string())
        };
        let flag = AnonymousRules::new(Some(Anonymous::Nowhere));
        assert_eq!(read(&flag, head.as_bytes()), Ok(Anonymous::Nowhere));
        let both = read(&flag, &says(true)).unwrap_err();
        assert_eq!(
            both,
            "anonymous: Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in \
             authentication configuration file"
        );
        assert_eq!(read(&AnonymousRules::new(None), head.as_bytes()), Ok(Anonymous::Everywhere));
        let file = AnonymousRules::new(None);
        assert_eq!(read(&file, &says(false)), Ok(Anonymous::Nowhere));
        assert_eq!(read(&file, &says(false)), Ok(Anonymous::Nowhere));
        for changed in [says(true), head.into()] {
            let error = read(&file, &changed).unwrap_err();
            assert_eq!(error, "anonymous: Forbidden: changed from initial configuration file");
        }
    }
}
