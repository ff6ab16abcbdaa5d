//! CronJob: makes jobs at times.

mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::{Change, Client, EventType, Informer, ObjectKey, Recorder, Requeue, WorkQueue};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Resource, ResourceExt};

use crate::context::{Context, Written, ignore, message, namespace_terminates};
use crate::job::finished;
use crate::owner::{controller_of, controller_ref, is_controlled_by};
use plan::{Missed, Timetable, Unusable};

const CONTROLLER: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
const WORKERS: usize = 2;

struct Controller {
    client: Client,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: Recorder,
    written: Written,
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let controller = Arc::new(Controller {
        client: context.client(),
        crons: context.informer(),
        jobs: context.informer(),
        recorder: context.recorder(CONTROLLER),
        written: Written::default(),
    });
    controller.crons.synced().await;
    controller.jobs.synced().await;
    let queue = WorkQueue::new();
    let (this, later) = (controller.clone(), queue.clone());
    controller.crons.feed(&queue, move |change| {
        let key = ObjectKey::of(&**change.object());
        match this.rescheduled(change) {
            // A new schedule is not for times gone by.
            Some(wait) => {
                later.add_after(key, wait);
                None
            }
            None => Some(key),
        }
    });
    controller.jobs.feed(&queue, |change| {
        let job = change.object();
        let owner = controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob")?;
        Some(ObjectKey::new(job.namespace().unwrap_or_default(), &owner.name))
    });
    context.drive(CONTROLLER, queue, WORKERS, |key| controller.reconcile(key)).await;
}

impl Controller {
    /// How long until the next time of a schedule that has just changed.
    fn rescheduled(&self, change: &Change<CronJob>) -> Option<Duration> {
        let Change::Updated { old, new } = change else { return None };
        if (&old.spec.schedule, &old.spec.time_zone) == (&new.spec.schedule, &new.spec.time_zone) {
            return None;
        }
        plan::until_next(new, &Timetable::of(&new.spec).ok()?, Timestamp::now())
    }

