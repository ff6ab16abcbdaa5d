//! What all controllers share.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::sync::Arc;

use coxswain_client::{Client, Informer, InformerFactory, Recorder, Requeue, WorkQueue, drive};
use k8s_openapi::api::core::v1::Pod;
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
