//! Where a job stands, and which pods to make or to delete.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::facts::{Backoff, Terms, condition, failures_of, finished_at, holds, index_of, is_tracked};
use super::indexes::Indexes;
use super::policy::{self, Meaning};
use crate::owner::is_active;
use crate::pods;

/// Pods made or deleted in one go; the rest follows.
const BURST: usize = 500;

/// What a reconcile sees.
pub struct Seen<'a> {
    pub terms: &'a Terms<'a>,
    pub status: &'a JobStatus,
    /// The job's pods.
    pub pods: &'a [Arc<Pod>],
    /// The pods (by uid) that have been let go, though the cache does not show it yet.
    pub released: &'a HashSet<String>,
    pub backoff: Backoff,
    pub now: Timestamp,
}

/// Where a job stands.
#[derive(Debug, Default)]
pub struct Standing {
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    pub succeeded: u32,
    /// The indexes that were complete before, and now.
    pub counted_indexes: Indexes,
    pub succeeded_indexes: Indexes,
    pub failed_indexes: Option<Indexes>,
    /// Failed pods that stay until their index has a new one, which inherits their count of failures.
    pub kept: HashMap<u32, Arc<Pod>>,
    pub backoff: Backoff,
    /// How the job ends, if it does.
    pub verdict: Option<JobCondition>,
    /// When `activeDeadlineSeconds` are over.
    pub deadline: Option<Duration>,
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Seen<'_> {
    /// Whether the job has yet to count a pod, given those it has noted as ended.
    pub fn is_uncounted(&self, pod: &Pod) -> bool {
        is_tracked(pod) && !self.released.contains(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    fn noted(&self, failed: bool) -> &[String] {
        let noted = self.status.uncounted_terminated_pods.as_ref();
        let list =
            noted.and_then(|noted| if failed { noted.failed.as_ref() } else { noted.succeeded.as_ref() });
        list.map(Vec::as_slice).unwrap_or_default()
    }

    fn fresh(&self, failed: bool, is: impl Fn(&Pod) -> bool) -> Vec<&Pod> {
        let noted: HashSet<&str> = self.noted(failed).iter().map(String::as_str).collect();
        let fresh = |pod: &&Arc<Pod>| {
            self.is_uncounted(pod)
                && !noted.contains(pod.metadata.uid.as_deref().unwrap_or_default())
                && (!self.terms.indexed || self.terms.index_of(pod).is_some())
                && is(pod)
        };
        self.pods.iter().filter(fresh).map(|pod| &**pod).collect()
    }

    /// What a pod's failure means by the job's policy.
    pub fn meaning(&self, pod: &Pod) -> Meaning {
        policy::meaning(self.terms.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Where the job stands.
    pub fn standing(&self) -> Standing {
        let active: Vec<Arc<Pod>> = self.pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let succeeded = self.fresh(false, |pod| pods::phase(pod) == "Succeeded");
        let failed = self.fresh(true, |pod| self.terms.has_failed(pod));
        let counting = failed.iter().filter(|pod| self.meaning(pod).counts()).count();
        let all = |before: Option<i32>, new: usize, failed| {
            u32::try_from(before.unwrap_or(0)).unwrap_or(0)
                + u32::try_from(new + self.noted(failed).len()).unwrap_or(u32::MAX)
        };
        let failures = all(self.status.failed, counting, true);
        let mut standing = Standing {
            ready: number(active.iter().filter(|pod| pods::is_ready(pod)).count()),
            terminating: number(self.pods.iter().filter(|pod| pods::is_terminating(pod)).count()),
            succeeded: all(self.status.succeeded, succeeded.len(), false),
            backoff: self.backoff.after(&succeeded, &failed),
            active,
            ..Standing::default()
        };
        standing.verdict = self.earlier_verdict().or_else(|| self.failed_by_policy());
        if standing.verdict.is_none() {
            standing.verdict = self.failed_by_limits(failures);
            standing.deadline = self.until_deadline();
        }
        if self.terms.indexed {
            self.judge_indexes(&mut standing);
        }
        standing
    }

    fn fails(&self, reason: &str, message: &str) -> JobCondition {
        condition("FailureTarget", true, reason, message, self.now)
    }

    /// What an earlier reconcile decided stays decided.
    fn earlier_verdict(&self) -> Option<JobCondition> {
        if let Some(met) = holds(self.status, "SuccessCriteriaMet") {
            return Some(met.clone());
        }
        let target = holds(self.status, "FailureTarget")?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(condition("Failed", true, &text(&target.reason), &text(&target.message), self.now))
    }

    fn failed_by_policy(&self) -> Option<JobCondition> {
        let mut failed = self.pods.iter().filter(|pod| self.terms.has_failed(pod));
        failed.find_map(|pod| match self.meaning(pod) {
            Meaning::FailsJob(message) => Some(self.fails("PodFailurePolicy", &message)),
            _ => None,
        })
    }

    fn failed_by_limits(&self, failures: u32) -> Option<JobCondition> {
        let limit = u32::try_from(self.terms.spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
        if failures > limit || self.restarted_too_often(limit) {
            return Some(self.fails("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let over = self.until_deadline().is_some_and(|left| left.is_zero());
        over.then(|| self.fails("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    fn restarted_too_often(&self, limit: u32) -> bool {
        let template = self.terms.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
        let statuses = running.filter_map(|pod| pod.status.as_ref());
        let containers = statuses.flat_map(|status| {
            status.init_container_statuses.iter().chain(&status.container_statuses).flatten()
        });
        let restarts: u32 = containers.map(|container| container.restart_count.unsigned_abs()).sum();
        restarts >= limit.max(1)
    }

    fn until_deadline(&self) -> Option<Duration> {
        let seconds = self.terms.spec.active_deadline_seconds.filter(|_| !self.terms.suspended)?;
        let Time(start) = self.status.start_time.as_ref()?;
        let left = SignedDuration::from_secs(seconds) - self.now.duration_since(*start);
        Some(if left.is_negative() { Duration::ZERO } else { left.unsigned_abs() })
    }

    fn judge_indexes(&self, standing: &mut Standing) {
        let completions = self.terms.completions();
        let before = self.status.completed_indexes.as_deref().unwrap_or_default();
        standing.counted_indexes = Indexes::parse(before, completions);
        let done = self.pods.iter().filter(|pod| is_tracked(pod) && pods::phase(pod) == "Succeeded");
        standing.succeeded_indexes =
            standing.counted_indexes.with(done.filter_map(|pod| self.terms.index_of(pod)));
        standing.succeeded = standing.succeeded_indexes.total();
        if let Some(limit) = self.terms.spec.backoff_limit_per_index {
            let limit = u32::try_from(limit).unwrap_or(0);
            let before = self.status.failed_indexes.as_deref().unwrap_or_default();
            let failed = self.pods.iter().filter(|pod| is_tracked(pod) && self.index_failed(pod, limit));
            let failed =
                Indexes::parse(before, completions).with(failed.filter_map(|pod| self.terms.index_of(pod)));
            if standing.verdict.is_none() {
                standing.verdict = self.failed_by_indexes(failed.total(), standing.succeeded);
            }
            standing.failed_indexes = Some(failed);
            standing.kept = self.kept(standing);
        }
        if standing.verdict.is_none() {
            let policy = self.terms.spec.success_policy.as_ref();
            standing.verdict = policy::success(policy, completions, &standing.succeeded_indexes)
                .map(|message| condition("SuccessCriteriaMet", true, "SuccessPolicy", &message, self.now));
        }
    }

    fn failed_by_indexes(&self, failed: u32, succeeded: u32) -> Option<JobCondition> {
        let most = self.terms.spec.max_failed_indexes.and_then(|most| u32::try_from(most).ok());
        if most.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(self.fails("MaxFailedIndexesExceeded", message));
        }
        (failed > 0 && failed + succeeded >= self.terms.completions())
            .then(|| self.fails("FailedIndexes", "Job has failed indexes"))
    }

    fn index_failed(&self, pod: &Pod, limit: u32) -> bool {
        self.terms.has_failed(pod)
            && match self.meaning(pod) {
                Meaning::FailsIndex => true,
                Meaning::Ignored => false,
                Meaning::Counts | Meaning::FailsJob(_) => failures_of(pod).0 >= limit,
            }
    }

    fn kept(&self, standing: &Standing) -> HashMap<u32, Arc<Pod>> {
        let active: HashSet<u32> = standing.active.iter().filter_map(|pod| index_of(pod)).collect();
        let rank = |pod: &Pod| {
            let (counting, ignored) = failures_of(pod);
            (counting + ignored, finished_at(pod))
        };
        let mut kept: HashMap<u32, Arc<Pod>> = HashMap::new();
        for pod in self.pods.iter().filter(|pod| self.is_uncounted(pod) && self.terms.has_failed(pod)) {
            let Some(index) = self.terms.index_of(pod) else { continue };
            let failed = standing.failed_indexes.as_ref().is_some_and(|failed| failed.contains(index));
            if failed || standing.succeeded_indexes.contains(index) || active.contains(&index) {
                continue;
            }
            let newer = kept.get(&index).is_none_or(|other| {
                let ((failures, at), (others, other_at)) = (rank(pod), rank(other));
                others <= failures && at >= other_at
            });
            if newer {
                kept.insert(index, pod.clone());
            }
        }
        kept
    }
}

/// What to do about the pods of a job that goes on.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// They are as they should be.
    Nothing,
    /// Too many failed lately: look again after this time.
    Wait(Duration),
    /// Delete these; they do not count as failed.
    Delete(Vec<Arc<Pod>>),
    /// Make this many pods, without index or with these.
    Create(Vec<Option<u32>>),
}

/// Decides about the pods of a job that goes on.
pub fn step(seen: &Seen<'_>, standing: &Standing) -> Step {
    let (terms, active) = (seen.terms, standing.active.len());
    if terms.suspended {
        let all = surplus(terms, &standing.active, active);
        return if all.is_empty() { Step::Nothing } else { Step::Delete(all) };
    }
    let parallelism = usize::try_from(terms.parallelism()).unwrap_or(0);
    let wanted = match terms.spec.completions {
        // Without a number of completions the first success ends the making of pods.
        None if standing.succeeded > 0 => active,
        None => parallelism,
        Some(_) => {
            let left = terms.completions().saturating_sub(standing.succeeded);
            parallelism.min(usize::try_from(left).unwrap_or(usize::MAX))
        }
    };
    let mut gone = surplus(terms, &standing.active, active.saturating_sub(wanted));
    gone.truncate(BURST);
    if !gone.is_empty() {
        return Step::Delete(gone);
    }
    let terminating =
        if terms.replaces_ended_only { usize::try_from(standing.terminating).unwrap_or(0) } else { 0 };
    let missing = wanted.saturating_sub(terminating + active);
    if missing == 0 {
        return Step::Nothing;
    }
    if terms.spec.backoff_limit_per_index.is_none() {
        let wait = standing.backoff.left(seen.now);
        if !wait.is_zero() {
            return Step::Wait(wait);
        }
    }
    let missing = missing.min(BURST);
    if terms.indexed { new_indexes(seen, standing, missing) } else { Step::Create(vec![None; missing]) }
}

fn new_indexes(seen: &Seen<'_>, standing: &Standing, count: usize) -> Step {
    let mut taken = standing.succeeded_indexes.with(standing.active.iter().filter_map(|pod| index_of(pod)));
    if seen.terms.replaces_ended_only {
        let going = seen.pods.iter().filter(|pod| pods::is_terminating(pod));
        taken = taken.with(going.filter_map(|pod| index_of(pod)));
    }
    if let Some(failed) = &standing.failed_indexes {
        taken = taken.union(failed);
    }
    let pending = taken.missing(count, seen.terms.completions());
    let wait = |index: &u32| {
        let Some(last) = standing.kept.get(index) else { return Duration::ZERO };
        let (counting, ignored) = failures_of(last);
        let backoff = Backoff { failures: counting + ignored + 1, last: Some(finished_at(last)) };
        backoff.left(seen.now)
    };
    let (now, later): (Vec<u32>, Vec<u32>) = pending.into_iter().partition(|index| wait(index).is_zero());
    if now.is_empty() {
        return later.iter().map(wait).min().map_or(Step::Nothing, Step::Wait);
    }
    Step::Create(now.into_iter().map(Some).collect())
}

/// The pods to delete: those without a valid index of their own, and the least useful ones up to a number.
fn surplus(terms: &Terms<'_>, active: &[Arc<Pod>], at_least: usize) -> Vec<Arc<Pod>> {
    let order = |a: &Arc<Pod>, b: &Arc<Pod>| pods::deletion_order((a, 0), (b, 0));
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    if terms.indexed {
        let mut by_index: BTreeMap<Option<u32>, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in active {
            by_index.entry(terms.index_of(pod)).or_default().push(pod.clone());
        }
        for (index, mut pods) in by_index {
            pods.sort_by(order);
            if index.is_some() {
                left.extend(pods.pop());
            }
            gone.extend(pods);
        }
    } else {
        left = active.to_vec();
    }
    left.sort_by(order);
    let more = at_least.saturating_sub(gone.len());
    gone.extend(left.into_iter().take(more));
    gone
}

/// Whether all the pods a job wants have succeeded.
pub fn is_complete(terms: &Terms<'_>, succeeded: u32, active: i32) -> bool {
    active == 0
        && match terms.spec.completions {
            None => succeeded > 0,
            Some(_) => succeeded >= terms.completions(),
        }
}
