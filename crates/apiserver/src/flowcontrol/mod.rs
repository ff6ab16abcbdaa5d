//! Priority and fairness: which requests run now, which wait, which are refused.
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>
//!
//! `rules` finds the schema of a request and `level` its seat, both without waiting; here is what waits, what is measured,
//! and what follows the objects of the store.

mod demand;
mod dump;
mod level;
mod rules;
pub mod status;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use coxswain_meta::Status;
use coxswain_meta::json::Value;
use coxswain_store::{Collection, Revision, Store};
use http::{HeaderName, HeaderValue, Response};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::Server;
use crate::authn::UserInfo;
use crate::object::{Attributes, Meta, ObjectView};
use crate::request::RequestInfo;
use demand::{Claim, allocate};
use level::{Arrival, Level, Limit, Refusal};
use rules::Rules;

const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Seats move between levels this often.
const ADJUSTMENT: Duration = Duration::from_secs(10);
/// The widest request.
const MOST_SEATS: u32 = 10;
/// A list takes a seat for so many objects.
const OBJECTS_A_SEAT: usize = 100;
const COLLECTIONS: [&str; 2] =
    ["flowschemas.flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io"];

/// Flow control of a server.
pub struct FlowControl {
    collections: [Arc<Collection<Attributes>>; 2],
    current: RwLock<([Revision; 2], Arc<Current>)>,
    /// Seats of all levels together.
    total: u32,
    longest_wait: Duration,
}

/// Schemas in their order, and the levels that they lead to.
#[derive(Default)]
struct Current {
    schemas: Vec<Schema>,
    levels: HashMap<String, Arc<Shared>>,
}

struct Schema {
    rules: Arc<Rules>,
    level: Arc<Shared>,
    counts: Arc<Counts>,
    header: HeaderValue,
}

/// What happened to the requests of a schema.
#[derive(Default)]
struct Counts {
    dispatched: AtomicU64,
    rejected: [AtomicU64; 4],
    /// Microseconds that requests waited, and how many did.
    waited: AtomicU64,
    waits: AtomicU64,
}

const REASONS: [&str; 4] = ["concurrency-limit", "queue-full", "time-out", "cancelled"];

/// A level with those that wait for it.
struct Shared {
    name: String,
    header: HeaderValue,
    exempt: bool,
    bounds: Mutex<Bounds>,
    level: Mutex<Turns>,
}

/// A level of requests that are woken when their turn comes.
type Turns = Level<oneshot::Sender<()>, Told>;

/// What the debug pages tell of a request.
struct Told {
    rules: Arc<Rules>,
    user: Arc<UserInfo>,
    info: Arc<RequestInfo>,
}

#[derive(Clone, Copy)]
struct Bounds {
    nominal: u32,
    least: u32,
    most: u32,
}

impl Shared {
    fn level(&self) -> MutexGuard<'_, Turns> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds(&self) -> Bounds {
        *self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place on a level: a seat, or one in a queue. It is given back when it is dropped.
pub struct Place {
    level: Arc<Shared>,
    number: usize,
}

impl FlowControl {
    /// Flow control with a number of seats; requests wait for one so long at most.
    pub fn new(store: &Store<ObjectView>, total: u32, longest_wait: Duration) -> Self {
        Self {
            collections: COLLECTIONS.map(|name| store.collection(name)),
            current: RwLock::default(),
            total,
            longest_wait,
        }
    }

    /// The schemas and levels as of now.
    fn current(&self) -> Arc<Current> {
        let now = [self.collections[0].newest(), self.collections[1].newest()];
        let known = self.current.read().unwrap_or_else(PoisonError::into_inner);
        if known.0 == now {
            return known.1.clone();
        }
        drop(known);
        let mut known = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if known.0 != now {
            let documents = self.collections.each_ref().map(|collection| {
                let objects = collection.list("");
                objects
                    .iter()
                    .filter_map(|object| serde_json::from_slice(&object.bytes).ok())
                    .collect::<Vec<Value>>()
            });
            *known = (now, Arc::new(known.1.follow(&documents[0], &documents[1], self.total)));
        }
        known.1.clone()
    }

