//! One priority level: seats, queues, their requests and who is next. Data under a clock that the caller holds; nothing here
//! waits.
//!
//! Between the queues, seat time is shared by start-time fair queueing: the queue that had least is next.

use std::collections::VecDeque;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::demand::Demand;

/// A request is guessed to take this long until it is known.
const GUESS: Duration = Duration::from_millis(3);

/// How requests that find no seat are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// There are always seats.
    Exempt,
    /// They are refused.
    Reject,
    /// They wait.
    Queue {
        /// How many queues there are.
        queues: usize,
        /// How many of them a flow may use.
        hand: usize,
        /// How many requests wait in one.
        length: usize,
    },
}

/// Why a request is refused, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No seat, and no queue.
    Concurrency,
    /// The queue is full.
    QueueFull,
    /// It waited too long.
    TimeOut,
}

/// What becomes of a request that arrives: it has a number until it leaves, unless it is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It runs.
    Run(usize),
    /// It waits.
    Wait(usize),
    /// It is refused.
    Refused(Refusal),
}

/// A request that runs or waits.
pub struct Request<W, R> {
    /// What is known of it.
    pub told: R,
    /// The queue it is charged to.
    pub queue: usize,
    /// The seats it takes.
    pub seats: u32,
    /// When it came.
    pub arrived: Instant,
    turn: Turn<W>,
}

enum Turn<W> {
    Waits(W),
    Runs(Instant),
}

impl<W, R> Request<W, R> {
    /// Since when it runs; none while it waits.
    pub fn started(&self) -> Option<Instant> {
        match self.turn {
            Turn::Waits(_) => None,
            Turn::Runs(since) => Some(since),
        }
    }

    /// The seat time it is guessed to take.
    pub fn work(&self) -> Duration {
        GUESS * self.seats
    }
}

/// The requests of some flows, in their order.
#[derive(Default)]
pub struct Queue {
    /// Those that wait.
    pub waiting: VecDeque<usize>,
    /// The seat seconds given to it, on the level's scale.
    pub start: f64,
    /// Seats in use.
    pub executing: u32,
}

/// What has become of requests.
#[derive(Clone, Copy, Default)]
pub struct Totals {
    /// They have been let run.
    pub dispatched: u64,
    /// They have been refused, those that waited too long among them.
    pub rejected: u64,
    /// They have left their queue.
    pub cancelled: u64,
}

/// A level; `W` is what wakes a request that waits, `R` what is known of a request.
pub struct Level<W, R> {
    limit: Limit,
    /// Seats it has now, which borrowing moves.
    pub seats: u32,
    /// Seats in use.
    pub executing: u32,
    /// Requests that wait.
    pub waiting: usize,
    /// What it wanted lately.
    pub demand: Demand,
    /// What has become of its requests.
    pub totals: Totals,
    queues: Vec<Queue>,
    requests: Slab<Request<W, R>>,
    /// The start of what was dispatched last.
    virtual_time: f64,
}

impl<W, R> Level<W, R> {
    /// A level without requests.
    pub fn new(limit: Limit, seats: u32, now: Instant) -> Self {
        let mut level = Self {
            limit,
            seats,
            executing: 0,
            waiting: 0,
            demand: Demand::new(now),
            totals: Totals::default(),
            queues: Vec::new(),
            requests: Slab::new(),
            virtual_time: 0.0,
        };
        level.configure(limit);
        level
    }

    /// Takes a new configuration; what waits in queues that are gone waits on, and leaves them first.
    pub fn configure(&mut self, limit: Limit) {
        self.limit = limit;
        let queues = if let Limit::Queue { queues, .. } = limit { queues.max(1) } else { 1 };
        while self.queues.len() > queues && self.queues.last().is_some_and(|queue| queue.waiting.is_empty()) {
            self.queues.pop();
        }
        self.queues.resize_with(self.queues.len().max(queues), Queue::default);
    }

    /// Its queues; a level where nothing waits has none.
    pub fn queues(&self) -> &[Queue] {
        if matches!(self.limit, Limit::Queue { .. }) || self.waiting > 0 { &self.queues } else { &[] }
    }

    /// The requests that run or wait, with their numbers.
    pub fn requests(&self) -> impl Iterator<Item = (usize, &Request<W, R>)> {
        self.requests.iter()
    }

