//! How events reach the log or the webhook: who waits for them, how many go at once, and at what pace.

use std::time::Duration;

use tokio::time::Instant;

/// The slowest pace of batches.
const SLOWEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Who waits until events are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditMode {
    /// Nobody; many go at once.
    Batch,
    /// The request that they tell of.
    Blocking,
    /// That, which fails where it cannot be told that it came.
    BlockingStrict,
}

/// Who waits for events, and how many go at once.
#[derive(Clone, Copy, Debug)]
pub struct AuditDelivery {
    /// Who waits for them.
    pub mode: AuditMode,
    /// Events that wait.
    pub buffer_size: usize,
    /// Events of a batch.
    pub batch_size: usize,
    /// How long a batch waits to be full.
    pub max_wait: Duration,
    /// How fast batches may follow each other; none for as fast as they come.
    pub throttle: Option<AuditThrottle>,
}

/// The pace of batches.
#[derive(Clone, Copy, Debug)]
pub struct AuditThrottle {
    /// So many a second.
    pub per_second: f64,
    /// So many at once after a silence.
    pub burst: u32,
}

/// When the next batch may go.
pub struct Pace {
    throttle: AuditThrottle,
    /// When all that went would have gone at an even pace.
    even: Instant,
}

impl Pace {
    /// Nothing went yet.
    pub fn new(throttle: AuditThrottle, now: Instant) -> Self {
        Self { throttle, even: now }
    }

    /// When a batch may go that is ready now.
    pub fn next(&mut self, now: Instant) -> Instant {
        let gap = Duration::try_from_secs_f64(1.0 / self.throttle.per_second)
            .map_or(SLOWEST, |gap| gap.min(SLOWEST));
        let ahead = gap.saturating_mul(self.throttle.burst.saturating_sub(1));
        self.even = self.even.max(now);
        let start = self.even.checked_sub(ahead).map_or(now, |start| start.max(now));
        self.even += gap;
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_go_at_a_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(AuditThrottle { per_second: 10.0, burst: 3 }, start);
        let mut at = |millis: u64| {
            let now = start + Duration::from_millis(millis);
            pace.next(now).duration_since(start).as_millis()
        };
        // Three at once, then one each tenth of a second.
        assert_eq!([at(0), at(0), at(0), at(0), at(0)], [0, 0, 0, 100, 200]);
        // Silence earns what went at once before, and no more.
        assert_eq!([at(5000), at(5000), at(5000), at(5000)], [5000, 5000, 5000, 5100]);
    }
}
