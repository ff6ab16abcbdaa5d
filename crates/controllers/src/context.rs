//! What all controllers share.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_client::{Client, Informer, InformerFactory, ObjectKey, Recorder, Requeue, WorkQueue, drive};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::certificates::Authority;

/// What the controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's authority, PEM; every namespace gets it as a ConfigMap.
    pub ca_pem: String,
    /// The addresses of pods: network and prefix length.
    pub pod_cidr: (Ipv4Addr, u8),
    /// The prefix length of a node's share.
    pub node_prefix_length: u8,
    /// Signs certificates of the cluster's signers; without it, somebody else does.
    pub authority: Option<Arc<Authority>>,
}

/// Handles that every controller needs.
pub struct Context {
    pub factory: Arc<InformerFactory>,
    pub config: Config,
    pub cancel: CancellationToken,
}

impl Context {
    pub fn new(factory: Arc<InformerFactory>, config: Config, cancel: CancellationToken) -> Self {
        Self { factory, config, cancel }
    }

    pub fn client(&self) -> Client {
        self.factory.client().clone()
    }

    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        self.factory.informer()
    }

    pub fn pods(&self) -> Informer<Pod> {
        self.informer()
    }

    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client(), component, "", self.cancel.clone())
    }

    pub async fn drive<T, F, R, E>(
        &self,
        name: &'static str,
        queue: Arc<WorkQueue<T>>,
        workers: usize,
        reconcile: F,
    ) where
        T: Clone + Eq + Hash + std::fmt::Debug + Send + Sync + 'static,
        F: Fn(T) -> R + Send + Sync,
        R: Future<Output = Result<Requeue, E>> + Send,
        E: Display,
    {
        drive(name, queue, workers, self.cancel.clone(), reconcile).await;
    }
}

/// Whether a failure says that what was to be changed is gone or already so.
pub fn ignore(error: kube::Error, codes: &[u16]) -> Result<(), kube::Error> {
    match &error {
        kube::Error::Api(status) if codes.contains(&status.code) => Ok(()),
        _ => Err(error),
    }
}

/// What a failure says, as the server worded it.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether something could not be made because its namespace is being deleted.
pub fn namespace_terminates(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What this controller wrote last of each object. Until the cache shows it, the cache is too old to decide by.
#[derive(Default)]
pub struct Written(Mutex<HashMap<ObjectKey, u64>>);

impl Written {
    fn all(&self) -> MutexGuard<'_, HashMap<ObjectKey, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's answer to a write.
    pub fn wrote(&self, key: &ObjectKey, meta: &ObjectMeta) {
        if let Some(revision) = revision(meta) {
            self.all().insert(key.clone(), revision);
        }
    }

    /// Whether the cached object is the one written last, or newer.
    pub fn seen(&self, key: &ObjectKey, cached: &ObjectMeta) -> bool {
        self.all().get(key).is_none_or(|written| revision(cached).is_none_or(|cached| cached >= *written))
    }

    /// The object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.all().remove(key);
    }
}

/// Resource versions are numbers that can be compared (KEP-5504).
fn revision(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}
