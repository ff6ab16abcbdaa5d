//! EndpointSlices of services without a selector: they mirror the Endpoints that somebody else keeps (KEP-1659).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use coxswain_client::{Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{MANAGED_BY, SERVICE_NAME, delete, plan, selector};
use crate::context::Context;
use crate::owner;

const WORKERS: usize = 2;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are the lock of a leader election have no addresses to serve.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Controller {
    client: Client,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Controller {
        client: context.client(),
        services: context.informer(),
        slices: context.informer(),
        endpoints: context.informer(),
    };
    controller.services.synced().await;
    controller.slices.synced().await;
    controller.endpoints.synced().await;
    let queue = WorkQueue::new();
    controller.services.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    controller.endpoints.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    controller.slices.feed(&queue, |change| {
        let slice = change.object();
        let service = slice.labels().get(SERVICE_NAME).filter(|_| is_mirror(slice))?;
        Some(ObjectKey::new(slice.namespace().unwrap_or_default(), service))
    });
    context.drive("endpointslicemirroring", queue, WORKERS, |key| controller.reconcile(key)).await;
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

/// Whether the Endpoints of a service are to be mirrored.
fn mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    selector(service).is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let slices = self.slices.in_namespace(&key.namespace).into_iter();
        let existing: Vec<Arc<EndpointSlice>> = slices
            .filter(|slice| slice.labels().get(SERVICE_NAME) == Some(&key.name) && is_mirror(slice))
            .collect();
        let source = self.endpoints.get(&key);
        let source = source
            .filter(|endpoints| self.services.get(&key).is_some_and(|service| mirrored(&service, endpoints)));
        let subsets = source.as_ref().and_then(|source| source.subsets.clone()).unwrap_or_default();
        for family in ["IPv4", "IPv6"] {
            let of_family =
                |address: &str| address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"));
            let groups = plan::of_subsets(&subsets, of_family);
            let slices: Vec<_> =
                existing.iter().filter(|slice| slice.address_type == family).cloned().collect();
            self.write(&key, source.as_deref(), &slices, &groups, family).await?;
        }
        Ok(Requeue::OnChange)
    }

    async fn write(
        &self,
        key: &ObjectKey,
        source: Option<&Endpoints>,
        existing: &[Arc<EndpointSlice>],
        groups: &plan::Groups,
        family: &str,
    ) -> Result<(), kube::Error> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(source) = source.filter(|_| !groups.is_empty()) else {
            for slice in existing {
                delete(&api, slice).await?;
            }
            return Ok(());
        };
        let changes = plan::changes(existing, groups);
        for (at, endpoints) in changes.update {
            let version = &existing[at].metadata.resource_version;
            let patch = json!({ "metadata": { "resourceVersion": version }, "endpoints": endpoints });
            api.patch(&existing[at].name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        for (ports, endpoints) in changes.create {
            let slice = EndpointSlice {
                metadata: metadata(source),
                address_type: family.to_owned(),
                ports: Some(ports),
                endpoints: Some(endpoints),
            };
            api.create(&PostParams::default(), &slice).await?;
        }
        for at in changes.delete {
            delete(&api, &existing[at]).await?;
        }
        Ok(())
    }
}

fn metadata(source: &Endpoints) -> ObjectMeta {
    let mut labels: BTreeMap<String, String> = source.labels().clone();
    labels.insert(SERVICE_NAME.into(), source.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    ObjectMeta {
        generate_name: Some(format!("{}-", source.name_any())),
        namespace: source.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![owner::controller_ref(source)]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_endpoints_that_somebody_else_keeps_are_mirrored() {
        let service = |spec: serde_json::Value| serde_json::from_value(json!({ "spec": spec })).unwrap();
        let endpoints =
            |metadata: serde_json::Value| serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        let (own, selecting) = (service(json!({})), service(json!({ "selector": { "app": "a" } })));
        let plain = endpoints(json!({}));
        assert!(mirrored(&own, &plain));
        assert!(!mirrored(&selecting, &plain));
        assert!(!mirrored(&own, &endpoints(json!({ "labels": { SKIP: "true" } }))));
        assert!(!mirrored(&own, &endpoints(json!({ "annotations": { LEADER: "{}" } }))));
    }
}
