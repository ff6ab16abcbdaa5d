//! A work queue of keys (each key at most once queued and at most once processed at a time) and the driver of reconcilers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

struct State<T> {
    ready: VecDeque<T>,
    dirty: HashSet<T>,
    processing: HashSet<T>,
    delayed: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

/// A queue that remembers which keys want work.
///
/// A key added while it is being processed is queued again once that ends; a key added twice is processed once.
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

impl<T: Clone + Eq + Hash> Default for WorkQueue<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: HashMap::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a key.
    pub fn add(&self, key: T) {
        let mut state = self.state();
        if state.dirty.insert(key.clone()) && !state.processing.contains(&key) {
            state.ready.push_back(key);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Queues a key after a while; the earliest of several times counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        let at = Instant::now() + delay;
        let mut state = self.state();
        let due = state.delayed.entry(key).or_insert(at);
        *due = at.min(*due);
        drop(state);
        self.changed.notify_one();
    }

    /// Queues a key with an exponential back-off in the number of its failures.
    pub fn retry(&self, key: T) {
        let mut state = self.state();
        let failures = state.failures.entry(key.clone()).or_default();
        let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_RETRY);
        *failures += 1;
        drop(state);
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn forget(&self, key: &T) {
        self.state().failures.remove(key);
    }

    /// The next key to work on; follow it with [`WorkQueue::done`].
    pub async fn next(&self) -> T {
        loop {
            let changed = self.changed.notified();
            let wake = {
                let mut state = self.state();
                let now = Instant::now();
                let due: Vec<T> =
                    state.delayed.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
                for key in due {
                    state.delayed.remove(&key);
                    if state.dirty.insert(key.clone()) && !state.processing.contains(&key) {
                        state.ready.push_back(key);
                    }
                }
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.values().min().copied()
            };
            match wake {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Ends the work on a key; it is queued again when it was added meanwhile.
    pub fn done(&self, key: &T) {
        let mut state = self.state();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }
}

/// What a reconciler wants after it succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Nothing before the next change.
    OnChange,
    /// A call after this time, whatever changes.
    After(Duration),
}

/// Runs `reconcile` on the queue's keys with a number of workers until `cancel`; errors are retried with back-off.
pub async fn drive<T, F, R, E>(
    name: &'static str,
    queue: Arc<WorkQueue<T>>,
    workers: usize,
    cancel: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(T) -> R + Send + Sync,
    R: Future<Output = Result<Requeue, E>> + Send,
    E: Display,
{
    let worker = || async {
        while let Some(key) = cancel.run_until_cancelled(queue.next()).await {
            let outcome = std::panic::AssertUnwindSafe(reconcile(key.clone())).catch_unwind().await;
            match outcome {
                Ok(Ok(requeue)) => {
                    queue.forget(&key);
                    if let Requeue::After(delay) = requeue {
                        queue.add_after(key.clone(), delay);
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(controller = name, ?key, %error, "reconcile failed; will retry");
                    queue.retry(key.clone());
                }
                Err(_) => {
                    tracing::error!(controller = name, ?key, "reconcile panicked; will retry");
                    queue.retry(key.clone());
                }
            }
            queue.done(&key);
        }
    };
    futures::future::join_all((0..workers).map(|_| worker())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_again_when_it_changes_during_work() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b", "a is still being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        assert!(queue.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn retries_back_off_and_the_earliest_time_counts() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        for _ in 0..3 {
            queue.retry(1);
            assert_eq!(queue.next().await, 1);
            queue.done(&1);
        }
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(35) && waited < Duration::from_millis(50), "{waited:?}");
        queue.add_after(2, Duration::from_secs(60));
        queue.add_after(2, Duration::from_secs(5));
        assert_eq!(queue.next().await, 2);
        assert!(start.elapsed() < Duration::from_secs(6));
    }
}
