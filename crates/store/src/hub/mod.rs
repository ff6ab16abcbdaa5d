//! What readers see: the current objects of every collection, and the recent history that watches and pages read.
//!
//! The history is the broadcast: a watch holds a cursor into it and copies shared events out, so a slow watcher costs
//! nothing and is told when it fell behind.

mod collection;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use hashbrown::HashMap;

pub use collection::{Collection, Page, Range};
pub use watch::Watch;

use crate::{Key, Record, Revision, View};

/// An object as it is served.
#[derive(Debug)]
pub struct Object<A> {
    /// Its name in the collection.
    pub name: Arc<str>,
    /// The revision of its last write.
    pub revision: Revision,
    /// The encoded object, with its revision inside.
    pub bytes: Bytes,
    /// What selectors read.
    pub attributes: Arc<A>,
}

/// What an event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The object was written.
    Put,
    /// The object is gone.
    Delete,
}

/// One write, as watches see it.
#[derive(Debug)]
pub struct Event<A> {
    /// Put or delete.
    pub kind: EventKind,
    /// The object now; of a delete its last state, stamped with the revision of the delete.
    pub object: Arc<Object<A>>,
    /// The object before.
    pub previous: Option<Arc<Object<A>>>,
}

/// How much history is kept: whichever limit is met first.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimit {
    /// Events.
    pub events: usize,
    /// Bytes of objects that only the history holds.
    pub superseded_bytes: usize,
}

impl Default for HistoryLimit {
    fn default() -> Self {
        Self { events: 50_000, superseded_bytes: 16 << 20 }
    }
}

/// What left the history and may leave the log.
#[derive(Debug, Default)]
pub struct Trimmed {
    /// Records that nothing needs any more.
    pub revisions: Vec<Revision>,
    /// The newest event that the history no longer holds.
    pub horizon: Revision,
}

/// A record as readers see it, but for what was there before.
pub struct Prepared<A> {
    /// The write's own revision.
    pub revision: Revision,
    key: Key,
    value: Option<(Bytes, A)>,
}

struct Kept<A> {
    collection: Arc<Collection<A>>,
    superseded_bytes: usize,
}

struct History<A> {
    order: VecDeque<Kept<A>>,
    superseded_bytes: usize,
    /// The collections with events that no watch was woken for yet.
    unpublished: Vec<Arc<Collection<A>>>,
}

/// All collections. Written by the writer thread alone.
pub struct Hub<V: View> {
    view: V,
    limit: HistoryLimit,
    revision: AtomicU64,
    horizon: AtomicU64,
    collections: RwLock<HashMap<String, Arc<Collection<V::Attributes>>>>,
    history: Mutex<History<V::Attributes>>,
}

impl<V: View> Hub<V> {
    /// An empty hub.
    pub fn new(view: V, limit: HistoryLimit) -> Self {
        Self {
            view,
            limit,
            revision: AtomicU64::new(0),
            horizon: AtomicU64::new(0),
            collections: RwLock::default(),
            history: Mutex::new(History {
                order: VecDeque::new(),
                superseded_bytes: 0,
                unpublished: Vec::new(),
            }),
        }
    }

    /// The newest revision that reads see.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// Sets the revision up to which history was forgotten, before loading.
    pub fn set_horizon(&self, horizon: Revision) {
        self.horizon.store(horizon.0, Ordering::Release);
    }

