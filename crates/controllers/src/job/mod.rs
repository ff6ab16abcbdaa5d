//! Job: runs pods until enough of them have succeeded, and counts each of them once.

mod facts;
mod indexes;
mod orphans;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;
mod tracking;
mod ttl;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coxswain_client::{Change, EventType, Informer, ObjectKey, Requeue, WorkQueue};
use coxswain_meta::labels::Selector;
use futures::{StreamExt, stream};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::{Context, Written, ignore};
use crate::podcontrol::{PodControl, selector_of};
use crate::pods;
pub use facts::finished;
use facts::{Backoff, TRACKING, Terms, condition, is_tracked, put};
use plan::{Seen, Standing, Step, is_complete};
use tracking::Tally;

const CONTROLLER: &str = "job-controller";
const WORKERS: usize = 4;
const PARALLEL: usize = 16;

struct Controller {
    jobs: Informer<Job>,
    control: PodControl,
    written: Written,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

/// What is remembered of a job between reconciles.
#[derive(Clone, Default)]
struct Memory {
    backoff: Backoff,
    /// Pods that were let go, by uid.
    released: HashSet<String>,
}

/// What has become of the pods in a reconcile.
struct Acted {
    verdict: Option<JobCondition>,
    active: i32,
    ready: i32,
    terminating: i32,
    /// Whether the job may say that it is suspended or resumed.
    managed: bool,
    wait: Option<Duration>,
    outcome: Result<(), kube::Error>,
}

/// Runs the controller of jobs, of pods that lost theirs, and of jobs that have been over for long.
pub async fn run(context: &Context) {
    let controller = Arc::new(Controller {
        jobs: context.informer(),
        control: PodControl::new(context, CONTROLLER),
        written: Written::default(),
        memory: Mutex::default(),
    });
    controller.jobs.synced().await;
    controller.control.pods.synced().await;
    let queue = WorkQueue::new();
    controller.jobs.feed(&queue, |change| [ObjectKey::of(&**change.object())]);
    let this = controller.clone();
    controller
        .control
        .pods
        .feed(&queue, move |change| this.control.owners_of(&this.jobs, change, job_selector));
    tokio::join!(
        context.drive(CONTROLLER, queue, WORKERS, |key| controller.reconcile(key)),
        orphans::run(context),
        ttl::run(context),
    );
}

fn job_selector(job: &Job) -> Selector {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.map_or_else(Selector::nothing, selector_of)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Controller {
    fn memory(&self) -> MutexGuard<'_, HashMap<ObjectKey, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, key: &ObjectKey) -> Api<Job> {
        Api::namespaced(self.control.client.clone(), &key.namespace)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(job) = self.jobs.get(&key) else {
            self.control.expectations.forget(&key);
            self.written.forget(&key);
            self.memory().remove(&key);
            return Ok(Requeue::OnChange);
        };
        let Some(terms) = Terms::of(&job).filter(|terms| !terms.managed_elsewhere()) else {
            return Ok(Requeue::OnChange);
        };
        if finished(&job).is_some() {
            self.memory().remove(&key);
            return Ok(Requeue::OnChange);
        }
        if !self.written.seen(&key, &job.metadata) {
            return Ok(Requeue::OnChange);
        }
        let satisfied = self.control.expectations.fulfilled(&key);
        let pods = self.control.claim(&*job, &job_selector(&job), Some(TRACKING), |_| true).await?;
        let memory = self.remember(&key, &pods);
        let now = Timestamp::now();
        let mut status = job.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !terms.suspended {
            status.start_time = Some(Time(now));
        }
        let known = status.clone();
        let seen = Seen {
            terms: &terms,
            status: &known,
            pods: &pods,
            released: &memory.released,
            backoff: memory.backoff,
            now,
        };
        let standing = seen.standing();
        let mut acted = self.act(&job, &seen, &standing, satisfied).await;
        if acted.verdict.is_none() && acted.managed {
            if is_complete(&terms, standing.succeeded, acted.active) {
                let message = "Reached expected number of succeeded pods";
                acted.verdict =
                    Some(condition("SuccessCriteriaMet", true, "CompletionsReached", message, now));
            } else if satisfied && job.metadata.deletion_timestamp.is_none() {
                self.suspend(&job, &terms, &mut status, now);
            }
        }
        status.active = Some(acted.active).filter(|active| *active > 0);
        status.ready = Some(acted.ready);
        status.terminating = Some(acted.terminating);
        let verdict = acted.verdict.take();
        let deleting = job.metadata.deletion_timestamp.is_some();
        let tally = tracking::note(&seen, &standing, verdict, deleting, &mut status);
        self.track(&key, &job, status, tally, &standing, acted.terminating).await?;
        acted.outcome?;
        let next = acted.wait.into_iter().chain(standing.deadline.filter(|left| !left.is_zero())).min();
        Ok(next.map_or(Requeue::OnChange, Requeue::After))
    }

    /// What is remembered of a job, without the pods of which the cache shows by now that they were let go.
    fn remember(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> Memory {
        let mut all = self.memory();
        let memory = all.entry(key.clone()).or_default();
        let held: HashSet<&str> =
            pods.iter().filter(|pod| is_tracked(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        memory.released.retain(|uid| held.contains(uid.as_str()));
        memory.clone()
    }

    /// Makes and deletes pods.
    async fn act(&self, job: &Job, seen: &Seen<'_>, standing: &Standing, satisfied: bool) -> Acted {
        let mut acted = Acted {
            verdict: standing.verdict.clone(),
            active: number(standing.active.len()),
            ready: standing.ready,
            terminating: standing.terminating,
            managed: standing.verdict.is_none(),
            wait: None,
            outcome: Ok(()),
        };
        if acted.verdict.is_some() {
            let (gone, outcome) = self.control.delete(job, standing.active.clone()).await;
            if gone.len() < standing.active.len() || !satisfied {
                // There may be pods that the cache does not show yet.
                acted.verdict = None;
            }
            acted.lose(&gone, outcome);
        } else if satisfied && job.metadata.deletion_timestamp.is_none() {
            match plan::step(seen, standing) {
                Step::Nothing => {}
                Step::Wait(time) => acted.wait = Some(time),
                Step::Delete(pods) => {
                    // What the job itself takes away has not failed: it is let go first.
                    let (released, let_go) = self.release(&pods).await;
                    let pods = pods
                        .into_iter()
                        .filter(|pod| released.contains(pod.metadata.uid.as_deref().unwrap_or_default()));
                    let (gone, outcome) = self.control.delete(job, pods.collect()).await;
                    acted.lose(&gone, let_go.and(outcome));
                }
                Step::Create(indexes) => {
                    let pods = template::pods(job, seen.terms, indexes, &standing.kept);
                    let (made, outcome) = self.control.create(job, pods).await;
                    acted.active += number(made);
                    acted.outcome = outcome;
                }
            }
        }
        acted
    }

    /// The `Suspended` condition follows the spec.
    fn suspend(&self, job: &Job, terms: &Terms<'_>, status: &mut JobStatus, now: Timestamp) {
        if terms.suspended {
            if put(status, condition("Suspended", true, "JobSuspended", "Job suspended", now)) {
                status.start_time = None;
                self.control.recorder.event(job, EventType::Normal, "Suspended", "Job suspended");
            }
        } else if put(status, condition("Suspended", false, "JobResumed", "Job resumed", now)) {
            // The time it was suspended does not count towards its deadline.
            status.start_time = Some(Time(now));
            self.control.recorder.event(job, EventType::Normal, "Resumed", "Job resumed");
        }
    }

    /// Writes what was noted, lets the noted pods go, counts them, and ends the job when that was all.
    async fn track(
        &self,
        key: &ObjectKey,
        job: &Job,
        status: JobStatus,
        mut tally: Tally,
        standing: &Standing,
        terminating: i32,
    ) -> Result<(), kube::Error> {
        let mut current = job.clone();
        if Some(&status) != job.status.as_ref() {
            current = self.write(key, current, status).await?;
            self.memory().entry(key.clone()).or_default().backoff = standing.backoff;
        }
        let uids = tally.release.iter().filter_map(|pod| pod.metadata.uid.clone());
        self.memory().entry(key.clone()).or_default().released.extend(uids);
        let (released, outcome) = self.release(&tally.release).await;
        {
            let mut all = self.memory();
            let remembered = &mut all.entry(key.clone()).or_default().released;
            for pod in &tally.release {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if !released.contains(uid) {
                    remembered.remove(uid);
                }
            }
        }
        tally.held.retain(|uid| !released.contains(uid));
        let mut status = current.status.clone().unwrap_or_default();
        tracking::settle(&mut status, &tally.held);
        let ended = outcome.is_ok() && tracking::finish(&mut status, &tally, terminating, Timestamp::now());
        if Some(&status) != current.status.as_ref() {
            let job = self.write(key, current, status).await?;
            if ended {
                self.report(&job);
            }
        }
        outcome
    }

    async fn write(&self, key: &ObjectKey, job: Job, status: JobStatus) -> Result<Job, kube::Error> {
        let job = Job { status: Some(status), ..job };
        let written = self.api(key).replace_status(&key.name, &PostParams::default(), &job).await?;
        self.written.wrote(key, &written.metadata);
        Ok(written)
    }

    /// Takes the finalizer from pods; the uids of those that it holds no more.
    async fn release(&self, pods: &[Arc<Pod>]) -> (HashSet<String>, Result<(), kube::Error>) {
        let release = |pod: &Arc<Pod>| {
            let (pod, api) = (pod.clone(), self.control.api(&pod.namespace().unwrap_or_default()));
            async move {
                if is_tracked(&pod) {
                    let patch = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [TRACKING] } });
                    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
                    let patched = api.patch(&pod.name_any(), &params, &patch).await;
                    patched.map(drop).or_else(|error| ignore(error, &[404]))?;
                }
                Ok(pod.uid().unwrap_or_default())
            }
        };
        let requests: Vec<_> = pods.iter().map(release).collect();
        let results: Vec<_> = stream::iter(requests).buffer_unordered(PARALLEL).collect().await;
        let (mut released, mut outcome) = (HashSet::new(), Ok(()));
        for result in results {
            match result {
                Ok(uid) => _ = released.insert(uid),
                Err(error) => outcome = Err(error),
            }
        }
        (released, outcome)
    }

    fn report(&self, job: &Job) {
        let recorder = &self.control.recorder;
        let Some(last) = finished(job) else { return };
        if last.type_ == "Complete" {
            let wanted = job.spec.as_ref().and_then(|spec| spec.completions);
            let succeeded = job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
            if wanted.is_some_and(|wanted| succeeded > wanted) {
                let text = "Too many succeeded pods running after completion count reached";
                recorder.event(job, EventType::Warning, "TooManySucceededPods", text);
            }
            recorder.event(job, EventType::Normal, "Completed", "Job completed");
        } else {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            recorder.event(job, EventType::Warning, &text(&last.reason), text(&last.message));
        }
    }
}

impl Acted {
    fn lose(&mut self, gone: &[Arc<Pod>], outcome: Result<(), kube::Error>) {
        self.active -= number(gone.len());
        self.terminating += number(gone.len());
        self.ready -= number(gone.iter().filter(|pod| pods::is_ready(pod)).count());
        self.outcome = outcome;
    }
}

/// Whether a change says that a job is over or gone.
fn is_over(change: &Change<Job>) -> bool {
    matches!(change, Change::Deleted(_)) || finished(change.object()).is_some()
}
