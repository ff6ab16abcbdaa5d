//! Impersonation: a user who may acts as another.
//! <https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/>

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_meta::Status;
use http::HeaderMap;

use super::UserInfo;
use crate::authz::Attributes;
use crate::{Server, audit};

const EXTRA: &str = "impersonate-extra-";

/// As whom a request wants to act.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let name = text("impersonate-user").into_iter().next().unwrap_or_default();
    let (mut groups, uid) = (text("impersonate-group"), text("impersonate-uid").into_iter().next());
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let (Some(key), Ok(value)) = (header.as_str().strip_prefix(EXTRA), value.to_str()) {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_default().push(value.to_owned());
        }
    }
    if name.is_empty() {
        return match groups.is_empty() && uid.is_none() && extra.is_empty() {
            true => Ok(None),
            false => Err(Status::internal("requested impersonation without impersonating a user")),
        };
    }
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    if let Some((namespace, _)) = account.filter(|_| groups.is_empty()) {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody =
        if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|group| group == everybody) {
        groups.push(everybody.to_owned());
    }
    Ok(Some(UserInfo { name, uid: uid.unwrap_or_default(), groups, extra }))
}

impl Server {
    /// The impersonation layer.
    pub(crate) async fn impersonate(
        &self,
        user: Arc<UserInfo>,
        headers: &HeaderMap,
    ) -> Result<Arc<UserInfo>, Status> {
        if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Ok(user);
        }
        let Some(other) = wanted(headers)? else { return Ok(user) };
        let account = other.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let base = Attributes { verb: "impersonate", version: "v1", ..Attributes::default() };
        let of_authentication = Attributes { group: "authentication.k8s.io", ..base.clone() };
        let mut asked = vec![match account {
            Some((namespace, name)) => {
                Attributes { resource: "serviceaccounts", namespace, name, ..base.clone() }
            }
            None => Attributes { resource: "users", name: &other.name, ..base.clone() },
        }];
        let groups = headers.get_all("impersonate-group").iter().filter_map(|group| group.to_str().ok());
        asked.extend(groups.map(|name| Attributes { resource: "groups", name, ..base.clone() }));
        if !other.uid.is_empty() {
            asked.push(Attributes { resource: "uids", name: &other.uid, ..of_authentication.clone() });
        }
        for (key, values) in &other.extra {
            asked.extend(values.iter().map(|value| Attributes {
                resource: "userextras",
                subresource: key,
                name: value,
                ..of_authentication.clone()
            }));
        }
        for question in &asked {
            if !self.ask(&user, question).await.allowed {
                let resource = question.full_resource();
                return Err(Status::forbidden_to_user(
                    &user.name,
                    "impersonate",
                    question.group,
                    &resource,
                    question.namespace,
                    question.name,
                ));
            }
        }
        audit::impersonated(&other);
        Ok(Arc::new(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_as_whom() {
        let of = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            wanted(&headers)
        };
        assert!(of(&[]).unwrap().is_none());
        assert_eq!(of(&[("impersonate-group", "dev")]).unwrap_err().code, 500);
        let ann =
            of(&[("impersonate-user", "ann"), ("impersonate-uid", "7"), ("impersonate-extra-a%2Fb", "1")]);
        let ann = ann.unwrap().unwrap();
        assert_eq!(
            (ann.uid.as_str(), &ann.groups, &ann.extra["a/b"]),
            ("7", &vec!["system:authenticated".to_owned()], &vec!["1".to_owned()])
        );
        let bot = of(&[("impersonate-user", "system:serviceaccount:a:b")]).unwrap().unwrap();
        assert_eq!(bot.groups[1], "system:serviceaccounts:a");
        let nobody = of(&[("impersonate-user", "system:anonymous")]).unwrap().unwrap();
        assert_eq!(nobody.groups, ["system:unauthenticated"]);
    }
}
