//! Answers that are remembered for a while, by the digest of the question.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};

/// More answers than this are not remembered; the oldest half goes.
const MOST: usize = 8192;

type Digest = [u8; 32];

/// The answers.
pub struct Cache<T>(Mutex<HashMap<Digest, (Instant, T)>>);

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The digest of a question.
pub fn question(text: &str) -> Digest {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    key
}

impl<T: Clone> Cache<T> {
    /// An answer that still counts.
    pub fn get(&self, key: &Digest) -> Option<T> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(end, _)| Instant::now() < *end).map(|(_, answer)| answer.clone())
    }

    /// Remembers an answer for a while.
    pub fn put(&self, key: Digest, answer: T, life: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= MOST {
            known.retain(|_, (end, _)| now < *end);
        }
        if known.len() >= MOST {
            let mut ends: Vec<Instant> = known.values().map(|(end, _)| *end).collect();
            let half = ends.len() / 2;
            let (_, median, _) = ends.select_nth_unstable(half);
            let median = *median;
            known.retain(|_, (end, _)| *end > median);
        }
        known.insert(key, (now + life, answer));
    }
}