    /// The collection of a name.
    pub fn collection(&self, name: &str) -> Arc<Collection<V::Attributes>> {
        if let Some(collection) = self.collections.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return collection.clone();
        }
        let mut collections = self.collections.write().unwrap_or_else(PoisonError::into_inner);
        let floor = Revision(self.horizon.load(Ordering::Acquire));
        collections.entry(name.to_owned()).or_insert_with(|| Arc::new(Collection::new(floor))).clone()
    }

    /// How many objects each collection holds; empty ones are left out.
    pub fn sizes(&self) -> Vec<(String, usize)> {
        let collections = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        let sizes = collections.iter().map(|(name, collection)| (name.clone(), collection.len()));
        let mut sizes: Vec<_> = sizes.filter(|(_, size)| *size > 0).collect();
        sizes.sort_unstable();
        sizes
    }

    /// Makes of a record what readers see of it, as far as no other object has to be looked at; the attributes where nobody
    /// knows them yet.
    pub fn prepare(&self, record: Record, attributes: Option<V::Attributes>) -> Prepared<V::Attributes> {
        let Record { revision, key, value } = record;
        let value = value.map(|stored| {
            let attributes = attributes.unwrap_or_else(|| self.view.attributes(&key, &stored));
            (self.view.stamp(&stored, revision), attributes)
        });
        Prepared { revision, key, value }
    }

    /// Takes a record of the log in.
    pub fn load(&self, record: Prepared<V::Attributes>, horizon: Revision, trimmed: &mut Trimmed) {
        if record.revision > horizon {
            self.apply(record, trimmed);
        } else {
            let collection = self.collection(&record.key.collection);
            let event = self.event(&collection, record);
            collection.restore(&event);
        }
    }

    /// Applies a write that the log has, and remembers it in the history.
    pub fn apply(
        &self,
        record: Prepared<V::Attributes>,
        trimmed: &mut Trimmed,
    ) -> Arc<Object<V::Attributes>> {
        let collection = self.collection(&record.key.collection);
        let event = self.event(&collection, record);
        let object = event.object.clone();
        // The last state of a deleted object is kept for the history alone, too.
        let last = if event.kind == EventKind::Delete { event.object.bytes.len() } else { 0 };
        let superseded_bytes = last + event.previous.as_ref().map_or(0, |previous| previous.bytes.len());
        collection.apply(event);
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.unpublished.last().is_none_or(|last| !Arc::ptr_eq(last, &collection)) {
            history.unpublished.push(collection.clone());
        }
        history.superseded_bytes += superseded_bytes;
        history.order.push_back(Kept { collection, superseded_bytes });
        while history.order.len() > self.limit.events
            || history.superseded_bytes > self.limit.superseded_bytes
        {
            let Some(kept) = history.order.pop_front() else { break };
            history.superseded_bytes -= kept.superseded_bytes;
            if let Some(event) = kept.collection.forget_oldest() {
                trimmed.horizon = event.object.revision;
                trimmed.revisions.extend(event.previous.as_ref().map(|previous| previous.revision));
                if event.kind == EventKind::Delete {
                    trimmed.revisions.push(event.object.revision);
                }
                self.set_horizon(event.object.revision);
            }
        }
        object
    }

    /// Takes a whole state in, without the history that led to it: watches are told that they fell behind.
    pub fn replace(&self, records: Vec<Record>, newest: Revision) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.order, history.superseded_bytes) = (VecDeque::new(), 0);
        self.set_horizon(newest);
        let names: Vec<String> =
            self.collections.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let fresh = |name| (name, Collection::new(newest));
        let mut states: HashMap<String, Collection<V::Attributes>> = names.into_iter().map(fresh).collect();
        for record in records {
            let name = record.key.collection.to_string();
            let state = states.entry(name).or_insert_with(|| Collection::new(newest));
            let event = self.event(state, self.prepare(record, None));
            state.restore(&event);
        }
        for (name, state) in states {
            let collection = self.collection(&name);
            collection.adopt(state);
            history.unpublished.push(collection);
        }
    }

    /// Makes everything up to a revision visible and wakes the watches.
    pub fn publish(&self, revision: Revision) {
        self.revision.store(revision.0, Ordering::Release);
        let written =
            std::mem::take(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner).unpublished);
        written.iter().for_each(|collection| collection.wake());
    }

    fn event(
        &self,
        collection: &Collection<V::Attributes>,
        Prepared { revision, key, value }: Prepared<V::Attributes>,
    ) -> Arc<Event<V::Attributes>> {
        let previous = collection.newest_of(&key.name);
        let name = previous.as_ref().map_or(key.name, |previous| previous.name.clone());
        let (kind, bytes, attributes) = match (value, &previous) {
            (Some((bytes, attributes)), _) => (EventKind::Put, bytes, Arc::new(attributes)),
            (None, Some(previous)) => {
                let last = self.view.stamp(&previous.bytes, revision);
                (EventKind::Delete, last, previous.attributes.clone())
            }
            (None, None) => {
                let nothing = Key { collection: key.collection, name: name.clone() };
                let attributes = self.view.attributes(&nothing, &[]);
                (EventKind::Delete, Bytes::new(), Arc::new(attributes))
            }
        };
        Arc::new(Event { kind, object: Arc::new(Object { name, revision, bytes, attributes }), previous })
    }
}
