//! Exponential back-off by key, as upstream's `flowcontrol.Backoff`: a key is forgotten after twice the longest delay.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

/// Delays that double from `first` to `longest`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: SignedDuration,
    longest: SignedDuration,
    entries: HashMap<String, Entry>,
}

impl Backoff {
    /// Delays from `first` seconds to `longest` seconds.
    pub fn new(first: i64, longest: i64) -> Self {
        Self {
            first: SignedDuration::from_secs(first),
            longest: SignedDuration::from_secs(longest),
            entries: HashMap::new(),
        }
    }

    /// Until when an attempt after an event at `since` has to wait, and the delay; `None` when it may go on.
    pub fn wait(&self, key: &str, since: Timestamp, now: Timestamp) -> Option<(Timestamp, SignedDuration)> {
        let entry = self.entries.get(key)?;
        if now.duration_since(entry.updated) > self.longest * 2 {
            return None;
        }
        let until = since + entry.delay;
        (until > now).then_some((until, entry.delay))
    }

    /// Notes an attempt; the next one waits longer. `since` is when the last attempt failed.
    pub fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) -> SignedDuration {
        let delay = match self.entries.get(key) {
            Some(entry) if since.duration_since(entry.updated) <= self.longest * 2 => {
                (entry.delay * 2).min(self.longest)
            }
            _ => self.first,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
        delay
    }

    /// Forgets a key that succeeded.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_are_forgotten() {
        let start = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::new(10, 300);
        assert_eq!(backoff.wait("c", start, start), None);
        let mut delays = Vec::new();
        let mut now = start;
        for _ in 0..7 {
            delays.push(backoff.next("c", now, now).as_secs());
            let (until, _) = backoff.wait("c", now, now).expect("it has to wait");
            now = until;
            assert_eq!(backoff.wait("c", until - SignedDuration::from_secs(400), until), None);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        let later = now + SignedDuration::from_secs(700);
        assert_eq!(backoff.next("c", later, later).as_secs(), 10, "ten quiet minutes are a new start");
    }
}