    fn api(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn warn(&self, cron: &CronJob, reason: &str, text: impl Into<String>) {
        self.recorder.event(cron, EventType::Warning, reason, text);
    }

    fn tell(&self, cron: &CronJob, reason: &str, text: impl Into<String>) {
        self.recorder.event(cron, EventType::Normal, reason, text);
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Requeue, kube::Error> {
        let Some(cron) = self.crons.get(&key) else {
            self.written.forget(&key);
            return Ok(Requeue::OnChange);
        };
        if !self.written.seen(&key, &cron.metadata) {
            return Ok(Requeue::OnChange);
        }
        let uid = cron.uid().unwrap_or_default();
        let jobs = self.jobs.in_namespace(&key.namespace).into_iter();
        let jobs: Vec<_> = jobs.filter(|job| is_controlled_by(&job.metadata, &uid)).collect();
        let mut status = cron.status.clone().unwrap_or_default();
        self.follow(&cron, &key, &jobs, &mut status).await?;
        let outcome = if cron.metadata.deletion_timestamp.is_some() {
            Ok(None)
        } else {
            self.start(&cron, &key, &mut status).await
        };
        self.clean_up(&cron, &jobs, &mut status).await;
        if status.active.as_ref().is_some_and(Vec::is_empty) {
            status.active = None;
        }
        if status != cron.status.clone().unwrap_or_default() {
            let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.namespace);
            let cron = CronJob { status: Some(status), ..(*cron).clone() };
            let written = api.replace_status(&key.name, &PostParams::default(), &cron).await?;
            self.written.wrote(&key, &written.metadata);
        }
        outcome.map(|wait| wait.map_or(Requeue::OnChange, Requeue::After))
    }

    /// The status follows the jobs that ended or went.
    async fn follow(
        &self,
        cron: &CronJob,
        key: &ObjectKey,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<(), kube::Error> {
        for job in jobs {
            let (name, found) = (job.name_any(), is_active(status, job.metadata.uid.as_deref()));
            let Some(condition) = finished(job) else {
                if !found {
                    let text = format!("Saw a job that the controller did not create or forgot: {name}");
                    self.warn(cron, "UnexpectedJob", text);
                }
                continue;
            };
            if found {
                drop_active(status, job.metadata.uid.as_deref());
                let text = format!("Saw completed job: {name}, condition: {}", condition.type_);
                self.tell(cron, "SawCompletedJob", text);
            }
            if condition.type_ == "Complete" {
                let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
                status.last_successful_time = status.last_successful_time.take().max(completed);
            }
        }
        let known: HashSet<_> = jobs.iter().filter_map(|job| job.metadata.uid.clone()).collect();
        for active in status.active.clone().into_iter().flatten() {
            if active.uid.as_ref().is_some_and(|uid| known.contains(uid)) {
                continue;
            }
            let name = active.name.unwrap_or_default();
            // The cache may not show it yet: ask.
            if self.api(&key.namespace).get_opt(&name).await?.is_none() {
                self.tell(cron, "MissingJob", format!("Active job went missing: {name}"));
                drop_active(status, active.uid.as_deref());
            }
        }
        Ok(())
    }

    /// Makes the job that is due, if one is. How long until the next.
    async fn start(
        &self,
        cron: &CronJob,
        key: &ObjectKey,
        status: &mut CronJobStatus,
    ) -> Result<Option<Duration>, kube::Error> {
        if cron.spec.suspend == Some(true) {
            return Ok(None);
        }
        let Some((timetable, due, now)) = self.due(cron) else { return Ok(None) };
        let next = |status: &CronJobStatus| {
            let cron = CronJob { status: Some(status.clone()), ..cron.clone() };
            plan::until_next(&cron, &timetable, now)
        };
        let Some(time) = due else { return Ok(next(status)) };
        let name = plan::job_name(&key.name, time);
        let is_started = status.active.iter().flatten().any(|active| active.name.as_ref() == Some(&name))
            || status.last_schedule_time.as_ref().is_some_and(|Time(last)| *last == time);
        let active = status.active.clone().unwrap_or_default();
        match cron.spec.concurrency_policy.as_deref() {
            _ if is_started => return Ok(next(status)),
            Some("Forbid") if !active.is_empty() => {
                let text =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(cron, "JobAlreadyActive", text);
                return Ok(next(status));
            }
            Some("Replace") => {
                for active in active {
                    self.delete(cron, &active.name.unwrap_or_default()).await?;
                    drop_active(status, active.uid.as_deref());
                }
            }
            _ => {}
        }
        if let Some(job) = self.create(cron, key, &name, time).await?
            && !is_active(status, job.metadata.uid.as_deref())
        {
            status.active.get_or_insert_default().push(job.object_ref(&()));
            status.last_schedule_time = Some(Time(time));
        }
        Ok(next(status))
    }

    /// The timetable, and the time for which a job is to be made now. Nothing for a CronJob that cannot be scheduled.
    fn due(&self, cron: &CronJob) -> Option<(Timetable, Option<Timestamp>, Timestamp)> {
        let (now, spec) = (Timestamp::now(), &cron.spec);
        if spec.schedule.contains("TZ") {
            let text = format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                spec.schedule
            );
            self.warn(cron, "UnsupportedSchedule", text);
        }
        let timetable = match Timetable::of(spec) {
            Ok(timetable) => timetable,
            Err(error) => {
                let reason = match error {
                    Unusable::Zone(..) => "UnknownTimeZone",
                    Unusable::Schedule(..) => "UnparseableSchedule",
                };
                self.warn(cron, reason, error.to_string());
                return None;
            }
        };
        let passed = match plan::passed(cron, &timetable, now, true) {
            Ok(passed) => passed,
            Err(why) => {
                self.warn(cron, "InvalidSchedule", format!("invalid schedule: {} : {why}", spec.schedule));
                return None;
            }
        };
        let Some(time) = passed.latest else { return Some((timetable, None, now)) };
        if passed.missed == Missed::Many {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn(cron, "TooManyMissedTimes", text);
        }
        let late = now.duration_since(time).as_secs();
        if spec.starting_deadline_seconds.is_some_and(|most| late > most) {
            let time = time.strftime("%a, %d %b %Y %H:%M:%S +0000");
            self.warn(cron, "MissSchedule", format!("Missed scheduled time to start a job: {time}"));
            return Some((timetable, None, now));
        }
        Some((timetable, Some(time), now))
    }

    /// Makes a job; none where one of its name is another's.
    async fn create(
        &self,
        cron: &CronJob,
        key: &ObjectKey,
        name: &str,
        time: Timestamp,
    ) -> Result<Option<Job>, kube::Error> {
        let template = cron.spec.job_template.clone();
        let mut job = Job { spec: template.spec, ..Job::default() };
        let metadata = template.metadata.unwrap_or_default();
        job.metadata.name = Some(name.to_owned());
        job.metadata.labels = metadata.labels;
        let annotations = job.metadata.annotations.insert(metadata.annotations.unwrap_or_default());
        annotations.insert(SCHEDULED.into(), plan::written(time, cron.spec.time_zone.as_deref()));
        job.metadata.owner_references = Some(vec![controller_ref(cron)]);
        let api = self.api(&key.namespace);
        match api.create(&PostParams::default(), &job).await {
            Ok(job) => {
                self.tell(cron, "SuccessfulCreate", format!("Created job {name}"));
                Ok(Some(job))
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let uid = cron.uid().unwrap_or_default();
                let existing = api.get_opt(name).await?;
                Ok(existing.filter(|job| is_controlled_by(&job.metadata, &uid)))
            }
            Err(error) => {
                if !namespace_terminates(&error) {
                    self.warn(cron, "FailedCreate", format!("Error creating job: {}", message(&error)));
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, cron: &CronJob, name: &str) -> Result<(), kube::Error> {
        let api = self.api(&cron.namespace().unwrap_or_default());
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => self.tell(cron, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(error) => {
                let text = format!("Deleted job: {}", message(&error));
                ignore(error, &[404]).inspect_err(|_| self.warn(cron, "FailedDelete", text))?;
            }
        }
        Ok(())
    }

    /// Deletes the oldest of the jobs that succeeded and of those that failed, down to the limits.
    async fn clean_up(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) {
        let limits = [
            ("Complete", cron.spec.successful_jobs_history_limit),
            ("Failed", cron.spec.failed_jobs_history_limit),
        ];
        for (kind, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let ended = |job: &&Arc<Job>| {
                job.metadata.deletion_timestamp.is_none()
                    && finished(job).is_some_and(|condition| condition.type_ == kind)
            };
            let mut ended: Vec<_> = jobs.iter().filter(ended).collect();
            let start = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.clone());
            ended.sort_by_key(|job| (start(job).is_none(), start(job), job.name_any()));
            for job in ended.iter().take(ended.len().saturating_sub(limit)) {
                if self.delete(cron, &job.name_any()).await.is_ok() {
                    drop_active(status, job.metadata.uid.as_deref());
                }
            }
        }
    }
}

fn is_active(status: &CronJobStatus, uid: Option<&str>) -> bool {
    status.active.iter().flatten().any(|active| active.uid.as_deref() == uid)
}

fn drop_active(status: &mut CronJobStatus, uid: Option<&str>) {
    if let Some(active) = &mut status.active {
        active.retain(|active| active.uid.as_deref() != uid);
    }
}
