//! Services with their endpoint slices, and the news which of them changed: what service proxy and DNS live on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coxswain_client::{Change, Informer, InformerFactory, ObjectKey};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc::UnboundedReceiver;

/// The label that ties an endpoint slice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// All services and their slices.
pub struct Services {
    services: Informer<Service>,
    slice_informer: Informer<EndpointSlice>,
    /// By service, then by the slice's name.
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    service_changes: UnboundedReceiver<Change<Service>>,
    slice_changes: UnboundedReceiver<Change<EndpointSlice>>,
}

impl Services {
    /// Watches through `factory`.
    pub fn new(factory: &InformerFactory) -> Self {
        let (services, slice_informer) = (factory.informer(), factory.informer());
        Self {
            service_changes: services.subscribe(),
            slice_changes: slice_informer.subscribe(),
            slices: HashMap::new(),
            services,
            slice_informer,
        }
    }

    /// Resolves when what there is at the start is known.
    pub async fn synced(&self) {
        tokio::join!(self.services.synced(), self.slice_informer.synced());
    }

    /// The services that the next change concerns; `None` when there will be none. Can be dropped and called again.
    pub async fn changed(&mut self) -> Option<Vec<ObjectKey>> {
        tokio::select! {
            change = self.service_changes.recv() => Some(vec![ObjectKey::of(&**change?.object())]),
            change = self.slice_changes.recv() => Some(self.note(&change?)),
        }
    }

    /// A service, if it is there.
    pub fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.services.get(key)
    }

    /// The slices of a service.
    pub fn slices(&self, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    fn note(&mut self, change: &Change<EndpointSlice>) -> Vec<ObjectKey> {
        let (gone, here) = match change {
            Change::Added(new) => (None, Some(new)),
            Change::Updated { old, new } => (Some(old), Some(new)),
            Change::Deleted(old) => (Some(old), None),
        };
        let mut concerned = Vec::new();
        if let Some((slice, service)) = gone.and_then(|slice| Some((slice, service_of(slice)?))) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(&ObjectKey::of(&**slice).name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            concerned.push(service);
        }
        if let Some((slice, service)) = here.and_then(|slice| Some((slice, service_of(slice)?))) {
            let slices = self.slices.entry(service.clone()).or_default();
            slices.insert(ObjectKey::of(&**slice).name, slice.clone());
            concerned.push(service);
        }
        concerned
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}
