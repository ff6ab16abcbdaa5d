//! Who decides, one after the other: as flags say, or an AuthorizationConfiguration, which is read again when it changes.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#using-configuration-file-for-authorization>

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use coxswain_meta::json::Value;
use coxswain_meta::names;

use super::{AuthorizationWebhook, AuthorizationWebhookConfig, Mode};
use crate::configuration::{self, ConfigurationError, Span};

const API_GROUP: &str = "apiserver.config.k8s.io";
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);

/// One of those who decide.
pub enum Authorizer {
    /// One that this server has itself.
    Local(Mode),
    /// A webhook.
    Webhook(Box<AuthorizationWebhook>),
}

/// All who decide, in their order.
pub struct Chain(Vec<Authorizer>);

impl Chain {
    /// The modes of flags, with the webhook among them where there is one.
    pub fn new(modes: &[Mode], mut webhook: Option<AuthorizationWebhook>) -> Self {
        let of = |mode: &Mode| match mode {
            Mode::Webhook => webhook.take().map(|webhook| Authorizer::Webhook(Box::new(webhook))),
            mode => Some(Authorizer::Local(*mode)),
        };
        Self(modes.iter().filter_map(of).collect())
    }

    /// Reads an AuthorizationConfiguration.
    ///
    /// # Errors
    /// What is wrong with it; a webhook's file cannot be read.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigurationError> {
        let kind = "AuthorizationConfiguration";
        let config = configuration::read(text, API_GROUP, &["v1", "v1beta1"], kind)?;
        let list = config["authorizers"].as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| {
            ConfigurationError::at(
                "authorizers",
                "Required value: at least one authorization mode must be defined",
            )
        })?;
        let (mut types, mut seen) = (HashSet::new(), HashSet::new());
        let mut authorizers = Vec::new();
        for (number, item) in list.iter().enumerate() {
            let wrong = |field: &str, why: &str| {
                Err(ConfigurationError::at(&format!("authorizers[{number}].{field}"), why))
            };
            configuration::only(item, &["type", "name", "webhook"], &format!("authorizers[{number}]"))?;
            let (of, name) =
                (item["type"].as_str().unwrap_or_default(), item["name"].as_str().unwrap_or_default());
            let Some(mode) = mode(of) else {
                return wrong("type", &format!("Unsupported value: {of:?}"));
            };
            if mode != Mode::Webhook && !types.insert(of) {
                return wrong("type", &format!("Duplicate value: {of:?}"));
            }
            if name.is_empty() {
                return wrong("name", "Required value");
            }
            if let Some(why) = names::dns1123_subdomain(name).into_iter().next() {
                return wrong("name", &format!("Invalid value: {name:?}: authorizer name is invalid: {why}"));
            }
            if !seen.insert(name) {
                return wrong("name", &format!("Duplicate value: {name:?}"));
            }
            authorizers.push(match (mode, &item["webhook"]) {
                (Mode::Webhook, Value::Null) => {
                    return wrong("webhook", "Required value: required when type=Webhook");
                }
                (Mode::Webhook, webhook) => {
                    let config = webhook_of(webhook, &format!("authorizers[{number}].webhook"))?;
                    let webhook = AuthorizationWebhook::new(config);
                    Authorizer::Webhook(Box::new(webhook.map_err(|error| {
                        ConfigurationError::at(&format!("authorizers[{number}].webhook"), &error.to_string())
                    })?))
                }
                (mode, Value::Null) => Authorizer::Local(mode),
                _ => {
                    return wrong(
                        "webhook",
                        "Invalid value: \"non-null\": may only be specified when type=Webhook",
                    );
                }
            });
        }
        Ok(Self(authorizers))
    }

    /// Those who decide.
    pub fn iter(&self) -> impl Iterator<Item = &Authorizer> {
        self.0.iter()
    }

    /// Whether anybody outside of this server is among them.
    pub fn asks_others(&self) -> bool {
        self.0.iter().any(|authorizer| matches!(authorizer, Authorizer::Webhook(_)))
    }
}

fn mode(name: &str) -> Option<Mode> {
    Some(match name {
        "AlwaysAllow" => Mode::AlwaysAllow,
        "AlwaysDeny" => Mode::AlwaysDeny,
        "Node" => Mode::Node,
        "RBAC" => Mode::Rbac,
        "Webhook" => Mode::Webhook,
        _ => return None,
    })
}

