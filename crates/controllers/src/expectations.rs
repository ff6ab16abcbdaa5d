//! What a controller has asked for and not yet seen in its cache: until then it must not count what is there.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coxswain_client::ObjectKey;
use tokio::time::Instant;

/// An event that never comes (the object was gone at once) stops counting after this.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Expected {
    created: HashSet<String>,
    deleted: HashSet<String>,
    since: Option<Instant>,
}

/// The expectations of every owner, by uid of what was made or deleted.
#[derive(Default)]
pub struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

impl Expectations {
    fn all(&self) -> MutexGuard<'_, HashMap<ObjectKey, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything asked for has been seen.
    pub fn fulfilled(&self, owner: &ObjectKey) -> bool {
        self.all().get(owner).is_none_or(|expected| {
            (expected.created.is_empty() && expected.deleted.is_empty())
                || expected.since.is_some_and(|since| since.elapsed() > FORGOTTEN_AFTER)
        })
    }

    /// An object was made: it is expected unless `seen` finds it in the cache already.
    pub fn created(&self, owner: &ObjectKey, uid: &str, seen: impl FnOnce() -> bool) {
        let mut all = self.all();
        if !seen() {
            let expected = all.entry(owner.clone()).or_default();
            expected.created.insert(uid.to_owned());
            expected.since = Some(Instant::now());
        }
    }

    /// An object is about to be deleted.
    pub fn deleting(&self, owner: &ObjectKey, uid: &str) {
        let mut all = self.all();
        let expected = all.entry(owner.clone()).or_default();
        expected.deleted.insert(uid.to_owned());
        expected.since = Some(Instant::now());
    }

    /// The cache shows an object that was made.
    pub fn saw_creation(&self, owner: &ObjectKey, uid: &str) {
        if let Some(expected) = self.all().get_mut(owner) {
            expected.created.remove(uid);
        }
    }

    /// The cache shows that an object is gone or going.
    pub fn saw_deletion(&self, owner: &ObjectKey, uid: &str) {
        if let Some(expected) = self.all().get_mut(owner) {
            expected.deleted.remove(uid);
            expected.created.remove(uid);
        }
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &ObjectKey) {
        self.all().remove(owner);
    }
}
