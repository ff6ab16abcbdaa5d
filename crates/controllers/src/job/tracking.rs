//! Counting pods exactly once (KEP-2307): what has ended is noted in the status, then let go, then counted.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::facts::{condition, holds, index_of, put};
use super::plan::{Seen, Standing};
use crate::pods;

/// Pods noted at a time, so that a status stays small.
const MOST_NOTED: usize = 500;

/// What to do once the status is written.
pub struct Tally {
    /// The pods that the status accounts for: they can go.
    pub release: Vec<Arc<Pod>>,
    /// The pods that have not been let go.
    pub held: HashSet<String>,
    /// There are more pods to note than one status takes.
    pub is_partial: bool,
    /// The condition that will end the job.
    pub last: Option<JobCondition>,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn has(list: Option<&Vec<String>>, uid: &str) -> bool {
    list.is_some_and(|list| list.iter().any(|other| other == uid))
}

/// Notes in the `status` the pods that have ended. `verdict` is how the job ends, if it does now.
pub fn note(
    seen: &Seen<'_>,
    standing: &Standing,
    verdict: Option<JobCondition>,
    is_deleting: bool,
    status: &mut JobStatus,
) -> Tally {
    let terms = seen.terms;
    let mut held: Vec<&Arc<Pod>> = seen.pods.iter().filter(|pod| seen.is_uncounted(pod)).collect();
    let uids: HashSet<String> = held.iter().map(|pod| uid(pod).to_owned()).collect();
    settle(status, &uids);
    if terms.indexed {
        held.sort_by_key(|pod| index_of(pod));
    }
    let before = seen.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let ends_badly = verdict.as_ref().is_some_and(|verdict| verdict.type_ != "SuccessCriteriaMet");
    let mut noted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let (mut release, mut indexes, mut is_partial) = (Vec::new(), Vec::new(), false);
    for pod in held {
        let (succeeded, failed) = (pods::phase(pod) == "Succeeded", terms.has_failed(pod));
        let is_kept = || {
            let kept = terms.index_of(pod).and_then(|index| standing.kept.get(&index));
            kept.is_some_and(|kept| uid(kept) == uid(pod))
        };
        if !(is_deleting || verdict.is_some() || succeeded || (failed && !is_kept())) {
            continue;
        }
        release.push(pod.clone());
        let index = terms.index_of(pod);
        if succeeded && !has(before.failed.as_ref(), uid(pod)) {
            if terms.indexed {
                // The index itself tells that the pod has been counted.
                indexes.extend(index.filter(|index| !standing.counted_indexes.contains(*index)));
            } else if !has(before.succeeded.as_ref(), uid(pod)) {
                noted.succeeded.get_or_insert_default().push(uid(pod).to_owned());
            }
        } else if (failed || ends_badly)
            && !has(before.failed.as_ref(), uid(pod))
            && (!terms.indexed || index.is_some())
            && seen.meaning(pod).counts()
        {
            noted.failed.get_or_insert_default().push(uid(pod).to_owned());
        }
        let count = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        if indexes.len() + count(&noted.succeeded) + count(&noted.failed) >= MOST_NOTED {
            is_partial = true;
            break;
        }
    }
    status.uncounted_terminated_pods = Some(noted);
    if terms.indexed {
        let done = standing.succeeded_indexes.with(indexes);
        status.succeeded = nonzero(done.total());
        status.completed_indexes = Some(done.to_string()).filter(|text| !text.is_empty());
        status.failed_indexes = standing.failed_indexes.as_ref().map(ToString::to_string);
    }
    let last = verdict.map(|verdict| announce(verdict, status, seen.now));
    Tally { release, held: uids, is_partial, last }
}

fn nonzero(count: u32) -> Option<i32> {
    i32::try_from(count).ok().filter(|count| *count > 0)
}

/// Tells in the status how the job will end; the condition with which it does so follows when all its pods are counted.
fn announce(verdict: JobCondition, status: &mut JobStatus, now: Timestamp) -> JobCondition {
    let last = match verdict.type_.as_str() {
        "FailureTarget" => "Failed",
        "SuccessCriteriaMet" => "Complete",
        _ => return verdict,
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let last = condition(last, true, &text(&verdict.reason), &text(&verdict.message), now);
    if holds(status, &verdict.type_).is_none() {
        put(status, verdict);
    }
    last
}

/// Counts the noted pods that are held no more.
pub fn settle(status: &mut JobStatus, held: &HashSet<String>) {
    let Some(noted) = status.uncounted_terminated_pods.as_mut() else { return };
    let settle = |list: &mut Option<Vec<String>>, count: &mut Option<i32>| {
        let Some(uids) = list else { return };
        let before = uids.len();
        uids.retain(|uid| held.contains(uid));
        let gone = i32::try_from(before - uids.len()).unwrap_or(i32::MAX);
        if gone > 0 {
            *count = Some(count.unwrap_or(0) + gone);
        }
        if uids.is_empty() {
            *list = None;
        }
    };
    settle(&mut noted.succeeded, &mut status.succeeded);
    settle(&mut noted.failed, &mut status.failed);
}

/// Ends the job with its last condition, unless pods are still to be counted or going. Whether it has ended.
pub fn finish(status: &mut JobStatus, tally: &Tally, terminating: i32, now: Timestamp) -> bool {
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let Some(last) = &tally.last else { return false };
    if tally.is_partial || noted.succeeded.is_some() || noted.failed.is_some() || terminating > 0 {
        return false;
    }
    put(status, JobCondition { last_transition_time: Some(Time(now)), ..last.clone() });
    if last.type_ == "Complete" {
        status.completion_time = Some(Time(now));
    }
    true
}
