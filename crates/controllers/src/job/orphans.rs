//! Pods that no job will count: the finalizer that holds them is taken away.

use coxswain_client::{Informer, ObjectKey, Requeue, WorkQueue};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::facts::{TRACKING, Terms, finished, is_tracked};
use super::is_over;
use crate::context::{Context, ignore};
use crate::owner::{controller_of, is_controlled_by, with_finalizer};

/// Whether nobody will count the pod.
fn is_orphan(pod: &Pod, jobs: &Informer<Job>) -> bool {
    let Some(owner) = controller_of(&pod.metadata) else { return true };
    if owner.kind != "Job" || owner.api_version != "batch/v1" {
        return false;
    }
    let job = jobs.get(&ObjectKey::new(pod.namespace().unwrap_or_default(), &owner.name));
    job.filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid)).is_none_or(|job| {
        finished(&job).is_some() && Terms::of(&job).is_none_or(|terms| !terms.managed_elsewhere())
    })
}

/// Runs the controller.
pub async fn run(context: &Context) {
    let (client, jobs, pods) = (context.client(), context.informer::<Job>(), context.pods());
    let queue = WorkQueue::new();
    let all = jobs.clone();
    pods.feed(&queue, move |change| {
        let pod = change.object();
        (is_tracked(pod) && is_orphan(pod, &all)).then(|| ObjectKey::of(&**pod))
    });
    let all = pods.clone();
    jobs.feed(&queue, move |change| {
        let job = change.object();
        if !is_over(change) {
            return Vec::new();
        }
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let pods = all.in_namespace(&job.namespace().unwrap_or_default()).into_iter();
        let held = pods.filter(|pod| is_tracked(pod) && is_controlled_by(&pod.metadata, uid));
        held.map(|pod| ObjectKey::of(&*pod)).collect()
    });
    let reconcile = |key: ObjectKey| {
        let (pods, jobs, api) = (&pods, &jobs, Api::<Pod>::namespaced(client.clone(), &key.namespace));
        async move {
            let pod = pods.get(&key).filter(|pod| is_tracked(pod) && is_orphan(pod, jobs));
            let Some(pod) = pod else { return Ok(Requeue::OnChange) };
            // A job that adopts the pod meanwhile wants the finalizer: only this very state loses it.
            let patch = json!({ "metadata": { "resourceVersion": pod.metadata.resource_version,
                "finalizers": with_finalizer(&pod.metadata, TRACKING, false) } });
            let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map(drop).or_else(|error| ignore(error, &[404])).map(|()| Requeue::OnChange)
        }
    };
    context.drive("job-orphans", queue, 1, reconcile).await;
}