    /// A request of a flow arrives.
    pub fn arrive(
        &mut self,
        flow: u64,
        seats: u32,
        now: Instant,
        told: R,
        waiter: impl FnOnce() -> W,
    ) -> Arrival {
        let (queue, length) = match self.limit {
            Limit::Exempt => (0, 0),
            Limit::Reject if self.fits(seats) => (0, 0),
            Limit::Reject => return self.refuse(Refusal::Concurrency),
            Limit::Queue { queues, hand, length } => (self.shortest(flow, queues, hand), length),
        };
        let must_wait = self.limit != Limit::Exempt && (self.waiting > 0 || !self.fits(seats));
        let chosen = &mut self.queues[queue];
        if must_wait && chosen.waiting.len() >= length {
            return self.refuse(Refusal::QueueFull);
        }
        if chosen.waiting.is_empty() && (must_wait || chosen.executing == 0) {
            chosen.start = chosen.start.max(self.virtual_time);
        }
        self.demand.add(seats, now);
        let turn = if must_wait { Turn::Waits(waiter()) } else { Turn::Runs(now) };
        let number = self.requests.insert(Request { told, queue, seats, arrived: now, turn });
        if must_wait {
            self.queues[queue].waiting.push_back(number);
            self.waiting += 1;
            return Arrival::Wait(number);
        }
        self.charge(queue, seats);
        Arrival::Run(number)
    }

    fn refuse(&mut self, why: Refusal) -> Arrival {
        self.totals.rejected += 1;
        Arrival::Refused(why)
    }

    /// A wide request runs when nothing else does, however few seats there are.
    fn fits(&self, seats: u32) -> bool {
        self.executing == 0 || self.executing + seats <= self.seats
    }

    fn charge(&mut self, at: usize, seats: u32) {
        let queue = &mut self.queues[at];
        self.virtual_time = self.virtual_time.max(queue.start);
        queue.start += f64::from(seats) * GUESS.as_secs_f64();
        queue.executing += seats;
        self.executing += seats;
        self.totals.dispatched += 1;
    }

    /// A request ends, or gives up waiting; returns those that run now, with their numbers.
    pub fn leave(&mut self, number: usize, now: Instant) -> Vec<(W, usize)> {
        let Some(Request { queue, seats, turn, .. }) = self.requests.try_remove(number) else {
            return Vec::new();
        };
        self.demand.remove(seats, now);
        match turn {
            Turn::Runs(since) => {
                self.executing = self.executing.saturating_sub(seats);
                let took = now.saturating_duration_since(since);
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.executing = queue.executing.saturating_sub(seats);
                    queue.start += f64::from(seats) * (took.as_secs_f64() - GUESS.as_secs_f64());
                }
            }
            Turn::Waits(_) => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.waiting.retain(|waiting| *waiting != number);
                }
                self.waiting -= 1;
                self.totals.rejected += 1;
                self.totals.cancelled += 1;
            }
        }
        self.dispatch(now)
    }

    /// Lets run what there are seats for.
    pub fn dispatch(&mut self, now: Instant) -> Vec<(W, usize)> {
        let mut woken = Vec::new();
        while self.waiting > 0 {
            let busy = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
            let next = busy.min_by(|(_, a), (_, b)| a.start.total_cmp(&b.start)).map(|(at, _)| at);
            let Some(at) = next else { break };
            let Some(number) = self.queues[at].waiting.front().copied() else { break };
            let seats = self.requests[number].seats;
            if !self.fits(seats) {
                break;
            }
            self.queues[at].waiting.pop_front();
            self.waiting -= 1;
            self.charge(at, seats);
            if let Turn::Waits(waiter) = std::mem::replace(&mut self.requests[number].turn, Turn::Runs(now)) {
                woken.push((waiter, number));
            }
        }
        woken
    }

    /// The least busy of the queues that a flow may use.
    fn shortest(&self, flow: u64, queues: usize, hand: usize) -> usize {
        let load = |at: &usize| {
            let queue = &self.queues[*at];
            let waiting: u32 = queue.waiting.iter().map(|number| self.requests[*number].seats).sum();
            waiting + queue.executing
        };
        deal(flow, queues.max(1), hand).min_by_key(load).unwrap_or(0)
    }
}