fn webhook_of(webhook: &Value, at: &str) -> Result<AuthorizationWebhookConfig, ConfigurationError> {
    let known = [
        "authorizedTTL",
        "unauthorizedTTL",
        "cacheAuthorizedRequests",
        "cacheUnauthorizedRequests",
        "timeout",
        "subjectAccessReviewVersion",
        "matchConditionSubjectAccessReviewVersion",
        "failurePolicy",
        "connectionInfo",
        "matchConditions",
    ];
    configuration::only(webhook, &known, at)?;
    let wrong = |field: &str, why: &str| ConfigurationError::at(&format!("{at}.{field}"), why);
    let span = |field: &str, default: Option<u64>| match (&webhook[field], default) {
        (Value::Null, Some(seconds)) => Ok(Duration::from_secs(seconds)),
        (Value::Null, None) => Err(wrong(field, "Required value")),
        (value, _) => Span::parse(value).filter(|span| !span.is_zero()).ok_or_else(|| {
            wrong(field, &format!("Invalid value: {value}: must be a duration greater than zero"))
        }),
    };
    let choice = |field: &str, choices: &[&str]| {
        let value = webhook[field].as_str().unwrap_or_default();
        match value {
            "" => Err(wrong(field, "Required value")),
            value if choices.contains(&value) => Ok(value.to_owned()),
            value => {
                Err(wrong(field, &format!("Unsupported value: {value:?}: supported values: {choices:?}")))
            }
        }
    };
    // What is not to be remembered counts for no time.
    let remembered = |field: &str, ttl: Duration| if webhook[field] == false { Duration::ZERO } else { ttl };
    let timeout = span("timeout", None)?;
    if timeout > LONGEST_TIMEOUT {
        return Err(wrong("timeout", "Invalid value: must be less than or equal to 30s"));
    }
    let conditions: Vec<Value> = webhook["matchConditions"].as_array().cloned().unwrap_or_default();
    if !conditions.is_empty() || !webhook["matchConditionSubjectAccessReviewVersion"].is_null() {
        choice("matchConditionSubjectAccessReviewVersion", &["v1"])?;
    }
    let connection = &webhook["connectionInfo"];
    let file = match connection["type"].as_str() {
        Some("KubeConfigFile") => {
            connection["kubeConfigFile"].as_str().filter(|file| Path::new(file).is_absolute())
        }
        Some("InClusterConfig") => {
            return Err(wrong("connectionInfo.type", "InClusterConfig is for servers that run in a pod"));
        }
        _ => return Err(wrong("connectionInfo.type", "Required value: KubeConfigFile")),
    };
    let file =
        file.ok_or_else(|| wrong("connectionInfo.kubeConfigFile", "Required value: an absolute path"))?;
    let mut expressions = Vec::new();
    for (number, condition) in conditions.iter().enumerate() {
        let expression = condition["expression"].as_str().unwrap_or_default();
        if expression.trim().is_empty() {
            return Err(wrong(&format!("matchConditions[{number}].expression"), "Required value"));
        }
        expressions.push(expression.to_owned());
    }
    Ok(AuthorizationWebhookConfig {
        file: file.into(),
        version: choice("subjectAccessReviewVersion", &["v1", "v1beta1"])?,
        authorized_ttl: remembered("cacheAuthorizedRequests", span("authorizedTTL", Some(300))?),
        unauthorized_ttl: remembered("cacheUnauthorizedRequests", span("unauthorizedTTL", Some(30))?),
        timeout,
        deny_on_failure: choice("failurePolicy", &["NoOpinion", "Deny"])? == "Deny",
        conditions: expressions,
    })
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    fn parse(authorizers: Value) -> Result<usize, String> {
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers});
        Chain::parse(config.to_string().as_bytes())
            .map(|chain| chain.0.len())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        assert_eq!(parse(json!([{"type": "Node", "name": "node"}, {"type": "RBAC", "name": "rbac"}])), Ok(2));
        let webhook = json!({"timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
            "matchConditionSubjectAccessReviewVersion": "v1", "matchConditions": [{"expression": "request.user =="}],
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/none"}});
        let hook = |field: &str, value: Value| {
            let mut webhook = webhook.clone();
            webhook[field] = value;
            json!([{"type": "Webhook", "name": "w", "webhook": webhook}])
        };
        for (authorizers, place) in [
            (json!([]), "authorizers: Required"),
            (json!([{"type": "ABAC", "name": "a"}]), "authorizers[0].type: Unsupported"),
            (
                json!([{"type": "RBAC", "name": "a"}, {"type": "RBAC", "name": "b"}]),
                "authorizers[1].type: Duplicate",
            ),
            (json!([{"type": "RBAC"}]), "authorizers[0].name: Required"),
            (
                json!([{"type": "RBAC", "name": "a"}, {"type": "Node", "name": "a"}]),
                "authorizers[1].name: Duplicate",
            ),
            (json!([{"type": "RBAC", "name": "a", "webhook": {}}]), "authorizers[0].webhook: Invalid"),
            (json!([{"type": "RBAC", "name": "a", "more": 1}]), "authorizers[0].more: unknown field"),
            (hook("timeout", json!("31s")), "authorizers[0].webhook.timeout: Invalid"),
            (hook("timeout", Value::Null), "authorizers[0].webhook.timeout: Required"),
            (hook("failurePolicy", json!("Fail")), "authorizers[0].webhook.failurePolicy: Unsupported"),
            (hook("authorizedTTL", json!("0s")), "authorizers[0].webhook.authorizedTTL: Invalid"),
            (hook("connectionInfo", json!({})), "authorizers[0].webhook.connectionInfo.type"),
            (hook("timeout", json!("3s")), "authorizers[0].webhook: matchConditions[0].expression"),
        ] {
            let error = parse(authorizers).expect_err(place);
            assert!(error.starts_with(place), "{error}");
        }
    }
}
