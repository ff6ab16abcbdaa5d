//! How many seats a level wants over time, and how many each is given: borrowing of seats (KEP-1040).

use tokio::time::Instant;

/// How slowly the smoothed demand falls; upstream's, for a period of ten seconds.
const SMOOTHING: f64 = 0.977;

/// The demand of a level: seats of requests that run or wait, since the last adjustment.
pub struct Demand {
    now: u32,
    highest: u32,
    since: Instant,
    start: Instant,
    sum: f64,
    sum_of_squares: f64,
    smoothed: f64,
}

/// What a level wanted in a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// The most seats at once.
    pub highest: u32,
    /// The seats it is to get if all can.
    pub smoothed: f64,
}

impl Demand {
    /// No demand yet.
    pub fn new(now: Instant) -> Self {
        Self { now: 0, highest: 0, since: now, start: now, sum: 0.0, sum_of_squares: 0.0, smoothed: 0.0 }
    }

    /// A request arrives.
    pub fn add(&mut self, seats: u32, at: Instant) {
        self.advance(at);
        self.now += seats;
        self.highest = self.highest.max(self.now);
    }

    /// A request ends or gives up.
    pub fn remove(&mut self, seats: u32, at: Instant) {
        self.advance(at);
        self.now = self.now.saturating_sub(seats);
    }

    fn advance(&mut self, at: Instant) {
        let (seats, elapsed) = (f64::from(self.now), at.saturating_duration_since(self.since).as_secs_f64());
        self.sum += seats * elapsed;
        self.sum_of_squares += seats * seats * elapsed;
        self.since = at;
    }

    /// Ends a period.
    pub fn period(&mut self, at: Instant) -> Wanted {
        self.advance(at);
        let elapsed = at.saturating_duration_since(self.start).as_secs_f64();
        let (average, deviation) = if elapsed > 0.0 {
            let average = self.sum / elapsed;
            (average, (self.sum_of_squares / elapsed - average * average).max(0.0).sqrt())
        } else {
            (f64::from(self.now), 0.0)
        };
        let envelope = average + deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
        let wanted = Wanted { highest: self.highest, smoothed: self.smoothed };
        (self.highest, self.start, self.sum, self.sum_of_squares) = (self.now, at, 0.0, 0.0);
        wanted
    }
}

/// Bounds and wish of a level.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// What it has by its shares.
    pub nominal: u32,
    /// What it never lends.
    pub least: u32,
    /// What it may have with all it borrows.
    pub most: u32,
    /// What it wanted.
    pub wanted: Wanted,
}

/// The seats of each level: every one gets the same part of what it wants, within its bounds, and all together the total.
pub fn allocate(total: u32, claims: &[Claim]) -> Vec<u32> {
    let lower = |claim: &Claim| claim.least.max(claim.nominal.min(claim.wanted.highest));
    let (least, lowest): (u32, u32) = (claims.iter().map(|c| c.least).sum(), claims.iter().map(lower).sum());
    if total <= least {
        return claims.iter().map(|claim| claim.least).collect();
    }
    if total <= lowest {
        let part = f64::from(total - least) / f64::from(lowest - least).max(1.0);
        let given = |claim: &Claim| f64::from(claim.least) + f64::from(lower(claim) - claim.least) * part;
        return claims.iter().map(|claim| rounded(given(claim))).collect();
    }
    let given = |claim: &Claim, part: f64| {
        let lower = f64::from(lower(claim));
        let target = claim.wanted.smoothed.max(lower);
        (target * part).clamp(lower, f64::from(claim.most).max(lower))
    };
    let sum = |part: f64| claims.iter().map(|claim| given(claim, part)).sum::<f64>();
    // The sum grows with the part: halving finds it.
    let (mut low, mut high) = (0.0, f64::from(total) + 1.0);
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if sum(middle) < f64::from(total) { low = middle } else { high = middle }
    }
    claims.iter().map(|claim| rounded(given(claim, high))).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range")]
fn rounded(seats: f64) -> u32 {
    seats.round().clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn claim(nominal: u32, least: u32, most: u32, highest: u32, smoothed: f64) -> Claim {
        Claim { nominal, least, most, wanted: Wanted { highest, smoothed } }
    }

    #[test]
    fn idle_levels_lend_and_busy_ones_borrow() {
        let idle = claim(50, 10, 100, 0, 0.0);
        let busy = claim(50, 10, 100, 200, 200.0);
        let given = allocate(100, &[idle, busy]);
        assert_eq!(given, [10, 90]);
        // Who has a limit on borrowing keeps it.
        assert_eq!(allocate(100, &[idle, claim(50, 10, 60, 200, 200.0)])[1], 60);
        // Two that want the same get the same.
        assert_eq!(allocate(100, &[busy, busy]), [50, 50]);
        // What is not there is not given.
        assert_eq!(allocate(15, &[busy, busy]), [10, 10]);
        assert_eq!(allocate(60, &[busy, busy]), [30, 30]);
    }

    #[test]
    fn demand_is_averaged_over_time_and_falls_slowly() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut demand = Demand::new(start);
        demand.add(10, at(0));
        demand.remove(10, at(5));
        let wanted = demand.period(at(10));
        assert_eq!(wanted.highest, 10);
        assert!((wanted.smoothed - 10.0).abs() < 1e-9, "average 5 and deviation 5: {wanted:?}");
        let later = demand.period(at(20));
        assert_eq!(later.highest, 0);
        assert!((later.smoothed - 9.77).abs() < 1e-9, "{later:?}");
    }
}
