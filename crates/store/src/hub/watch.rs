//! A cursor into a collection's history.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Collection, Event};
use crate::{Compacted, Revision};

const BATCH: usize = 256;

/// Delivers the events of a collection after a revision, exactly once and in order.
pub struct Watch<A> {
    collection: Arc<Collection<A>>,
    prefix: String,
    seen: Revision,
    changed: watch::Receiver<Revision>,
}

impl<A> Watch<A> {
    pub(super) fn new(
        collection: Arc<Collection<A>>,
        prefix: &str,
        seen: Revision,
        mut changed: watch::Receiver<Revision>,
    ) -> Self {
        changed.mark_changed();
        Self { collection, prefix: prefix.to_owned(), seen, changed }
    }

    /// Waits for the next events, at least one. Cancel-safe.
    ///
    /// # Errors
    /// The watch fell behind the history.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event<A>>>, Compacted> {
        loop {
            let events = self.collection.events_after(self.seen, BATCH)?;
            if let Some(last) = events.last() {
                self.seen = last.object.revision;
                return Ok(events
                    .into_iter()
                    .filter(|event| event.object.name.starts_with(&self.prefix))
                    .collect());
            }
            // The sender lives in the collection, which this watch keeps alive.
            let _ = self.changed.changed().await;
        }
    }

    /// The events that are there already; none means the watch is up to date.
    ///
    /// # Errors
    /// The watch fell behind the history.
    pub fn ready(&mut self) -> Result<Vec<Arc<Event<A>>>, Compacted> {
        let mut events = self.collection.events_after(self.seen, BATCH)?;
        if let Some(last) = events.last() {
            self.seen = last.object.revision;
        }
        let before = events.len();
        events.retain(|event| event.object.name.starts_with(&self.prefix));
        if events.is_empty() && before > 0 { self.ready() } else { Ok(events) }
    }
}
