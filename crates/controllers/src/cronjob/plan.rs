//! When the jobs of a CronJob are due.

use std::time::Duration;

use coxswain_api::cron::{Field, Schedule};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// A schedule that is due no sooner than this is due never.
const YEARS: i16 = 5;
/// More than so many missed times are worth a warning.
const MANY: i64 = 100;
/// Clocks differ: nobody is woken too early.
const MARGIN: Duration = Duration::from_millis(100);

/// A schedule in its time zone.
#[derive(Clone, Debug)]
pub struct Timetable {
    pub schedule: Schedule,
    pub zone: TimeZone,
}

/// Why a CronJob has no timetable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("invalid timeZone: {0:?}: {1}")]
    Zone(String, String),
    #[error("unparseable schedule: {0:?} : {1}")]
    Schedule(String, String),
}

fn second(of: Timestamp) -> Timestamp {
    Timestamp::from_second(of.as_second()).unwrap_or(of)
}

impl Timetable {
    /// The timetable of a CronJob. A zone in the schedule itself comes before `timeZone`.
    pub fn of(spec: &CronJobSpec) -> Result<Self, Unusable> {
        let text = &spec.schedule;
        let zone = |name: &str| {
            TimeZone::get(name).map_err(|error| Unusable::Zone(name.to_owned(), error.to_string()))
        };
        let own = text.strip_prefix("CRON_TZ=").or_else(|| text.strip_prefix("TZ="));
        let zone = match (own.map(|own| own.split(' ').next().unwrap_or_default()), &spec.time_zone) {
            (Some(name), _) => zone(name)?,
            (None, Some(name)) => zone(name)?,
            (None, None) => TimeZone::system(),
        };
        let schedule = Schedule::parse(text).map_err(|why| Unusable::Schedule(text.clone(), why))?;
        Ok(Self { schedule, zone })
    }

    /// The first time after another; none when there is none for years.
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        match self.schedule {
            Schedule::Every(seconds) => {
                let seconds = SignedDuration::from_secs(i64::try_from(seconds).ok()?);
                second(time).checked_add(seconds).ok()
            }
            Schedule::Fields { minute, hour, day, month, weekday } => {
                let minutes = time.as_second().div_euclid(60) + 1;
                let start = Timestamp::from_second(minutes * 60).ok()?.to_zoned(self.zone.clone());
                first(start, [minute, hour, day, month, weekday])
            }
        }
    }
}

/// The first time, from a full minute on, that the fields match. Hours and minutes go by the clock that does not jump:
/// what falls into a gap of daylight saving is left out, and what comes twice is due twice.
fn first(mut time: Zoned, [minute, hour, day, month, weekday]: [Field; 5]) -> Option<Timestamp> {
    let last = time.year() + YEARS;
    while time.year() <= last {
        let (of_month, of_week) = (day.has(time.day()), weekday.has(time.weekday().to_sunday_zero_offset()));
        // Two restrictions on days are alternatives.
        let is_day = if day.is_any || weekday.is_any { of_month && of_week } else { of_month || of_week };
        time = if !month.has(time.month()) {
            time.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?
        } else if !is_day {
            time.tomorrow().ok()?.start_of_day().ok()?
        } else if !hour.has(time.hour()) {
            time.checked_add((60 - i64::from(time.minute())).minutes()).ok()?
        } else if !minute.has(time.minute()) {
            time.checked_add(1.minute()).ok()?
        } else {
            return Some(time.timestamp());
        };
    }
    None
}

/// How many times have passed without a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    None,
    Few,
    Many,
}

/// The times of a CronJob that have passed.
#[derive(Debug, PartialEq)]
pub struct Passed {
    /// From when on they count.
    pub since: Timestamp,
    pub latest: Option<Timestamp>,
    pub missed: Missed,
}

/// The times that have passed since the last job; not those before `startingDeadlineSeconds`, where that is asked for.
pub fn passed(
    cron: &CronJob,
    timetable: &Timetable,
    now: Timestamp,
    by_deadline: bool,
) -> Result<Passed, String> {
    let created = cron.metadata.creation_timestamp.as_ref();
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut since = last.or(created).map_or(now, |Time(at)| *at);
    if let Some(seconds) = cron.spec.starting_deadline_seconds.filter(|_| by_deadline) {
        let deadline = now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(since);
        since = since.max(deadline);
    }
    let never = || "time difference between two schedules is less than 1 second".to_owned();
    let first = timetable.after(since).ok_or_else(never)?;
    let none = |latest, missed| Ok(Passed { since, latest, missed });
    if now < first {
        return none(None, Missed::None);
    }
    let Some(second) = timetable.after(first).filter(|second| *second <= now) else {
        return none(Some(first), Missed::None);
    };
    let apart = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / apart + 1;
    // Close to the latest time, if the times are evenly apart; a step before it, in case they are not.
    let near = SignedDuration::from_secs((missed - 2) * apart);
    let near = first.checked_add(near).unwrap_or(first);
    let times = std::iter::successors(timetable.after(near), |time| timetable.after(*time));
    let latest = times.take_while(|time| *time <= now).last();
    none(latest, if missed > MANY { Missed::Many } else { Missed::Few })
}

