//! Watches: many on one kind while time stamps are written at a steady rate, and how late each of them arrives.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client::{Client, JSON, Target};
use crate::load::{annotate, ms, pods};
use crate::{Arguments, figure};

/// Watches that share a connection, as those of one process do.
const WATCHES_A_CONNECTION: usize = 50;
/// Seconds of writing.
const SECONDS: u64 = 5;
/// What is later than this is lost.
const LONGEST: Duration = Duration::from_secs(120);
/// Writes that may be on their way at once.
const WRITERS: u64 = 8;
const MARK: &[u8] = br#""at":""#;

/// Runs the phase.
pub async fn run(arguments: &Arguments, target: &Arc<Target>) -> anyhow::Result<()> {
    let base = pods(&arguments.namespace);
    let mut client = target.connect().await?;
    let list = client.json(Method::GET, &format!("{base}?limit=1"), Bytes::new()).await?;
    let version = list["metadata"]["resourceVersion"].as_str().context("the list has no version")?;
    let path = format!("{base}?watch=1&resourceVersion={version}");
    let expected = SECONDS * arguments.writes;
    let mut watches = JoinSet::new();
    for at in 0..arguments.watchers {
        if at % WATCHES_A_CONNECTION == 0 {
            client = target.connect().await?;
        }
        let body = client.send(Method::GET, &path, JSON, Bytes::new()).await?.into_body();
        watches.spawn(timeout(LONGEST, delays(body, expected)));
    }
    let before = arguments.processes.cpu();
    write(arguments, target, &base).await?;
    let mut late = Vec::new();
    while let Some(delays) = watches.join_next().await {
        late.extend(delays?.context("a watch did not get all events in time")??);
    }
    late.sort_unstable();
    figure("watch_events", late.len());
    figure("watch_p50_ms", format!("{:.2}", ms(late[late.len() / 2])));
    figure("watch_p99_ms", format!("{:.2}", ms(late[late.len() * 99 / 100])));
    arguments.processes.cost("watch_event", before, late.len());
    Ok(())
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// Writes time stamps at the rate asked for.
async fn write(arguments: &Arguments, target: &Arc<Target>, base: &str) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    let rate = arguments.writes;
    let each = WRITERS.min(rate);
    for writer in 0..each {
        let mut client: Client = target.connect().await?;
        let (base, pods) = (base.to_owned(), arguments.pods as u64);
        writers.spawn(async move {
            let mut ticks = interval(Duration::from_secs(each) / u32::try_from(rate)?);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for at in (writer..SECONDS * rate).step_by(usize::try_from(each)?) {
                ticks.tick().await;
                let path = format!("{base}/pod-{:06}", at % pods);
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
    let start = line.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = line[start..].split(|byte| *byte == b'"').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
