//! What the claims of a verified token become: a user, by claims or by CEL, or the reason why nobody. Pure.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>

use coxswain_meta::json::{Value, json};

use super::UserInfo;
use crate::cel::{Budget, Expression, Scope, of_json, to_json};

/// Where a part of the user comes from.
pub enum Source {
    /// A claim, and what stands before its value.
    Claim(String, String),
    /// An expression over `claims`.
    Expression(Expression),
}

/// An expression that must be true, and what is said where it is not.
pub struct Rule {
    /// The expression.
    pub expression: Expression,
    /// What is said.
    pub message: String,
}

/// How claims are checked, and what they become.
pub struct Mappings {
    /// Claims and the values they must have.
    pub required: Vec<(String, String)>,
    /// Over `claims`.
    pub claim_rules: Vec<Rule>,
    /// The user's name.
    pub username: Source,
    /// The user's groups.
    pub groups: Option<Source>,
    /// The user's uid.
    pub uid: Option<Source>,
    /// More facts, by their keys.
    pub extra: Vec<(String, Expression)>,
    /// Over `user`, as the mappings made it.
    pub user_rules: Vec<Rule>,
}

impl Default for Mappings {
    fn default() -> Self {
        Self {
            required: Vec::new(),
            claim_rules: Vec::new(),
            username: Source::Claim("sub".into(), String::new()),
            groups: None,
            uid: None,
            extra: Vec::new(),
            user_rules: Vec::new(),
        }
    }
}

impl Source {
    fn value(&self, claims: &Value, scope: &Scope<'_>) -> Result<Value, String> {
        match self {
            Self::Claim(name, _) => Ok(claims[name].clone()),
            Self::Expression(expression) => evaluated(expression, scope),
        }
    }

    fn prefix(&self) -> &str {
        match self {
            Self::Claim(_, prefix) => prefix,
            Self::Expression(_) => "",
        }
    }
}

fn evaluated(expression: &Expression, scope: &Scope<'_>) -> Result<Value, String> {
    let value = expression
        .eval(scope, &mut Budget::one())
        .map_err(|why| format!("{}: {why}", expression.source()))?;
    to_json(&value).ok_or_else(|| format!("{}: its value is no document", expression.source()))
}

/// One text or many; empty ones are left out.
fn texts(value: Value, what: &str) -> Result<Vec<String>, String> {
    let items = match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items,
        one => vec![one],
    };
    let text = |item: Value| match item {
        Value::String(text) => Ok(text.into()),
        _ => Err(format!("{what} is neither a text nor a list of texts")),
    };
    let texts: Vec<String> = items.into_iter().map(text).collect::<Result<_, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

fn check(rules: &[Rule], scope: &Scope<'_>) -> Result<(), String> {
    for rule in rules {
        if !rule.expression.is_true(scope, &mut Budget::one()).map_err(|why| why.to_string())? {
            let said = if rule.message.is_empty() { rule.expression.source() } else { &rule.message };
            return Err(format!("validation expression failed: {said}"));
        }
    }
    Ok(())
}

impl Mappings {
    /// The user.
    ///
    /// # Errors
    /// Why these claims are nobody's.
    pub fn user_of(&self, claims: &Value) -> Result<UserInfo, String> {
        let mut scope = Scope::empty();
        scope.set("claims", of_json(claims));
        if let Some((claim, _)) = self.required.iter().find(|(claim, value)| claims[claim] != **value) {
            return Err(format!("the claim {claim} has not the required value"));
        }
        check(&self.claim_rules, &scope)?;
        let name = self.username.value(claims, &scope)?;
        let name = name.as_str().filter(|name| !name.is_empty()).ok_or("the username is empty or no text")?;
        if matches!(&self.username, Source::Claim(claim, _) if claim == "email")
            && claims.get("email_verified").is_some_and(|verified| *verified != true)
        {
            return Err("email not verified".into());
        }
        let groups = match &self.groups {
            Some(source) => texts(source.value(claims, &scope)?, "groups")?
                .iter()
                .map(|group| format!("{}{group}", source.prefix()))
                .collect(),
            None => Vec::new(),
        };
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut user = UserInfo::new(format!("{}{name}", self.username.prefix()), &groups);
        if let Some(source) = &self.uid {
            user.uid = match source.value(claims, &scope)? {
                Value::String(uid) => uid.into(),
                _ => return Err("uid is no text".into()),
            };
        }
        for (key, expression) in &self.extra {
            let values = texts(evaluated(expression, &scope)?, key)?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        if let Some(jti) = claims["jti"].as_str() {
            let id = "authentication.kubernetes.io/credential-id".to_owned();
            user.extra.insert(id, vec![format!("JTI={jti}")]);
        }
        let mut scope = Scope::empty();
        let shown = json!({ "username": user.name, "uid": user.uid, "groups": groups, "extra": user.extra });
        scope.set("user", of_json(&shown));
        check(&self.user_rules, &scope)?;
        Ok(user)
    }
}
