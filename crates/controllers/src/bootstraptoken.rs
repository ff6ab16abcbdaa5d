//! Bootstrap tokens that have expired are deleted.
//! <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>

use std::time::Duration;

use coxswain_client::{Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::context::{Context, ignore};

/// Runs the controller.
pub async fn run(context: &Context) {
    let client = context.client();
    let secrets: Informer<Secret> = context.factory.informer_by_fields("type=bootstrap.kubernetes.io/token");
    secrets.synced().await;
    let queue = WorkQueue::new();
    secrets.feed(&queue, |change| {
        let secret = change.object();
        (secret.namespace().as_deref() == Some("kube-system")).then(|| ObjectKey::of(&**secret))
    });
    let reconcile = |key: ObjectKey| {
        let (client, secrets) = (client.clone(), secrets.clone());
        async move {
            let Some(secret) = secrets.get(&key) else { return Ok(Requeue::OnChange) };
            let Some(left) = time_left(&secret, Timestamp::now()) else { return Ok(Requeue::OnChange) };
            if !left.is_zero() {
                return Ok(Requeue::After(left));
            }
            let same = Preconditions { uid: secret.uid(), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            let api: Api<Secret> = Api::namespaced(client, &key.namespace);
            let deleted = api.delete(&key.name, &parameters).await;
            deleted.map(drop).or_else(|error| ignore(error, &[404, 409])).map(|()| Requeue::OnChange)
        }
    };
    context.drive("token-cleaner", queue, 1, reconcile).await;
}

/// How long a token is good for; none where it does not expire. A time that cannot be read has passed.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = &secret.data.as_ref()?.get("expiration")?.0;
    if expiration.is_empty() {
        return None;
    }
    let end = std::str::from_utf8(expiration).ok().and_then(|text| text.parse::<Timestamp>().ok());
    let left = end.and_then(|end| Duration::try_from(end.duration_since(now)).ok());
    Some(left.unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn a_token_goes_when_it_expires() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let left = |expiration: Option<&str>| {
            let data = expiration.map(|text| ("expiration".to_owned(), ByteString(text.as_bytes().to_vec())));
            time_left(&Secret { data: Some(data.into_iter().collect()), ..Secret::default() }, now)
        };
        assert_eq!(left(None), None);
        assert_eq!(left(Some("2030-01-01T00:01:00Z")), Some(Duration::from_secs(60)));
        assert_eq!(left(Some("2029-12-31T23:59:59+01:00")), Some(Duration::ZERO));
        assert_eq!(left(Some("tomorrow")), Some(Duration::ZERO));
    }
}
