//! EndpointSlices and Endpoints of services that select pods.

mod mirror;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::{Change, Client, Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::{Context, ignore};
use crate::owner;

const WORKERS: usize = 4;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const LEGACY_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const LEGACY_MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
}

/// Runs the controller, and the one for services without a selector.
pub async fn run(context: &Context) {
    tokio::join!(run_selecting(context), mirror::run(context));
}

async fn run_selecting(context: &Context) {
    let controller = Arc::new(Controller {
        client: context.client(),
        services: context.informer(),
        pods: context.pods(),
        slices: context.informer(),
        endpoints: context.informer(),
    });
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.slices.synced().await;
    controller.endpoints.synced().await;
    let queue = WorkQueue::new();
    controller.services.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    let this = controller.clone();
    controller.pods.feed(&queue, move |change| this.services_of(change));
    controller.slices.feed(&queue, |change| {
        let slice = change.object();
        let service = slice
            .labels()
            .get(SERVICE_NAME)
            .filter(|_| slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER))?;
        Some(ObjectKey::new(slice.namespace().unwrap_or_default(), service))
    });
    controller.endpoints.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    context.drive("endpointslice", queue, WORKERS, |key| controller.reconcile(key)).await;
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty() && spec.type_.as_deref() != Some("ExternalName"))
}

fn selects(service: &Service, pod: &Pod) -> bool {
    selector(service)
        .is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
}

/// What of a pod its endpoints show.
fn shown(pod: &Pod) -> (&BTreeMap<String, String>, Option<&str>, Option<&str>, bool, bool) {
    let status = pod.status.as_ref();
    (
        pod.labels(),
        status.and_then(|status| status.pod_ip.as_deref()),
        status.and_then(|status| status.phase.as_deref()),
        crate::pods::is_ready(pod),
        pod.metadata.deletion_timestamp.is_some(),
    )
}

impl Controller {
    fn services_of(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        let pod = change.object();
        let mut versions = vec![pod];
        if let Change::Updated { old, new } = change {
            if shown(old) == shown(new) {
                return Vec::new();
            }
            versions.push(old);
        }
        let services = self.services.in_namespace(&pod.namespace().unwrap_or_default());
        let selecting =
            services.into_iter().filter(|service| versions.iter().any(|pod| selects(service, pod)));
        selecting.map(|service| ObjectKey::of(&*service)).collect()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| slice.labels().get(SERVICE_NAME) == Some(&key.name))
            .filter(|slice| slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER))
            .collect();
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(service) = self.services.get(&key).filter(|service| selector(service).is_some()) else {
            for slice in existing {
                delete(&api, &slice).await?;
            }
            if self.services.get(&key).is_none() {
                self.delete_endpoints(&key).await?;
            }
            return Ok(Requeue::OnChange);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let pods: Vec<_> =
            self.pods.in_namespace(&key.namespace).into_iter().filter(|pod| selects(&service, pod)).collect();
        let groups = plan::groups(&service, &pods);
        let changes = plan::changes(&existing, &groups);
        for (at, endpoints) in changes.update {
            let slice = &existing[at];
            let patch = json!({ "metadata": { "resourceVersion": slice.metadata.resource_version }, "endpoints": endpoints });
            api.patch(&slice.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        for (ports, endpoints) in changes.create {
            let slice = EndpointSlice {
                metadata: slice_meta(&service),
                address_type: "IPv4".into(),
                ports: Some(ports),
                endpoints: Some(endpoints),
            };
            api.create(&PostParams::default(), &slice).await?;
        }
        for at in changes.delete {
            delete(&api, &existing[at]).await?;
        }
        self.write_endpoints(&service, &key, &groups).await?;
        Ok(Requeue::OnChange)
    }

    /// Those of a service that is gone, if they are ours.
    async fn delete_endpoints(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let Some(endpoints) = self.endpoints.get(key) else { return Ok(()) };
        if endpoints.labels().get(LEGACY_MANAGED_BY).is_none_or(|by| by != LEGACY_MANAGER) {
            return Ok(());
        }
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let deleted = api.delete(&key.name, &DeleteParams::default()).await;
        deleted.map(drop).or_else(|error| ignore(error, &[404]))
    }

    /// The same in the older form.
    async fn write_endpoints(
        &self,
        service: &Service,
        key: &ObjectKey,
        groups: &plan::Groups,
    ) -> Result<(), kube::Error> {
        let subsets = plan::subsets(groups);
        let mut labels = service.labels().clone();
        labels.insert(LEGACY_MANAGED_BY.into(), LEGACY_MANAGER.into());
        if is_headless(service) {
            labels.insert(HEADLESS.into(), String::new());
        }
        let count: usize = groups.values().map(Vec::len).sum();
        let truncated = (count > plan::LEGACY_SIZE)
            .then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())]));
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let existing = self.endpoints.get(key);
        if let Some(existing) = &existing {
            let same =
                existing.subsets.clone().unwrap_or_default() == subsets && *existing.labels() == labels;
            if same {
                return Ok(());
            }
        }
        let endpoints = Endpoints {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: Some(labels),
                annotations: truncated,
                resource_version: existing
                    .as_ref()
                    .and_then(|existing| existing.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            subsets: Some(subsets),
        };
        let written = match existing {
            Some(_) => api.replace(&key.name, &PostParams::default(), &endpoints).await,
            None => api.create(&PostParams::default(), &endpoints).await,
        };
        // Conflicts are answered by the newer version, which is on its way.
        written.map(drop).or_else(|error| ignore(error, &[404, 409]))
    }
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn slice_meta(service: &Service) -> ObjectMeta {
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    ObjectMeta {
        generate_name: Some(format!("{}-", service.name_any())),
        namespace: service.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![owner::controller_ref(service)]),
        ..ObjectMeta::default()
    }
}

async fn delete(api: &Api<EndpointSlice>, slice: &EndpointSlice) -> Result<(), kube::Error> {
    api.delete(&slice.name_any(), &DeleteParams::default())
        .await
        .map(drop)
        .or_else(|error| ignore(error, &[404]))
}
