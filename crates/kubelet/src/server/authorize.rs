//! Who calls the node API, and whether the cluster lets them: upstream's rule is access to `nodes/<subresource>`.

use http::{Method, StatusCode};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Refusal;
use crate::kubelet::Kubelet;

/// The holder of a client certificate: common name and organizations.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    user: String,
    groups: Vec<String>,
}

impl Caller {
    /// Reads a certificate that TLS has verified.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Some(Self { user, groups })
    }
}

/// The subresource of `nodes` that a path of the node API is.
fn subresource(path: &str) -> &'static str {
    match path.trim_matches('/').split('/').next().unwrap_or_default() {
        "stats" => "stats",
        "metrics" => "metrics",
        "healthz" => "healthz",
        "pods" | "runningpods" => "pods",
        _ => "proxy",
    }
}

/// Asks the cluster whether the caller may; members of `system:masters` may everything.
pub async fn allowed(kubelet: &Kubelet, caller: &Caller, method: &Method, path: &str) -> Result<(), Refusal> {
    if caller.groups.iter().any(|group| group == "system:masters") {
        return Ok(());
    }
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresource = subresource(path);
    // Finer rights came later than `nodes/proxy`, which still includes them.
    let wanted: &[&str] = if subresource == "proxy" { &["proxy"] } else { &[subresource, "proxy"] };
    for subresource in wanted {
        if review(kubelet, caller, verb, subresource).await? {
            return Ok(());
        }
    }
    let text =
        format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={wanted:?})", caller.user);
    Err(Refusal(StatusCode::FORBIDDEN, text))
}

async fn review(kubelet: &Kubelet, caller: &Caller, verb: &str, subresource: &str) -> Result<bool, Refusal> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(caller.user.clone()),
            groups: Some(caller.groups.iter().cloned().chain(["system:authenticated".to_owned()]).collect()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(kubelet.config.node_name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(kubelet.config.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|error| Refusal::internal(format!("Authorization error: {error}")))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
