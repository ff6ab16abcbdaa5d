//! Watches: many on one kind while time stamps are written at a steady rate, and how late each of them arrives.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use memchr::memmem;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::client::{Client, JSON, Target};
use crate::load::{annotate, ms, pod_name, pods, small, small_objects};
use crate::{Arguments, figure};

/// Watches that share a connection, as those of one process do.
const WATCHES_A_CONNECTION: usize = 50;
/// Seconds of writing.
const SECONDS: u64 = 5;
/// What is later than this is lost.
const LONGEST: Duration = Duration::from_secs(120);
/// A writer to so many writes a second: each waits for its answers.
const WRITES_A_WRITER: u64 = 10;
const MARK: &[u8] = br#""at":""#;
/// Objects that are written to where there are no pods.
pub const SMALL: usize = 100;

/// Many watches of one kind.
pub struct Fan {
    name: &'static str,
    base: String,
    objects: u64,
    object: fn(usize) -> String,
    watchers: usize,
    writes: u64,
}

impl Fan {
    /// Of the pods, as the command line says.
    pub fn of_pods(arguments: &Arguments) -> Self {
        Self {
            name: "watch",
            base: pods(&arguments.namespace),
            objects: arguments.pods as u64,
            object: pod_name,
            watchers: arguments.watchers,
            writes: arguments.writes,
        }
    }

    /// Half a million events a second: of ConfigMaps, since pods would be more than two gigabytes.
    pub fn wide(arguments: &Arguments) -> Self {
        let base = small_objects(&arguments.namespace);
        Self { name: "fanout", base, objects: SMALL as u64, object: small, watchers: 1000, writes: 500 }
    }
}

/// Runs a phase.
pub async fn run(arguments: &Arguments, target: &Arc<Target>, fan: &Fan) -> anyhow::Result<()> {
    let base = &fan.base;
    let mut client = target.connect().await?;
    let list = client.json(Method::GET, &format!("{base}?limit=1"), Bytes::new()).await?;
    let version = list["metadata"]["resourceVersion"].as_str().context("the list has no version")?;
    let path = format!("{base}?watch=1&resourceVersion={version}");
    let expected = SECONDS * fan.writes;
    let mut watches = JoinSet::new();
    for at in 0..fan.watchers {
        if at % WATCHES_A_CONNECTION == 0 {
            client = target.connect().await?;
        }
        let body = client.send(Method::GET, &path, JSON, Bytes::new()).await?.into_body();
        watches.spawn(timeout(LONGEST, delays(body, expected)));
    }
    let (before, begin) = (arguments.processes.cpu(), Instant::now());
    write(target, fan).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut late = Vec::new();
    while let Some(delays) = watches.join_next().await {
        late.extend(delays?.context("a watch did not get all events in time")??);
    }
    late.sort_unstable();
    let name = fan.name;
    figure(&format!("{name}_writes_per_s"), format!("{:.0}", expected as f64 / seconds));
    figure(&format!("{name}_events"), late.len());
    figure(&format!("{name}_p50_ms"), format!("{:.2}", ms(late[late.len() / 2])));
    figure(&format!("{name}_p99_ms"), format!("{:.2}", ms(late[late.len() * 99 / 100])));
    arguments.processes.cost(&format!("{name}_event"), &before, late.len());
    Ok(())
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Writes time stamps at the rate asked for.
async fn write(target: &Arc<Target>, fan: &Fan) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    let (rate, objects, name) = (fan.writes, fan.objects, fan.object);
    let each = rate.div_ceil(WRITES_A_WRITER).max(1);
    let begin = Instant::now();
    for writer in 0..each {
        let mut client: Client = target.connect().await?;
        let base = fan.base.clone();
        writers.spawn(async move {
            let period = Duration::from_secs(each) / u32::try_from(rate)?;
            // They do not all write at once.
            let start = begin + period * u32::try_from(writer)? / u32::try_from(each)?;
            let mut ticks = interval_at(start, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for at in (writer..SECONDS * rate).step_by(usize::try_from(each)?) {
                ticks.tick().await;
                let path = format!("{base}/{}", name(usize::try_from(at % objects)?));
                client.ask(Method::PATCH, &path, JSON, annotate("at", now())).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

/// How late a watch is told of each of the expected events.
async fn delays(mut body: hyper::body::Incoming, expected: u64) -> anyhow::Result<Vec<Duration>> {
    let mut late = Vec::new();
    let mut line = Vec::new();
    while (late.len() as u64) < expected {
        let frame = body.frame().await.context("the watch ended")??;
        for piece in frame.data_ref().map_or(&[][..], |data| data).split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                late.extend(
                    written_at(&line).map(|at| Duration::from_nanos(now().saturating_sub(at) as u64)),
                );
                line.clear();
            }
        }
    }
    Ok(late)
}

/// The time stamp of an event.
fn written_at(line: &[u8]) -> Option<u128> {
    let start = memmem::find(line, MARK)? + MARK.len();
    let digits = line[start..].split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