/// Shuffle sharding: a hand of different cards out of a deck, the same for the same hash.
fn deal(hash: u64, deck: usize, hand: usize) -> impl Iterator<Item = usize> {
    let (mut hash, mut dealt) = (hash, Vec::with_capacity(hand));
    for left in (0..deck).rev().take(hand.clamp(1, deck)) {
        let left = left as u64 + 1;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        // The card-th of those that are not dealt yet; the dealt ones are kept in order.
        let mut place = 0;
        for known in &dealt {
            if card >= *known {
                card += 1;
                place += 1;
            } else {
                break;
            }
        }
        dealt.insert(place, card);
    }
    dealt.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUES: Limit = Limit::Queue { queues: 8, hand: 2, length: 2 };

    fn level(limit: Limit, seats: u32) -> (Level<&'static str, ()>, Instant) {
        let now = Instant::now();
        (Level::new(limit, seats, now), now)
    }

    #[test]
    fn a_hand_has_different_cards() {
        for hash in [0, 1, 7, u64::MAX, 123_456_789_012] {
            let hand: Vec<usize> = deal(hash, 8, 6).collect();
            assert_eq!(hand.len(), 6);
            assert!(hand.windows(2).all(|pair| pair[0] < pair[1]) && hand[5] < 8, "{hand:?}");
        }
        assert_ne!(
            deal(1_234_567_890_123, 64, 6).collect::<Vec<_>>(),
            deal(9_876_543_210_987, 64, 6).collect::<Vec<_>>()
        );
    }

    #[test]
    fn seats_are_given_waited_for_and_refused() {
        let (mut level, now) = level(QUEUES, 1);
        let Arrival::Run(at) = level.arrive(1, 1, now, (), || "a") else { panic!() };
        assert_eq!(level.arrive(1, 1, now, (), || "b"), Arrival::Wait(1));
        assert_eq!(level.arrive(1, 1, now, (), || "c"), Arrival::Wait(2));
        for _ in 0..8 {
            level.arrive(1, 1, now, (), || "more");
        }
        assert_eq!(level.arrive(1, 1, now, (), || "x"), Arrival::Refused(Refusal::QueueFull));
        assert!(level.leave(1, now).is_empty(), "who gives up frees no seat");
        let woken = level.leave(at, now + GUESS);
        assert_eq!(woken.len(), 1);
        assert_eq!(level.executing, 1);
        let Totals { dispatched, rejected, cancelled } = level.totals;
        assert_eq!((dispatched, cancelled, rejected >= 2), (2, 1, true));
    }

    #[test]
    fn a_level_without_queues_refuses_and_an_exempt_one_never_does() {
        let (mut reject, now) = level(Limit::Reject, 1);
        assert_eq!(reject.arrive(1, 1, now, (), || "a"), Arrival::Run(0));
        assert_eq!(reject.arrive(1, 1, now, (), || "b"), Arrival::Refused(Refusal::Concurrency));
        let (mut exempt, now) = level(Limit::Exempt, 0);
        assert!((0..100).all(|number| exempt.arrive(1, 1, now, (), || "a") == Arrival::Run(number)));
    }

    #[test]
    fn a_wide_request_runs_alone() {
        let (mut level, now) = level(QUEUES, 3);
        let Arrival::Run(at) = level.arrive(1, 10, now, (), || "list") else { panic!() };
        assert!(matches!(level.arrive(2, 1, now, (), || "get"), Arrival::Wait(_)));
        assert_eq!(level.leave(at, now + GUESS).len(), 1);
    }

    #[test]
    fn a_flow_that_floods_does_not_starve_another() {
        let limit = Limit::Queue { queues: 64, hand: 1, length: 1000 };
        let (mut level, now) = level(limit, 1);
        let (flood, other) = (0, 1);
        let Arrival::Run(mut at) = level.arrive(flood, 1, now, (), || "flood") else { panic!() };
        for _ in 0..500 {
            level.arrive(flood, 1, now, (), || "flood");
        }
        for _ in 0..5 {
            level.arrive(other, 1, now, (), || "other");
        }
        let mut order = Vec::new();
        for _ in 0..12 {
            let (waiter, number) = level.leave(at, now + GUESS).remove(0);
            order.push(waiter);
            at = number;
        }
        assert_eq!(order.iter().filter(|waiter| **waiter == "other").count(), 5, "{order:?}");
    }
}
