//! `ttlSecondsAfterFinished`: jobs that have been over for a while are deleted, with their pods.

use std::time::Duration;

use coxswain_client::{ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions, PropagationPolicy};

use super::facts::finished;
use crate::context::{Context, ignore};

/// How long a finished job still lives; none for one that stays.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let Time(end) = finished(job)?.last_transition_time.as_ref()?;
    let left = SignedDuration::from_secs(seconds.into()) - now.duration_since(*end);
    (job.metadata.deletion_timestamp.is_none())
        .then(|| if left.is_negative() { Duration::ZERO } else { left.unsigned_abs() })
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let (client, jobs) = (context.client(), context.informer::<Job>());
    jobs.synced().await;
    let queue = WorkQueue::new();
    jobs.feed(&queue, |change| {
        let job = change.object();
        left(job, Timestamp::now()).map(|_| ObjectKey::of(&**job))
    });
    let reconcile = |key: ObjectKey| {
        let (jobs, api) = (&jobs, Api::<Job>::namespaced(client.clone(), &key.namespace));
        async move {
            match jobs.get(&key).and_then(|job| left(&job, Timestamp::now())) {
                None => return Ok(Requeue::OnChange),
                Some(left) if !left.is_zero() => return Ok(Requeue::After(left)),
                Some(_) => {}
            }
            // The time to live may just have been prolonged: ask.
            let fresh = api.get_opt(&key.name).await?;
            let expired = |job: &Job| left(job, Timestamp::now()).is_some_and(|left| left.is_zero());
            let Some(job) = fresh.filter(expired) else { return Ok(Requeue::OnChange) };
            let preconditions = Preconditions { uid: job.uid(), resource_version: job.resource_version() };
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            let deleted = api.delete(&key.name, &params).await;
            deleted.map(drop).or_else(|error| ignore(error, &[404])).map(|()| Requeue::OnChange)
        }
    };
    context.drive("ttl-after-finished", queue, 1, reconcile).await;
}