/// How long until the next time.
pub fn until_next(cron: &CronJob, timetable: &Timetable, now: Timestamp) -> Option<Duration> {
    let from = match passed(cron, timetable, now, false) {
        Ok(Passed { latest: Some(latest), .. }) => latest,
        Ok(Passed { since, missed: Missed::None, .. }) => since,
        Ok(_) | Err(_) => now,
    };
    let left = timetable.after(from)?.duration_since(now);
    Some(if left.is_negative() { MARGIN } else { left.unsigned_abs() + MARGIN })
}

/// The name of the job of a time; the same time never has two.
pub fn job_name(cron: &str, time: Timestamp) -> String {
    format!("{cron}-{}", time.as_second().div_euclid(60))
}

/// A time as the annotation of a job gives it (RFC 3339).
pub fn written(time: Timestamp, zone: Option<&str>) -> String {
    let zone = zone.and_then(|zone| TimeZone::get(zone).ok()).unwrap_or(TimeZone::UTC);
    let is_utc = zone == TimeZone::UTC;
    let format = if is_utc { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    time.to_zoned(zone).strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(schedule: &str, last: &str) -> CronJob {
        serde_json::from_value(json!({ "metadata": { "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "schedule": schedule, "timeZone": "UTC", "jobTemplate": {} }, "status": { "lastScheduleTime": last } }))
        .unwrap()
    }

    #[test]
    fn the_next_time_is_found() {
        let check = |schedule: &str, after: &str, next: &str| {
            let timetable = Timetable { schedule: Schedule::parse(schedule).unwrap(), zone: TimeZone::UTC };
            assert_eq!(
                timetable.after(time(after)).map(|at| at.to_string()).unwrap_or_default(),
                next,
                "{schedule}"
            );
        };
        check("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
        check("*/15 8-9 * * *", "2026-01-01T09:45:30Z", "2026-01-02T08:00:00Z");
        check("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z");
        check("0 12 1 * mon", "2026-01-01T12:00:00Z", "2026-01-05T12:00:00Z");
        check("0 12 * jan mon", "2026-01-27T00:00:00Z", "2027-01-04T12:00:00Z");
        check("59 23 31 2 *", "2026-01-01T00:00:00Z", "");
        check("@every 90s", "2026-01-01T00:00:00.5Z", "2026-01-01T00:01:30Z");
    }

    #[test]
    fn a_clock_that_jumps_leaves_out_and_repeats() {
        // Central Europe, without asking the machine for its database.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let timetable = Timetable { schedule: Schedule::parse("30 2 * * *").unwrap(), zone };
        let next = |after: &str| timetable.after(time(after)).unwrap().to_string();
        assert_eq!(next("2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z", "29 March has no half past two");
        assert_eq!(next("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(next("2026-10-25T00:30:00Z"), "2026-10-25T01:30:00Z", "25 October has it twice");
    }

    #[test]
    fn the_latest_time_that_passed_counts() {
        let check = |schedule: &str, last: &str, now: &str, latest: Option<&str>, missed: Missed| {
            let cron = cron(schedule, last);
            let timetable = Timetable { schedule: Schedule::parse(schedule).unwrap(), zone: TimeZone::UTC };
            let passed = passed(&cron, &timetable, time(now), true).unwrap();
            assert_eq!((passed.latest, passed.missed), (latest.map(time), missed), "{schedule} {now}");
        };
        let last = "2026-01-01T10:00:00Z";
        check("0 * * * *", last, "2026-01-01T10:59:00Z", None, Missed::None);
        check("0 * * * *", last, "2026-01-01T11:30:00Z", Some("2026-01-01T11:00:00Z"), Missed::None);
        check("0 * * * *", last, "2026-01-01T13:30:00Z", Some("2026-01-01T13:00:00Z"), Missed::Few);
        check("0 * * * *", last, "2026-01-11T13:30:00Z", Some("2026-01-11T13:00:00Z"), Missed::Many);
        check("30 6-16/4 * * 1-5", last, "2026-01-02T15:00:00Z", Some("2026-01-02T14:30:00Z"), Missed::Few);
        let never = Timetable { schedule: Schedule::parse("0 0 31 2 *").unwrap(), zone: TimeZone::UTC };
        assert!(passed(&cron("0 0 31 2 *", last), &never, time(last), true).is_err());
    }

    #[test]
    fn jobs_have_the_minute_in_their_names() {
        let at = time("2026-01-01T10:00:00Z");
        assert_eq!(job_name("c", at), "c-29454360");
        assert_eq!(written(at, None), "2026-01-01T10:00:00Z");
        let timetable = Timetable { schedule: Schedule::parse("0 * * * *").unwrap(), zone: TimeZone::UTC };
        let wait =
            until_next(&cron("0 * * * *", "2026-01-01T10:00:00Z"), &timetable, time("2026-01-01T10:59:00Z"));
        assert_eq!(wait, Some(Duration::from_millis(60_100)));
    }
}
