//! A cursor into a collection's history.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Collection, Event};
use crate::{Compacted, Revision, Terms};

const BATCH: usize = 256;
/// What it takes to tell one watch something, however much it is. A watch waits as long as all watches of the collection
/// take together before it is told more: so few are told at once, and many in packs, without falling behind.
const TELLING: Duration = Duration::from_micros(10);
/// The clock of timers ticks in these.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Delivers the events of a collection after a revision, exactly once and in order.
pub struct Watch<A> {
    collection: Arc<Collection<A>>,
    prefix: String,
    seen: Revision,
    changed: watch::Receiver<Revision>,
    /// When it was told something last.
    told: Option<Instant>,
}

impl<A: Terms> Watch<A> {
    pub(super) fn new(
        collection: Arc<Collection<A>>,
        prefix: &str,
        seen: Revision,
        changed: watch::Receiver<Revision>,
    ) -> Self {
        Self { collection, prefix: prefix.to_owned(), seen, changed, told: None }
    }

    /// Waits for the next events, at least one. Cancel-safe.
    ///
    /// # Errors
    /// The watch fell behind the history.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event<A>>>, Compacted> {
        loop {
            if *self.changed.borrow_and_update() > self.seen {
                let pause = TELLING * u32::try_from(self.collection.watches()).unwrap_or(u32::MAX);
                if let Some(told) = self.told.filter(|told| pause >= SHORTEST_WAIT && told.elapsed() < pause)
                {
                    sleep_until(told + pause).await;
                }
                let events = self.collection.events_after(self.seen, BATCH)?;
                if let Some(last) = events.last() {
                    self.seen = last.object.revision;
                    self.told = Some(Instant::now());
                    let mine = events.into_iter().filter(|event| event.object.name.starts_with(&self.prefix));
                    return Ok(mine.collect());
                }
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