    /// Lets a request in: at once, after a wait, or not at all. Without any schema there is no limit.
    ///
    /// # Errors
    /// 429: the level has no seat and no room to wait, or the wait was too long.
    pub async fn admit(
        &self,
        user: &Arc<UserInfo>,
        info: &Arc<RequestInfo>,
        marks: &Marks,
        width: impl FnOnce() -> u32,
    ) -> Result<Option<Place>, Status> {
        let current = self.current();
        let Some(schema) = current.schemas.iter().find(|schema| schema.rules.matches(user, info)) else {
            return Ok(None);
        };
        let _ = marks.0.set([schema.header.clone(), schema.level.header.clone()]);
        let hash = schema.rules.hash(schema.rules.flow(user, info));
        let told = Told { rules: schema.rules.clone(), user: user.clone(), info: info.clone() };
        let (seats, now) = (if schema.level.exempt { 1 } else { width() }, Instant::now());
        let mut turn = None;
        let arrival = {
            let mut level = schema.level.level();
            let seats = seats.min(level.seats.max(1));
            level.arrive(hash, seats, now, told, || {
                let (sender, receiver) = oneshot::channel();
                turn = Some(receiver);
                sender
            })
        };
        let place = match arrival {
            Arrival::Run(number) | Arrival::Wait(number) => Place { level: schema.level.clone(), number },
            Arrival::Refused(why) => return Err(schema.counts.refuse(why)),
        };
        if let Some(turn) = turn {
            let turn = tokio::time::timeout(self.longest_wait, turn).await;
            let waited = u64::try_from(now.elapsed().as_micros()).unwrap_or(u64::MAX);
            schema.counts.waited.fetch_add(waited, Ordering::Relaxed);
            schema.counts.waits.fetch_add(1, Ordering::Relaxed);
            if !matches!(turn, Ok(Ok(()))) {
                return Err(schema.counts.refuse(Refusal::TimeOut));
            }
        }
        schema.counts.dispatched.fetch_add(1, Ordering::Relaxed);
        Ok(Some(place))
    }

    /// Moves seats between the levels as they want them, until the server ends.
    pub async fn run(server: Arc<Server>) {
        let mut ticks = tokio::time::interval(ADJUSTMENT);
        while server.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Some(flow) = &server.flow {
                flow.adjust(Instant::now());
            }
        }
    }

    fn adjust(&self, now: Instant) {
        let current = self.current();
        let levels: Vec<&Arc<Shared>> = current.levels.values().filter(|level| !level.exempt).collect();
        let claims: Vec<Claim> = levels
            .iter()
            .map(|level| {
                let Bounds { nominal, least, most } = level.bounds();
                Claim { nominal, least, most, wanted: level.level().demand.period(now) }
            })
            .collect();
        for (level, seats) in levels.iter().zip(allocate(self.total, &claims)) {
            let mut level = level.level();
            level.seats = seats;
            wake(level.dispatch(now));
        }
    }

