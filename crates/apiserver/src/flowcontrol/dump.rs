//! The debug pages of priority and fairness: tables of levels, queues and requests as they are now, in upstream's form.
//! <https://kubernetes.io/docs/reference/debug-cluster/flow-control/>

use std::sync::Arc;

use tokio::time::Instant;

use super::level::Queue;
use super::{FlowControl, Shared, Told};
use crate::authn::UserInfo;
use crate::request::{Query, RequestInfo};

/// What ends a cell, but for the last of a line.
const END: &str = ",\t";
const NARROWEST_COLUMN: usize = 8;

const LEVELS: &str = "PriorityLevelName,\tActiveQueues,\tIsIdle,\tIsQuiescing,\tWaitingRequests,\tExecutingRequests,\t\
    DispatchedRequests,\tRejectedRequests,\tTimedoutRequests,\tCancelledRequests";
const QUEUES: &str = "PriorityLevelName,\tIndex,\tPendingRequests,\tExecutingRequests,\tSeatsInUse,\tNextDispatchR,\t\
    InitialSeatsSum,\tMaxSeatsSum,\tTotalWorkSum";
const REQUESTS: &str = "PriorityLevelName,\tFlowSchemaName,\tQueueIndex,\tRequestIndexInQueue,\tFlowDistingsher,\tArriveTime,\t\
    InitialSeats,\tFinalSeats,\tAdditionalLatency,\tStartTime";
const DETAILS: &str = "UserName,\tVerb,\tAPIPath,\tNamespace,\tName,\tAPIVersion,\tResource,\tSubResource";

/// The cells that tell what a request is.
fn details(user: &UserInfo, info: &RequestInfo) -> String {
    let version = match (info.group.as_str(), info.version.as_str()) {
        ("", version) => version,
        (group, version) => &format!("{group}/{version}"),
    };
    [
        &user.name,
        info.verb,
        &info.path,
        &info.namespace,
        &info.name,
        version,
        &info.resource,
        &info.subresource,
    ]
    .join(END)
}

impl FlowControl {
    /// The page of a name; none for others.
    pub fn dump(&self, page: &str, query: &Query) -> Option<String> {
        let current = self.current();
        let mut levels: Vec<&Arc<Shared>> = current.levels.values().collect();
        levels.sort_by(|a, b| a.name.cmp(&b.name));
        let detailed = query.get("includeRequestDetails").is_some();
        let levels = levels.into_iter();
        let mut lines: Vec<String> = match page {
            "dump_priority_levels" => levels.map(|level| level.line()).collect(),
            "dump_queues" => levels.flat_map(|level| level.queue_lines()).collect(),
            "dump_requests" => levels.flat_map(|level| level.request_lines(detailed)).collect(),
            _ => return None,
        };
        let heading = match page {
            "dump_priority_levels" => LEVELS.to_owned(),
            "dump_queues" => QUEUES.to_owned(),
            _ if detailed => format!("{REQUESTS}{END}{DETAILS}"),
            _ => REQUESTS.to_owned(),
        };
        lines.insert(0, heading);
        Some(table(&lines))
    }
}

impl Shared {
    fn line(&self) -> String {
        let level = self.level();
        let active = level.queues().iter().filter(|queue| !queue.waiting.is_empty()).count();
        let executing = level.requests().count() - level.waiting;
        let idle = level.requests().next().is_none();
        let totals = level.totals;
        // A level that is gone is none any more, though its last requests run; upstream too never counts one as timed out.
        let cells = [
            &self.name as &dyn std::fmt::Display,
            &active,
            &idle,
            &false,
            &level.waiting,
            &executing,
            &totals.dispatched,
            &totals.rejected,
            &0,
            &totals.cancelled,
        ];
        cells.map(ToString::to_string).join(END)
    }

    fn queue_lines(&self) -> Vec<String> {
        let level = self.level();
        let mut running = vec![0; level.queues().len()];
        let mut waiting = vec![(0_u32, 0.0); level.queues().len()];
        for (_, request) in level.requests() {
            match request.started() {
                Some(_) => running.get_mut(request.queue).into_iter().for_each(|count| *count += 1),
                None => waiting.get_mut(request.queue).into_iter().for_each(|(seats, work)| {
                    *seats += request.seats;
                    *work += request.work().as_secs_f64();
                }),
            }
        }
        let line = |(index, queue): (usize, &Queue)| {
            let (seats, work) = waiting[index];
            format!(
                "{}{END}{index}{END}{}{END}{}{END}{}{END}{:.8}ss{END}{seats}{END}{seats}{END}{work:.8}ss",
                self.name,
                queue.waiting.len(),
                running[index],
                queue.executing,
                queue.start,
            )
        };
        level.queues().iter().enumerate().map(line).collect()
    }

    /// Queue by queue those that wait and those that run, then those that run and have no queue.
    fn request_lines(&self, detailed: bool) -> Vec<String> {
        let level = self.level();
        let queues = level.queues();
        let clock = Clock::now();
        let mut found: Vec<(usize, usize, String)> = Vec::new();
        for (number, request) in level.requests() {
            let queue = queues.get(request.queue);
            let place = queue.and_then(|queue| queue.waiting.iter().position(|waiting| *waiting == number));
            let shown =
                |index: Option<usize>| index.map_or_else(|| "-1".to_owned(), |index| index.to_string());
            let Told { rules, user, info } = &request.told;
            let mut line = [
                self.name.as_str(),
                &rules.name,
                &shown(queue.map(|_| request.queue)),
                &shown(place),
                rules.flow(user, info),
                &clock.shows(Some(request.arrived)),
                &request.seats.to_string(),
                "0",
                "0s",
                &clock.shows(request.started()),
            ]
            .join(END);
            if detailed {
                line.push_str(END);
                line.push_str(&details(user, info));
            }
            let queue = queue.map_or(usize::MAX, |_| request.queue);
            found.push((queue, place.unwrap_or(usize::MAX), line));
        }
        found.sort();
        found.into_iter().map(|(_, _, line)| line).collect()
    }
}

/// What the time of day was.
struct Clock(Instant, jiff::Timestamp);

impl Clock {
    fn now() -> Self {
        Self(Instant::now(), jiff::Timestamp::now())
    }

    fn shows(&self, at: Option<Instant>) -> String {
        let Some(at) = at else { return "0001-01-01T00:00:00Z".to_owned() };
        let Self(now, time) = self;
        time.checked_sub(now.saturating_duration_since(at)).unwrap_or(*time).to_string()
    }
}

/// Lines in columns: each as wide as its widest cell and one more.
fn table(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let widest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count() + 1).max().unwrap_or(0).max(NARROWEST_COLUMN)
    };
    let widths: Vec<usize> = (0..widest).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}
