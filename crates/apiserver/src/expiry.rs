//! What expires by itself: events an hour after their last write, and lists that are read in pages.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coxswain_store::{Key, Revision};
use tokio::time::Instant;

use crate::Server;

const COLLECTION: &str = "events";
const LIFE: Duration = Duration::from_secs(3600);
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// The pages of a list have to be asked for within this time, or twice that: a client that has gone away with half a list
/// in its hands does not find it years later.
const PAGES_PERIOD: Duration = Duration::from_secs(300);

/// The oldest revision at which the pages of a list are still served.
#[derive(Default)]
pub struct Pages {
    oldest: AtomicU64,
}

impl Pages {
    /// The oldest revision that may be asked for.
    pub fn oldest(&self) -> Revision {
        Revision(self.oldest.load(Ordering::Relaxed))
    }
}

/// Lets pages expire, until the server stops.
pub async fn expire_pages(server: Arc<Server>) {
    let mut period = tokio::time::interval(PAGES_PERIOD);
    let mut before = Revision(0);
    while server.shutdown.run_until_cancelled(period.tick()).await.is_some() {
        server.pages.oldest.store(before.0, Ordering::Relaxed);
        before = server.store.revision();
    }
}

/// Deletes events whose time has come, until the server stops. After a restart their hour begins anew.
pub async fn expire_events(server: Arc<Server>) {
    let mut seen: HashMap<Arc<str>, (Revision, Instant)> = HashMap::new();
    let mut period = tokio::time::interval(SWEEP_PERIOD);
    while server.shutdown.run_until_cancelled(period.tick()).await.is_some() {
        let now = Instant::now();
        let events = server.store.collection(COLLECTION).list("");
        let mut current = HashMap::with_capacity(events.len());
        for event in events {
            let since = match seen.get(&event.name) {
                Some((revision, since)) if *revision == event.revision => *since,
                _ => now,
            };
            if now.duration_since(since) < LIFE {
                current.insert(event.name.clone(), (event.revision, since));
            } else if let Err(error) =
                server.store.delete(Key::new(COLLECTION, event.name.clone()), event.revision).await
            {
                tracing::debug!(%error, event = %event.name, "an event was not removed");
            }
        }
        seen = current;
    }
}
