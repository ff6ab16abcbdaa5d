//! ConfigMaps and Secrets that pods refer to: one watch an object, shared between pods, dropped with the last pod.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coxswain_client::ObjectKey;
use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Called with the UID of every pod that refers to an object that changed.
pub type OnChange = Arc<dyn Fn(&str) + Send + Sync>;

/// What is known of an object.
enum Seen<K> {
    Unknown,
    Missing,
    Present(Arc<K>),
}

struct Watched<K> {
    users: HashSet<String>,
    seen: watch::Receiver<Seen<K>>,
    task: AbortHandle,
}

/// Why an object cannot be given to a pod.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("{0} \"{1}\" not found")]
    NotFound(String, String),
    /// The API server has not answered yet.
    #[error("failed to sync {0} cache: timed out waiting for the condition")]
    NotSynced(String),
}

/// The watched objects of one kind.
pub struct Objects<K> {
    client: Client,
    on_change: OnChange,
    watched: Mutex<HashMap<ObjectKey, Watched<K>>>,
}

impl<K> Objects<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    /// Nothing is watched before a pod asks.
    pub fn new(client: Client, on_change: OnChange) -> Self {
        Self { client, on_change, watched: Mutex::default() }
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<ObjectKey, Watched<K>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object as it is now; watches it for the pod from now on.
    pub async fn get(
        self: &Arc<Self>,
        pod_uid: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<K>, ObjectError> {
        let key = ObjectKey::new(namespace, name);
        let mut seen = {
            let mut watched = self.watched();
            let entry = watched.entry(key.clone()).or_insert_with(|| self.start(key));
            entry.users.insert(pod_uid.to_owned());
            entry.seen.clone()
        };
        let known = seen.wait_for(|seen| !matches!(seen, Seen::Unknown));
        let plural = || K::plural(&()).into_owned();
        match tokio::time::timeout(FIRST_LOOK, known).await {
            Ok(Ok(seen)) => match &*seen {
                Seen::Present(object) => Ok(object.clone()),
                _ => Err(ObjectError::NotFound(plural().trim_end_matches('s').to_owned(), name.to_owned())),
            },
            _ => Err(ObjectError::NotSynced(K::kind(&()).to_lowercase())),
        }
    }

    /// Ends the pod's interest in all objects.
    pub fn release(&self, pod_uid: &str) {
        self.watched().retain(|_, entry| {
            entry.users.remove(pod_uid);
            if entry.users.is_empty() {
                entry.task.abort();
            }
            !entry.users.is_empty()
        });
    }

    fn start(self: &Arc<Self>, key: ObjectKey) -> Watched<K> {
        let (sender, seen) = watch::channel(Seen::Unknown);
        let this = Arc::downgrade(self);
        let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff());
            let mut initial = None;
            while let Some(event) = events.next().await {
                let now = match event {
                    Ok(watcher::Event::Init) => {
                        initial = None;
                        continue;
                    }
                    Ok(watcher::Event::InitApply(object)) => {
                        initial = Some(object);
                        continue;
                    }
                    Ok(watcher::Event::InitDone) => {
                        initial.take().map_or(Seen::Missing, |object| Seen::Present(Arc::new(object)))
                    }
                    Ok(watcher::Event::Apply(object)) => Seen::Present(Arc::new(object)),
                    Ok(watcher::Event::Delete(_)) => Seen::Missing,
                    Err(error) => {
                        tracing::debug!(%error, kind = %K::kind(&()), %key, "watch interrupted");
                        continue;
                    }
                };
                let first = matches!(&*sender.borrow(), Seen::Unknown);
                sender.send_replace(now);
                let Some(this) = this.upgrade() else { return };
                if !first {
                    this.notify(&key);
                }
            }
        });
        Watched { users: HashSet::new(), seen, task: task.abort_handle() }
    }

    fn notify(&self, key: &ObjectKey) {
        let users: Vec<String> =
            self.watched().get(key).map(|entry| entry.users.iter().cloned().collect()).unwrap_or_default();
        users.iter().for_each(|uid| (self.on_change)(uid));
    }
}
