//! Certificate signing requests: those of kubelets are approved, approved ones of the cluster's own signers are signed, and
//! all are deleted once nobody waits for them any more.
//! <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>

mod issue;
mod plan;
#[cfg(test)]
mod tests;

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::context::{Context, ignore};
pub use issue::{Authority, AuthorityError};
use plan::{Due, Machines, Request};

/// What keeps a request from being handled.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Request(#[from] plan::RequestError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

struct Controller<'a> {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    authority: Option<&'a Authority>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let authority = context.config.authority.as_deref();
    let (requests, nodes): (Informer<CertificateSigningRequest>, Informer<Node>) =
        (context.informer(), context.informer());
    let (services, slices): (Informer<Service>, Informer<EndpointSlice>) =
        (context.informer(), context.informer());
    tokio::join!(requests.synced(), nodes.synced(), services.synced(), slices.synced());
    let queue = WorkQueue::new();
    requests.feed(&queue, |change| Some(change.object().name_any()));
    let known = requests.clone();
    nodes.feed(&queue, move |change| {
        let node = change.object().name_any();
        let waiting = known.list().into_iter().filter(|asked| !plan::is_decided(asked));
        let its = waiting.filter(|asked| plan::node_of(asked) == Some(&node));
        its.map(|asked| asked.name_any()).collect::<Vec<_>>()
    });
    let controller = Controller { client: context.client(), requests, nodes, services, slices, authority };
    context.drive("certificatesigningrequest", queue, 1, |name| controller.reconcile(name)).await;
}

impl Controller<'_> {
    async fn reconcile(&self, name: String) -> Result<Requeue, Error> {
        let Some(asked) = self.requests.get(&ObjectKey::cluster(&name)) else { return Ok(Requeue::OnChange) };
        let end = match plan::due(&asked, Timestamp::now()) {
            Due::Now => return self.delete(&asked).await.map(|()| Requeue::OnChange).map_err(Error::from),
            Due::After(wait) => Requeue::After(wait),
        };
        if plan::is_decided(&asked) {
            self.sign(&asked).await?;
        } else {
            self.approve(&asked).await?;
        }
        Ok(end)
    }

    async fn delete(&self, asked: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let same = Preconditions { uid: asked.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        let deleted = self.api().delete(&asked.name_any(), &parameters).await;
        deleted.map(drop).or_else(|error| ignore(error, &[404, 409]))
    }

    fn api(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.client.clone())
    }

    /// A request for a kubelet's certificate is approved where its author may make such requests.
    async fn approve(&self, asked: &CertificateSigningRequest) -> Result<(), Error> {
        // What cannot be read waits for a person.
        let Ok(request) = Request::parse(&asked.spec.request.0) else { return Ok(()) };
        for (subresource, message) in plan::recognized(asked, &request, &self.machines()) {
            if self.may_create(asked, subresource).await? {
                let condition = json!({ "type": "Approved", "status": "True", "reason": "AutoApproved", "message": message });
                return Ok(self
                    .patch("approval", asked, "conditions", condition_added(asked, condition))
                    .await?);
            }
        }
        Ok(())
    }

    fn machines(&self) -> Machines {
        let services = self.services.list();
        let of_services =
            services.iter().filter_map(|service| service.spec.as_ref()?.cluster_ips.clone()).flatten();
        let api_server = self.slices.get(&ObjectKey::new("default", "kubernetes"));
        let endpoints = api_server.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let of_api_server = endpoints.flat_map(|endpoint| endpoint.addresses.iter().cloned());
        Machines { nodes: self.nodes.list(), reserved: of_services.chain(of_api_server).collect() }
    }

    async fn may_create(
        &self,
        asked: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, kube::Error> {
        let spec = &asked.spec;
        let review = SubjectAccessReview {
            metadata: ObjectMeta::default(),
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            status: None,
        };
        let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// An approved request of one of the cluster's signers gets its certificate, or the reason why it gets none.
    async fn sign(&self, asked: &CertificateSigningRequest) -> Result<(), Error> {
        let (Some(authority), Some(signer)) = (self.authority, plan::awaited_signer(asked)) else {
            return Ok(());
        };
        let request = Request::parse(&asked.spec.request.0)?;
        let usages = asked.spec.usages.as_deref().unwrap_or_default();
        if let Err(why) = signer.check(&request, usages) {
            let condition = json!({ "type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                "message": why.to_string(), "lastUpdateTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string() });
            return Ok(self.patch("status", asked, "conditions", condition_added(asked, condition)).await?);
        }
        let lifetime = plan::lifetime(asked.spec.expiration_seconds);
        let pem = authority.issue(&request, usages, Timestamp::now(), lifetime)?;
        let certificate = serde_json::to_value(k8s_openapi::ByteString(pem.into_bytes()));
        Ok(self.patch("status", asked, "certificate", certificate.unwrap_or_default()).await?)
    }

    async fn patch(
        &self,
        subresource: &str,
        asked: &CertificateSigningRequest,
        field: &str,
        value: Value,
    ) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({ "status": { field: value },
            "metadata": { "uid": asked.uid(), "resourceVersion": asked.resource_version() } }));
        let (api, name) = (self.api(), asked.name_any());
        let patched = api.patch_subresource(subresource, &name, &PatchParams::default(), &patch).await;
        // After a conflict the newer version is on its way.
        patched.map(drop).or_else(|error| ignore(error, &[404, 409]))
    }
}

fn condition_added(asked: &CertificateSigningRequest, condition: Value) -> Value {
    let conditions = asked.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions: Vec<Value> =
        conditions.into_iter().flatten().filter_map(|c| serde_json::to_value(c).ok()).collect();
    conditions.push(condition);
    conditions.into()
}
