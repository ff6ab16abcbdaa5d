//! Bootstrap tokens: what a machine shows before it has a certificate.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coxswain_meta::json::Value;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};

use super::UserInfo;
use crate::Server;
use crate::object::Meta;

const GROUP: &str = "system:bootstrappers";

/// Id and secret of a token, where its form is that of a bootstrap token.
fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && is_plain(id) && is_plain(secret)).then_some((id, secret))
}

/// The user that a Secret makes of a token.
fn user_of(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let data = |key: &str| {
        let bytes = BASE64_STANDARD.decode(object["data"][key].as_str().unwrap_or_default());
        bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    // Digests are compared: how long that takes tells nothing of the secret.
    let same =
        |a: &str, b: &str| digest(&SHA256, a.as_bytes()).as_ref() == digest(&SHA256, b.as_bytes()).as_ref();
    let (known, expiration) = (data("token-secret"), data("expiration"));
    let current = expiration.is_empty() || expiration.parse::<Timestamp>().is_ok_and(|end| now < end);
    let meant = object["type"] == "bootstrap.kubernetes.io/token"
        && !object.is_deleting()
        && data("token-id") == id
        && data("usage-bootstrap-authentication") == "true";
    if !(meant && current && !known.is_empty() && same(&known, secret)) {
        return None;
    }
    let extra = data("auth-extra-groups");
    let extra: Vec<&str> = extra.split(',').filter(|_| !extra.is_empty()).collect();
    if !extra.iter().all(|group| is_group(group)) {
        return None;
    }
    let mut groups: Vec<&str> = extra.into_iter().chain([GROUP]).collect();
    groups.sort_unstable();
    groups.dedup();
    Some(UserInfo::new(format!("system:bootstrap:{id}"), &groups))
}

/// Tokens give groups below `system:bootstrappers:` only.
fn is_group(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=256).contains(&rest.len())
        && rest.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'-'))
        && rest.bytes().last().is_some_and(plain)
}

impl Server {
    /// The user of a bootstrap token.
    pub(super) fn user_of_bootstrap_token(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = parse(token)?;
        let object = self.read("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
        user_of(&object, id, secret, Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use coxswain_meta::json::json;

    use super::*;

    #[test]
    fn only_a_current_token_of_the_right_kind_counts() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let secret = |change: &[(&str, &str)]| {
            let mut data = json!({});
            let base = [
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", "system:bootstrappers:workers"),
                ("expiration", "2030-01-01T00:00:01Z"),
            ];
            for (key, value) in base.iter().chain(change) {
                data[*key] = BASE64_STANDARD.encode(value).into();
            }
            json!({ "metadata": {}, "type": "bootstrap.kubernetes.io/token", "data": data })
        };
        let user = |object: &Value| user_of(object, "abcdef", "0123456789abcdef", now);
        let found = user(&secret(&[])).unwrap();
        assert_eq!(found.name, "system:bootstrap:abcdef");
        assert_eq!(
            found.groups,
            ["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"]
        );
        assert_eq!(user(&secret(&[("expiration", "")])).unwrap().name, found.name);
        for change in [
            ("token-id", "abcdeg"),
            ("token-secret", "0123456789abcdee"),
            ("token-secret", ""),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a,"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("expiration", "soon"),
        ] {
            assert!(user(&secret(&[change])).is_none(), "{change:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert!(user(&other).is_none());
        assert_eq!(parse("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        assert!(parse("abcdef.0123456789abcdeF").is_none() && parse("abcde.0123456789abcdef").is_none());
    }
}
