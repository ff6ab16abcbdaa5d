//! One collection: its objects by name, and its part of the history.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use super::watch::Watch;
use super::{Event, EventKind, Object};
use crate::{Compacted, Revision, Terms};

type Objects<A> = BTreeMap<Arc<str>, Arc<Object<A>>>;

struct State<A> {
    current: Objects<A>,
    /// The current objects that have a term.
    by_term: HashMap<Box<str>, Objects<A>>,
    history: VecDeque<Arc<Event<A>>>,
    /// Every event after this revision is in `history`.
    floor: Revision,
    /// The newest event applied; the waking signal trails it until the batch is published.
    newest: Revision,
}

/// A part of a collection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// What the names start with.
    pub prefix: &'a str,
    /// Terms that all objects which are meant have; others may be among those given.
    pub terms: &'a [String],
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

impl<A: Terms> Collection<A> {
    pub(super) fn new(floor: Revision) -> Self {
        let state = State {
            current: BTreeMap::new(),
            by_term: HashMap::new(),
            history: VecDeque::new(),
            floor,
            newest: floor,
        };
        Self { state: RwLock::new(state), changed: watch::channel(floor).0 }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<A>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<A>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object, with what is applied and not published yet.
    pub(crate) fn newest_of(&self, name: &str) -> Option<Arc<Object<A>>> {
        self.read().current.get(name).cloned()
    }

    /// One object as it was at a revision not long ago: a list at that revision shows the same.
    pub(crate) fn get_at(&self, name: &str, at: Revision) -> Option<Arc<Object<A>>> {
        let state = self.read();
        let later = state.history.iter().rev().take_while(|event| event.object.revision > at);
        match later.filter(|event| &*event.object.name == name).last() {
            Some(event) => event.previous.clone(),
            None => state.current.get(name).cloned(),
        }
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
        self.read().within(Range { prefix, terms: &[] }).map(|(_, object)| object.clone()).collect()
    }

    /// The objects of a part of the collection, unless there are writes after a revision already.
    pub fn list_at(&self, range: Range, at: Revision) -> Option<Vec<Arc<Object<A>>>> {
        let state = self.read();
        (state.newest <= at).then(|| state.within(range).map(|(_, object)| object.clone()).collect())
    }

    /// The objects of a part that `select` takes, behind the name `after`, at most `limit`, as they were at a revision.
    ///
    /// # Errors
    /// The history no longer reaches back to the revision.
    pub fn page(
        &self,
        range: Range,
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
        let start = after.map_or(Bound::Included(range.prefix), Bound::Excluded);
        let untouched = state.behind(start, range).filter(|(name, _)| !changed.contains_key(*name));
        let then = changed.range::<str, _>((start, Bound::Unbounded));
        let then = then.filter_map(|(name, object)| Some((name, object.as_ref()?)));
        let mut all = merge(untouched, then)
            .take_while(|object| object.name.starts_with(range.prefix))
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

    /// How many watches there are.
    pub(super) fn watches(&self) -> usize {
        self.changed.receiver_count()
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

/// Before what the names with a prefix end.
fn end_of(prefix: &str) -> Bound<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}

impl<A: Terms> State<A> {
    /// The current objects of a part, in the order of names.
    fn within<'a>(&'a self, range: Range<'a>) -> impl Iterator<Item = Named<'a, A>> {
        self.behind(Bound::Included(range.prefix), range)
    }

    /// The current objects of a part from a name on; of those without the rarest of the terms, none.
    fn behind<'a>(
        &'a self,
        start: Bound<&str>,
        range: Range<'a>,
    ) -> Box<dyn Iterator<Item = Named<'a, A>> + 'a> {
        // Where the part ends is looked for once: a look at every name would fetch it from memory.
        let end = end_of(range.prefix);
        let from = (start, end.as_ref().map(String::as_str));
        if let (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end)) = from
            && start >= end
        {
            return Box::new(std::iter::empty());
        }
        let found = range.terms.iter().map(|term| self.by_term.get(term.as_str()));
        match found.min_by_key(|objects| objects.map_or(0, BTreeMap::len)) {
            None => Box::new(self.current.range::<str, _>(from)),
            Some(None) => Box::new(std::iter::empty()),
            Some(Some(objects)) => Box::new(objects.range::<str, _>(from)),
        }
    }

    fn set(&mut self, event: &Event<A>) {
        let Event { kind, object, previous } = event;
        let before = previous.as_deref().map(|previous| &*previous.attributes);
        let after = (*kind == EventKind::Put).then_some(&*object.attributes);
        if !before.into_iter().flat_map(Terms::terms).eq(after.into_iter().flat_map(Terms::terms)) {
            before.into_iter().flat_map(Terms::terms).for_each(|term| self.forget(term, &object.name));
        }
        after.into_iter().flat_map(Terms::terms).for_each(|term| self.find(term, object));
        before.into_iter().for_each(Terms::superseded);
        match kind {
            EventKind::Put => self.current.insert(object.name.clone(), object.clone()),
            EventKind::Delete => self.current.remove(&object.name),
        };
    }

    fn find(&mut self, term: &str, object: &Arc<Object<A>>) {
        let found = match self.by_term.get_mut(term) {
            Some(found) => found,
            None => self.by_term.entry(term.into()).or_default(),
        };
        found.insert(object.name.clone(), object.clone());
    }

    fn forget(&mut self, term: &str, name: &str) {
        if let Some(found) = self.by_term.get_mut(term) {
            found.remove(name);
            if found.is_empty() {
                self.by_term.remove(term);
            }
        }
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
