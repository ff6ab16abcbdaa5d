//! Events live for an hour after their last write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_store::{Key, Revision};
use tokio::time::Instant;

use crate::Server;

const COLLECTION: &str = "events";
const LIFE: Duration = Duration::from_secs(3600);
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Deletes events whose time has come, until the server stops. After a restart their hour begins anew.
pub async fn run(server: Arc<Server>) {
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