    /// Writes what happened, under upstream's names.
    pub fn write_metrics(&self, text: &mut String) {
        let current = self.current();
        let mut series = |name: &str, kind: &str, lines: Vec<String>| {
            let family = name.strip_suffix("_total").unwrap_or(name);
            let _ = writeln!(text, "# TYPE apiserver_flowcontrol_{family} {kind}");
            lines.iter().for_each(|line| {
                let _ = writeln!(text, "apiserver_flowcontrol_{line}");
            });
        };
        let schemas = |value: &dyn Fn(&Counts, &str) -> Vec<String>| {
            current
                .schemas
                .iter()
                .flat_map(|schema| {
                    let labels = format!(
                        "flow_schema=\"{}\",priority_level=\"{}\"",
                        schema.rules.name, schema.level.name
                    );
                    value(&schema.counts, &labels)
                })
                .collect::<Vec<_>>()
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dispatched =
            |c: &Counts, l: &str| vec![format!("dispatched_requests_total{{{l}}} {}", count(&c.dispatched))];
        series("dispatched_requests_total", "counter", schemas(&dispatched));
        let rejected = |c: &Counts, l: &str| {
            let reasons = REASONS.iter().zip(&c.rejected).filter(|(_, rejected)| count(rejected) > 0);
            reasons
                .map(|(why, n)| format!("rejected_requests_total{{{l},reason=\"{why}\"}} {}", count(n)))
                .collect()
        };
        series("rejected_requests_total", "counter", schemas(&rejected));
        #[allow(clippy::cast_precision_loss, reason = "a metric needs no more")]
        let waited = |c: &Counts, l: &str| {
            let seconds = count(&c.waited) as f64 / 1e6;
            vec![
                format!("request_wait_duration_seconds_sum{{{l}}} {seconds}"),
                format!("request_wait_duration_seconds_count{{{l}}} {}", count(&c.waits)),
            ]
        };
        series("request_wait_duration_seconds", "summary", schemas(&waited));
        type Figure = fn(&Shared) -> u64;
        let figures: [(&str, Figure); 6] = [
            ("current_executing_seats", |level| level.level().executing.into()),
            ("current_inqueue_requests", |level| level.level().waiting as u64),
            ("nominal_limit_seats", |level| level.bounds().nominal.into()),
            ("lower_limit_seats", |level| level.bounds().least.into()),
            ("upper_limit_seats", |level| level.bounds().most.into()),
            ("current_limit_seats", |level| level.level().seats.into()),
        ];
        for (name, figure) in figures {
            let line = |level: &Arc<Shared>| {
                format!("{name}{{priority_level=\"{}\"}} {}", level.name, figure(level))
            };
            series(name, "gauge", current.levels.values().map(line).collect());
        }
    }
}

fn wake(woken: Vec<(oneshot::Sender<()>, usize)>) {
    for (sender, _) in woken {
        // Who does not listen any more gives the seat back when its place is dropped.
        let _ = sender.send(());
    }
}

impl Counts {
    fn refuse(&self, why: Refusal) -> Status {
        let reason = match why {
            Refusal::Concurrency => 0,
            Refusal::QueueFull => 1,
            Refusal::TimeOut => 2,
        };
        self.rejected[reason].fetch_add(1, Ordering::Relaxed);
        Status::too_many_requests("Too many requests, please try again later.", 1)
    }
}

/// The uids of the schema and the level of a request, once they are known.
#[derive(Default)]
pub struct Marks(OnceLock<[HeaderValue; 2]>);

impl Marks {
    /// Tells them in the answer, whatever it is.
    pub fn tell(self, response: &mut Response<crate::body::Body>) {
        if let Some([schema, level]) = self.0.into_inner() {
            let headers = response.headers_mut();
            headers.insert(FLOW_SCHEMA, schema);
            headers.insert(PRIORITY_LEVEL, level);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut level = self.level.level();
        wake(level.leave(self.number, Instant::now()));
    }
}

impl Current {
    /// The state after the objects changed: levels that stay keep their requests, schemas their counts.
    fn follow(&self, schemas: &[Value], levels: &[Value], total: u32) -> Self {
        let shares = |level: &Value| {
            let spec = &level["spec"];
            let part = if spec["type"] == "Exempt" { &spec["exempt"] } else { &spec["limited"] };
            let default = if spec["type"] == "Exempt" { 0 } else { 30 };
            part["nominalConcurrencyShares"].as_u64().unwrap_or(default)
        };
        let sum = levels.iter().map(shares).sum::<u64>().max(1);
        let known = |level: &Value| {
            let nominal = u32::try_from((u64::from(total) * shares(level)).div_ceil(sum)).unwrap_or(total);
            let shared = Shared::of(level, nominal, total, self.levels.get(level.name()));
            (level.name().to_owned(), shared)
        };
        let levels: HashMap<String, Arc<Shared>> = levels.iter().map(known).collect();
        let mut found: Vec<Schema> = schemas
            .iter()
            .filter_map(|schema| {
                let rules = Rules::of(schema);
                let level = levels.get(&rules.level)?.clone();
                let before = self.schemas.iter().find(|known| known.rules.name == rules.name);
                let counts = before.map(|known| known.counts.clone()).unwrap_or_default();
                let header = HeaderValue::from_str(&rules.uid).ok()?;
                Some(Schema { rules: Arc::new(rules), level, counts, header })
            })
            .collect();
        found.sort_by(|a, b| (a.rules.precedence, &a.rules.name).cmp(&(b.rules.precedence, &b.rules.name)));
        Self { schemas: found, levels }
    }
}

impl Shared {
    fn of(object: &Value, nominal: u32, total: u32, known: Option<&Arc<Self>>) -> Arc<Self> {
        let spec = &object["spec"];
        let exempt = spec["type"] == "Exempt";
        let limited = &spec["limited"];
        let number = |value: &Value, default: u64| {
            usize::try_from(value.as_u64().unwrap_or(default)).unwrap_or(usize::MAX)
        };
        let queuing = &limited["limitResponse"]["queuing"];
        let limit = match limited["limitResponse"]["type"].as_str() {
            _ if exempt => Limit::Exempt,
            Some("Queue") => Limit::Queue {
                queues: number(&queuing["queues"], 64),
                hand: number(&queuing["handSize"], 8),
                length: number(&queuing["queueLengthLimit"], 50),
            },
            _ => Limit::Reject,
        };
        let part = |percent: &Value| {
            percent
                .as_u64()
                .map(|percent| u32::try_from((u64::from(nominal) * percent + 50) / 100).unwrap_or(u32::MAX))
        };
        let bounds = Bounds {
            nominal,
            least: nominal - part(&limited["lendablePercent"]).unwrap_or(0).min(nominal),
            most: part(&limited["borrowingLimitPercent"]).map_or(total, |more| nominal.saturating_add(more)),
        };
        if let Some(known) =
            known.filter(|known| known.exempt == exempt && known.header == object.meta_str("uid"))
        {
            *known.bounds.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
            let mut level = known.level();
            level.configure(limit);
            level.seats = level.seats.clamp(bounds.least, bounds.most.max(bounds.least));
            wake(level.dispatch(Instant::now()));
            drop(level);
            return known.clone();
        }
        Arc::new(Self {
            name: object.name().to_owned(),
            header: HeaderValue::from_str(object.meta_str("uid")).unwrap_or(HeaderValue::from_static("")),
            exempt,
            bounds: Mutex::new(bounds),
            level: Mutex::new(Level::new(limit, nominal, Instant::now())),
        })
    }
}

impl Server {
    /// How many seats a request takes: a list as many as it has objects to write.
    pub fn width(&self, info: &RequestInfo, limit: Option<usize>) -> u32 {
        if info.verb != "list" || !info.name.is_empty() {
            return 1;
        }
        let collection = coxswain_meta::status::qualified(&info.group, &info.resource);
        let objects = self.store.collection(&collection).len();
        let objects = limit.filter(|limit| *limit > 0).map_or(objects, |limit| limit.min(objects));
        u32::try_from(objects.div_ceil(OBJECTS_A_SEAT)).unwrap_or(MOST_SEATS).clamp(1, MOST_SEATS)
    }
}
