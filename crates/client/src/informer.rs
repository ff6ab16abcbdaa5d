//! Shared informers: one list/watch and one cache a kind a process, however many components look at it.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::lean::Cached;

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `metadata.namespace`, or empty.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// The key of any object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What happened to one object of an informer's cache.
#[derive(Debug)]
pub enum Change<K> {
    /// Newly seen; also sent for every object in the cache when a subscription starts.
    Added(Arc<K>),
    /// Replaced by a newer version.
    Updated {
        /// The version before.
        old: Arc<K>,
        /// The version now in the cache.
        new: Arc<K>,
    },
    /// Gone; the last version known.
    Deleted(Arc<K>),
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(object) => Self::Added(object.clone()),
            Self::Updated { old, new } => Self::Updated { old: old.clone(), new: new.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<K> Change<K> {
    /// The newest version this change knows of.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => object,
        }
    }
}

struct Shared<K> {
    cache: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Change<K>>>>,
    synced: watch::Sender<bool>,
}

impl<K: Resource> Shared<K> {
    fn subscribers(&self) -> MutexGuard<'_, Vec<mpsc::UnboundedSender<Change<K>>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subscriber lock is held around the cache change, so that every subscriber sees snapshot and changes without gap.
    fn put(&self, object: K) {
        let (key, object) = (ObjectKey::of(&object), Arc::new(object));
        let mut subscribers = self.subscribers();
        let old = self.write().insert(key, object.clone());
        let change = match old {
            Some(old) if old.meta().resource_version == object.meta().resource_version => return,
            Some(old) => Change::Updated { old, new: object },
            None => Change::Added(object),
        };
        subscribers.retain(|s| s.send(change.clone()).is_ok());
    }

    fn remove(&self, key: &ObjectKey) {
        let mut subscribers = self.subscribers();
        if let Some(old) = self.write().remove(key) {
            subscribers.retain(|s| s.send(Change::Deleted(old.clone())).is_ok());
        }
    }

    fn replace(&self, objects: Vec<K>) {
        let keys: std::collections::BTreeSet<_> = objects.iter().map(ObjectKey::of).collect();
        let gone: Vec<_> = self.read().keys().filter(|key| !keys.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
        objects.into_iter().for_each(|object| self.put(object));
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<ObjectKey, Arc<K>>> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<ObjectKey, Arc<K>>> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle on the shared cache of one kind.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), tasks: self.tasks.clone(), cancel: self.cancel.clone() }
    }
}

impl<K: Resource + Send + Sync + 'static> Informer<K> {
    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.read().get(key).cloned()
    }

    /// Every object, in the order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.read().values().cloned().collect()
    }

    /// Every object of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared
            .read()
            .range(ObjectKey::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Resolves when the first list is in the cache.
    pub async fn synced(&self) {
        // The sender lives in `shared`, which this handle keeps alive.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Every object as [`Change::Added`], then every change, without gap.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut subscribers = self.shared.subscribers();
        for object in self.shared.read().values() {
            let _ = sender.send(Change::Added(object.clone()));
        }
        subscribers.push(sender);
        receiver
    }

    /// Feeds a queue with the keys that each change concerns, until the factory is cancelled.
    pub fn feed<T, I>(
        &self,
        queue: &Arc<crate::WorkQueue<T>>,
        keys: impl Fn(&Change<K>) -> I + Send + 'static,
    ) where
        T: Clone + Eq + Hash + Send + Sync + 'static,
        I: IntoIterator<Item = T>,
    {
        let (mut changes, queue, cancel) = (self.subscribe(), queue.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            while let Some(Some(change)) = cancel.run_until_cancelled(changes.recv()).await {
                keys(&change).into_iter().for_each(|key| queue.add(key));
            }
        });
    }
}

type Informers = Mutex<HashMap<(TypeId, Option<String>), Box<dyn Any + Send>>>;

/// The informers of a process, one a kind (and selection), as one component uses them.
pub struct InformerFactory {
    /// What the component writes with.
    client: Client,
    /// What all components watch with.
    watching: Client,
    cancel: CancellationToken,
    tasks: TaskTracker,
    informers: Arc<Informers>,
}

impl InformerFactory {
    /// Informers that watch through `client` until `cancel`.
    pub fn new(client: Client, cancel: CancellationToken) -> Arc<Self> {
        let watching = client.clone();
        Arc::new(Self { client, watching, cancel, tasks: TaskTracker::new(), informers: Arc::default() })
    }

    /// The same informers for a component that writes under another identity.
    pub fn for_client(&self, client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            watching: self.watching.clone(),
            cancel: self.cancel.clone(),
            tasks: self.tasks.clone(),
            informers: self.informers.clone(),
        })
    }

    /// The component's own client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of a kind; its watch starts when it is first asked for.
    /// Of pods it has what controllers and the scheduler read: what only a kubelet needs is not there.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    {
        self.select::<K, false>(None)
    }

    /// The informer of the objects that a field selector names, such as `spec.nodeName=a`; they are whole.
    pub fn informer_by_fields<K>(&self, field_selector: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    {
        self.select::<K, true>(Some(field_selector.to_owned()))
    }

    fn select<K, const WHOLE: bool>(&self, fields: Option<String>) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    {
        let mut informers = self.informers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = informers.entry((TypeId::of::<K>(), fields.clone())).or_insert_with(|| {
            let shared = Arc::new(Shared::<K> {
                cache: RwLock::default(),
                subscribers: Mutex::default(),
                synced: watch::channel(false).0,
            });
            let (api, cancel) = (Api::all(self.watching.clone()), self.cancel.clone());
            self.tasks.spawn(run::<K, WHOLE>(shared.clone(), api, fields, cancel));
            Box::new(Informer { shared, tasks: self.tasks.clone(), cancel: self.cancel.clone() })
        });
        entry.downcast_ref::<Informer<K>>().expect("the entry's key is its type").clone()
    }

    /// Waits until every task of the informers has ended; call after cancelling.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn run<K, const WHOLE: bool>(
    shared: Arc<Shared<K>>,
    api: Api<Cached<K, WHOLE>>,
    fields: Option<String>,
    cancel: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    let config = watcher::Config { field_selector: fields, ..watcher::Config::default() };
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut initial = Vec::new();
    while let Some(Some(event)) = cancel.run_until_cancelled(events.next()).await {
        match event {
            Ok(watcher::Event::Init) => initial.clear(),
            Ok(watcher::Event::InitApply(Cached(object))) => initial.push(object),
            Ok(watcher::Event::InitDone) => {
                shared.replace(std::mem::take(&mut initial));
                shared.synced.send_replace(true);
            }
            Ok(watcher::Event::Apply(Cached(object))) => shared.put(object),
            Ok(watcher::Event::Delete(Cached(object))) => shared.remove(&ObjectKey::of(&object)),
            Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted"),
        }
    }
}
