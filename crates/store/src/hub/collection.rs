//! One collection: its objects by name, and its part of the history.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use super::watch::Watch;
use super::{Event, EventKind, Object};
use crate::{Compacted, Revision};

struct State<A> {
    current: BTreeMap<Arc<str>, Arc<Object<A>>>,
    history: VecDeque<Arc<Event<A>>>,
    /// Every event after this revision is in `history`.
    floor: Revision,
    /// The newest event applied; the waking signal trails it until the batch is published.
    newest: Revision,
}

/// The objects of one resource.
pub struct Collection<A> {
    state: RwLock<State<A>>,
    changed: watch::Sender<Revision>,
}

/// A part of a list.
#[derive(Debug)]
pub struct Page<A> {
    /// The objects, in the order of their names.
    pub objects: Vec<Arc<Object<A>>>,
    /// Whether there are more behind the last one.
    pub more: bool,
    /// How many are left behind the last one.
    pub remaining: usize,
}

impl<A> Collection<A> {
    pub(super) fn new(floor: Revision) -> Self {
        let state = State { current: BTreeMap::new(), history: VecDeque::new(), floor, newest: floor };
        Self { state: RwLock::new(state), changed: watch::channel(floor).0 }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<A>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<A>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object, as of now.
    pub fn get(&self, name: &str) -> Option<Arc<Object<A>>> {
        self.read().current.get(name).cloned()
    }

    /// The revision of the newest write to the collection that is published.
    pub fn newest(&self) -> Revision {
        *self.changed.borrow()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().current.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every object whose name starts with `prefix`, as of now.
    pub fn list(&self, prefix: &str) -> Vec<Arc<Object<A>>> {
        self.read().by_prefix(prefix)
    }

    /// The same, unless there are writes after a revision already.
    pub fn list_at(&self, prefix: &str, at: Revision) -> Option<Vec<Arc<Object<A>>>> {
        let state = self.read();
        (state.newest <= at).then(|| state.by_prefix(prefix))
    }

    /// Objects by `prefix` that `select` takes, behind the name `after`, at most `limit`, as they were at a revision.
    ///
    /// # Errors
    /// The history no longer reaches back to the revision.
    pub fn page(
        &self,
        prefix: &str,
        at: Revision,
        after: Option<&str>,
        limit: usize,
        select: impl Fn(&Object<A>) -> bool,
    ) -> Result<Page<A>, Compacted> {
        let state = self.read();
        let mut changed = BTreeMap::new();
        if state.newest > at {
            if state.floor > at {
                return Err(Compacted { asked: at, oldest: state.floor });
            }
            for event in state.history.iter().rev().take_while(|event| event.object.revision > at) {
                changed.insert(event.object.name.clone(), event.previous.clone());
            }
        }
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let range = (start, Bound::Unbounded);
        let untouched = state.current.range::<str, _>(range).filter(|(name, _)| !changed.contains_key(*name));
        let then = changed.range::<str, _>(range).filter_map(|(name, object)| Some((name, object.as_ref()?)));
        let mut all = merge(untouched, then)
            .take_while(|object| object.name.starts_with(prefix))
            .filter(|object| select(object));
        let objects: Vec<_> = all.by_ref().take(limit).cloned().collect();
        let remaining = if objects.len() == limit { all.count() } else { 0 };
        Ok(Page { objects, more: remaining > 0, remaining })
    }

    /// A watch of the events after a revision whose names start with `prefix`.
    ///
    /// # Errors
    /// The history no longer reaches back to the revision.
    pub fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<Watch<A>, Compacted> {
        let floor = self.read().floor;
        if from < floor {
            return Err(Compacted { asked: from, oldest: floor });
        }
        Ok(Watch::new(self.clone(), prefix, from, self.changed.subscribe()))
    }

    /// The events after a revision that are published, at most `most`.
    pub(super) fn events_after(&self, from: Revision, most: usize) -> Result<Vec<Arc<Event<A>>>, Compacted> {
        let published = *self.changed.borrow();
        let state = self.read();
        if from < state.floor {
            return Err(Compacted { asked: from, oldest: state.floor });
        }
        let start = state.history.partition_point(|event| event.object.revision <= from);
        let events = state.history.range(start..).take_while(|event| event.object.revision <= published);
        Ok(events.take(most).cloned().collect())
    }

    pub(super) fn apply(&self, event: Arc<Event<A>>) {
        let mut state = self.write();
        state.set(&event);
        state.newest = event.object.revision;
        state.history.push_back(event);
    }

    /// Takes in an object that is older than the history.
    pub(super) fn restore(&self, event: &Event<A>) {
        self.write().set(event);
    }

    /// Takes the state of another collection over.
    pub(super) fn adopt(&self, other: Self) {
        *self.write() = other.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    pub(super) fn forget_oldest(&self) -> Option<Arc<Event<A>>> {
        let mut state = self.write();
        let event = state.history.pop_front()?;
        state.floor = event.object.revision;
        Some(event)
    }

    /// Shows the watches what has been applied.
    pub(super) fn wake(&self) {
        let newest = self.read().newest;
        self.changed.send_if_modified(|published| std::mem::replace(published, newest) != newest);
    }
}

impl<A> State<A> {
    fn by_prefix(&self, prefix: &str) -> Vec<Arc<Object<A>>> {
        let range = (Bound::Included(prefix), Bound::Unbounded);
        let named = self.current.range::<str, _>(range).take_while(|(name, _)| name.starts_with(prefix));
        named.map(|(_, object)| object.clone()).collect()
    }

    fn set(&mut self, event: &Event<A>) {
        match event.kind {
            EventKind::Put => self.current.insert(event.object.name.clone(), event.object.clone()),
            EventKind::Delete => self.current.remove(&event.object.name),
        };
    }
}

type Named<'a, A> = (&'a Arc<str>, &'a Arc<Object<A>>);

/// Two runs in the order of names, as one.
fn merge<'a, A: 'a>(
    left: impl Iterator<Item = Named<'a, A>>,
    right: impl Iterator<Item = Named<'a, A>>,
) -> impl Iterator<Item = &'a Arc<Object<A>>> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let take_left = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => l.0 < r.0,
            (l, _) => l.is_some(),
        };
        if take_left { left.next() } else { right.next() }.map(|(_, object)| object)
    })
}
