//! One priority level: seats, queues and who is next. Data under a clock that the caller holds; nothing here waits.
//!
//! Between the queues, seat time is shared by start-time fair queueing: the queue that had least is next.

use std::collections::VecDeque;
use std::time::Duration;

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

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It runs; the queue it is charged to.
    Run(usize),
    /// It waits under this number.
    Wait(u64),
    /// It is refused.
    Refused(Refusal),
}

struct Waiting<W> {
    number: u64,
    seats: u32,
    waiter: W,
}

struct Queue<W> {
    waiting: VecDeque<Waiting<W>>,
    /// The seat seconds given to it, on the level's scale.
    start: f64,
    executing: u32,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), start: 0.0, executing: 0 }
    }
}

/// A level; `W` is what wakes a request that waits, and is told the queue it is charged to.
pub struct Level<W> {
    limit: Limit,
    /// Seats it has now, which borrowing moves.
    pub seats: u32,
    /// Seats in use.
    pub executing: u32,
    /// Requests that wait.
    pub waiting: usize,
    /// What it wanted lately.
    pub demand: Demand,
    queues: Vec<Queue<W>>,
    /// The start of what was dispatched last.
    virtual_time: f64,
    next: u64,
}

impl<W> Level<W> {
    /// A level without requests.
    pub fn new(limit: Limit, seats: u32, now: Instant) -> Self {
        let mut level = Self {
            limit,
            seats,
            executing: 0,
            waiting: 0,
            demand: Demand::new(now),
            queues: Vec::new(),
            virtual_time: 0.0,
            next: 0,
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

    /// A request of a flow arrives.
    pub fn arrive(&mut self, flow: u64, seats: u32, now: Instant, waiter: impl FnOnce() -> W) -> Arrival {
        let (at, length) = match self.limit {
            Limit::Exempt => (0, 0),
            Limit::Reject if self.fits(seats) => (0, 0),
            Limit::Reject => return Arrival::Refused(Refusal::Concurrency),
            Limit::Queue { queues, hand, length } => (self.shortest(flow, queues, hand), length),
        };
        let must_wait = self.limit != Limit::Exempt && (self.waiting > 0 || !self.fits(seats));
        if !must_wait {
            self.run(at, seats, now);
            return Arrival::Run(at);
        }
        if self.queues[at].waiting.len() >= length {
            return Arrival::Refused(Refusal::QueueFull);
        }
        let number = self.next;
        self.next += 1;
        if self.queues[at].waiting.is_empty() {
            self.queues[at].start = self.queues[at].start.max(self.virtual_time);
        }
        self.queues[at].waiting.push_back(Waiting { number, seats, waiter: waiter() });
        self.waiting += 1;
        self.demand.add(seats, now);
        Arrival::Wait(number)
    }

    /// A wide request runs when nothing else does, however few seats there are.
    fn fits(&self, seats: u32) -> bool {
        self.executing == 0 || self.executing + seats <= self.seats
    }

    fn run(&mut self, at: usize, seats: u32, now: Instant) {
        let queue = &mut self.queues[at];
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.start = queue.start.max(self.virtual_time);
        }
        self.charge(at, seats);
        self.demand.add(seats, now);
    }

    fn charge(&mut self, at: usize, seats: u32) {
        let queue = &mut self.queues[at];
        self.virtual_time = self.virtual_time.max(queue.start);
        queue.start += f64::from(seats) * GUESS.as_secs_f64();
        queue.executing += seats;
        self.executing += seats;
    }

    /// A request that ran ends; returns those that run instead, with the queues they are charged to.
    pub fn leave(&mut self, at: usize, seats: u32, took: Duration, now: Instant) -> Vec<(W, usize)> {
        self.executing = self.executing.saturating_sub(seats);
        self.demand.remove(seats, now);
        if let Some(queue) = self.queues.get_mut(at) {
            queue.executing = queue.executing.saturating_sub(seats);
            queue.start += f64::from(seats) * (took.as_secs_f64() - GUESS.as_secs_f64());
        }
        self.dispatch()
    }

    /// Lets run what there are seats for.
    pub fn dispatch(&mut self) -> Vec<(W, usize)> {
        let mut woken = Vec::new();
        while self.waiting > 0 {
            let busy = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
            let next = busy.min_by(|(_, a), (_, b)| a.start.total_cmp(&b.start)).map(|(at, _)| at);
            let Some(at) = next else { break };
            let seats = self.queues[at].waiting.front().map_or(0, |waiting| waiting.seats);
            if !self.fits(seats) {
                break;
            }
            let Some(first) = self.queues[at].waiting.pop_front() else { break };
            self.waiting -= 1;
            self.charge(at, seats);
            woken.push((first.waiter, at));
        }
        woken
    }

    /// A request that waits gives up; false where it has been let run meanwhile.
    pub fn give_up(&mut self, number: u64, now: Instant) -> bool {
        for queue in &mut self.queues {
            if let Some(at) = queue.waiting.iter().position(|waiting| waiting.number == number) {
                let seats = queue.waiting.remove(at).map_or(0, |waiting| waiting.seats);
                self.waiting -= 1;
                self.demand.remove(seats, now);
                return true;
            }
        }
        false
    }

    /// The least busy of the queues that a flow may use.
    fn shortest(&self, flow: u64, queues: usize, hand: usize) -> usize {
        let load = |at: &usize| {
            let queue = &self.queues[*at];
            let waiting: u32 = queue.waiting.iter().map(|waiting| waiting.seats).sum();
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

    fn level(limit: Limit, seats: u32) -> (Level<&'static str>, Instant) {
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
        let Arrival::Run(at) = level.arrive(1, 1, now, || "a") else { panic!() };
        assert_eq!(level.arrive(1, 1, now, || "b"), Arrival::Wait(0));
        assert_eq!(level.arrive(1, 1, now, || "c"), Arrival::Wait(1));
        for _ in 0..8 {
            level.arrive(1, 1, now, || "more");
        }
        assert_eq!(level.arrive(1, 1, now, || "x"), Arrival::Refused(Refusal::QueueFull));
        assert!(level.give_up(0, now) && !level.give_up(0, now));
        let woken = level.leave(at, 1, GUESS, now);
        assert_eq!(woken.len(), 1);
        assert_eq!(level.executing, 1);
    }

    #[test]
    fn a_level_without_queues_refuses_and_an_exempt_one_never_does() {
        let (mut reject, now) = level(Limit::Reject, 1);
        assert_eq!(reject.arrive(1, 1, now, || "a"), Arrival::Run(0));
        assert_eq!(reject.arrive(1, 1, now, || "b"), Arrival::Refused(Refusal::Concurrency));
        let (mut exempt, now) = level(Limit::Exempt, 0);
        assert!((0..100).all(|_| exempt.arrive(1, 1, now, || "a") == Arrival::Run(0)));
    }

    #[test]
    fn a_wide_request_runs_alone() {
        let (mut level, now) = level(QUEUES, 3);
        let Arrival::Run(at) = level.arrive(1, 10, now, || "list") else { panic!() };
        assert!(matches!(level.arrive(2, 1, now, || "get"), Arrival::Wait(_)));
        assert_eq!(level.leave(at, 10, GUESS, now).len(), 1);
    }

    #[test]
    fn a_flow_that_floods_does_not_starve_another() {
        let limit = Limit::Queue { queues: 64, hand: 1, length: 1000 };
        let (mut level, now) = level(limit, 1);
        let (flood, other) = (0, 1);
        let Arrival::Run(mut at) = level.arrive(flood, 1, now, || "flood") else { panic!() };
        for _ in 0..500 {
            level.arrive(flood, 1, now, || "flood");
        }
        for _ in 0..5 {
            level.arrive(other, 1, now, || "other");
        }
        let mut order = Vec::new();
        for _ in 0..12 {
            let (waiter, queue) = level.leave(at, 1, GUESS, now).remove(0);
            order.push(waiter);
            at = queue;
        }
        assert_eq!(order.iter().filter(|waiter| **waiter == "other").count(), 5, "{order:?}");
    }
}
