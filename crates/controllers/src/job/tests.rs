//! Jobs as they go: what a reconcile decides about pods and notes in the status.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::facts::{Backoff, INDEX, INDEX_FAILURES, TRACKING, Terms, condition, put};
use super::plan::{Seen, Standing, Step, step};
use super::{template, tracking};

const NOW: &str = "2026-01-01T00:01:00Z";

fn job(spec: Value, status: Value) -> Job {
    let mut base = json!({ "parallelism": 2, "completions": 3, "backoffLimit": 6,
        "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c" }] } } });
    base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({ "metadata": { "name": "j", "uid": "u" }, "spec": base, "status": status }))
        .unwrap()
}

/// `a1F`: name, index, `R`unning, `S`ucceeded or `F`ailed (at 00:00:55); `x` is going, `-` is let go already.
fn pod(text: &str) -> Arc<Pod> {
    let phase = match text {
        t if t.contains('S') => "Succeeded",
        t if t.contains('F') => "Failed",
        _ => "Running",
    };
    let finalizers = if text.contains('-') { vec![] } else { vec![TRACKING] };
    let state = if phase == "Running" {
        json!({ "running": {} })
    } else {
        json!({ "terminated": { "exitCode": 1, "finishedAt": "2026-01-01T00:00:55Z" } })
    };
    let mut pod = json!({ "metadata": { "name": &text[..1], "uid": &text[..1], "finalizers": finalizers, "annotations": {} },
        "status": { "phase": phase, "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "state": state }] } });
    if let Some(index) = text.chars().find(char::is_ascii_digit) {
        pod["metadata"]["annotations"][INDEX] = index.to_string().into();
    }
    if text.contains('x') {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:58Z".into();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn with<T>(job: &Job, pods: &[&str], backoff: Backoff, look: impl FnOnce(&Seen<'_>, &Standing) -> T) -> T {
    let terms = Terms::of(job).unwrap();
    let status = job.status.clone().unwrap_or_default();
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    let released = HashSet::new();
    let now = NOW.parse().unwrap();
    let seen = Seen { terms: &terms, status: &status, pods: &pods, released: &released, backoff, now };
    look(&seen, &seen.standing())
}

fn next(spec: Value, status: Value, pods: &[&str]) -> String {
    with(&job(spec, status), pods, Backoff::default(), |seen, standing| {
        let names = |pods: &[Arc<Pod>]| -> String {
            pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        match (&standing.verdict, step(seen, standing)) {
            (Some(verdict), _) => format!("{} {}", verdict.type_, verdict.reason.clone().unwrap_or_default()),
            (None, Step::Nothing) => "nothing".into(),
            (None, Step::Wait(time)) => format!("wait {}", time.as_secs()),
            (None, Step::Delete(pods)) => format!("delete {}", names(&pods)),
            (None, Step::Create(pods)) => {
                let pods: Vec<_> =
                    pods.iter().map(|index| index.map_or("-".into(), |at| at.to_string())).collect();
                format!("create {}", pods.join(","))
            }
        }
    })
}

#[test]
fn pods_are_made_up_to_what_is_left() {
    assert_eq!(next(json!({}), json!({}), &[]), "create -,-");
    assert_eq!(next(json!({}), json!({ "succeeded": 2 }), &[]), "create -");
    assert_eq!(next(json!({}), json!({ "succeeded": 1 }), &["aR", "bS"]), "nothing");
    assert_eq!(next(json!({ "parallelism": 1 }), json!({}), &["aR", "bR"]), "delete a");
    assert_eq!(next(json!({ "suspend": true }), json!({}), &["aR", "bR"]), "delete ab");
    assert_eq!(
        next(json!({ "completions": null }), json!({}), &["aR", "bS"]),
        "nothing",
        "a success ends it"
    );
    assert_eq!(next(json!({ "podReplacementPolicy": "Failed" }), json!({}), &["aRx", "bR"]), "nothing");
}

#[test]
fn failures_slow_down_and_end_a_job() {
    // Failed five seconds ago: the first wait is ten.
    assert_eq!(next(json!({}), json!({}), &["aF"]), "wait 5");
    assert_eq!(next(json!({}), json!({}), &["aF", "bF"]), "wait 15");
    assert_eq!(next(json!({ "backoffLimit": 0 }), json!({}), &["aF"]), "FailureTarget BackoffLimitExceeded");
    assert_eq!(
        next(json!({ "backoffLimit": 2 }), json!({ "failed": 2 }), &["aF"]),
        "FailureTarget BackoffLimitExceeded"
    );
    let deadline = |seconds: i64| {
        next(
            json!({ "activeDeadlineSeconds": seconds }),
            json!({ "startTime": "2026-01-01T00:00:00Z" }),
            &["aR", "bR"],
        )
    };
    assert_eq!([deadline(60), deadline(61)], ["FailureTarget DeadlineExceeded", "nothing"]);
    let policy =
        json!({ "rules": [{ "action": "FailJob", "onExitCodes": { "operator": "In", "values": [1] } }] });
    assert_eq!(
        next(json!({ "podFailurePolicy": policy }), json!({}), &["aF"]),
        "FailureTarget PodFailurePolicy"
    );
    let now: Timestamp = NOW.parse().unwrap();
    assert_eq!(Backoff { failures: 30, last: Some(now) }.left(now), Duration::from_secs(600));
    assert_eq!(Backoff { failures: 3, last: Some(now) }.after(&[&pod("aS")], &[]), Backoff::default());
}

#[test]
fn each_index_has_one_pod_until_it_succeeds() {
    let indexed = |more: Value| {
        let mut spec = json!({ "completionMode": "Indexed" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    assert_eq!(next(indexed(json!({})), json!({ "completedIndexes": "0" }), &["a2R"]), "create 1");
    assert_eq!(next(indexed(json!({})), json!({}), &["a0R", "b0R"]), "delete a");
    assert_eq!(next(indexed(json!({})), json!({}), &["a7R"]), "delete a", "no such index");
    let per_index = indexed(json!({ "backoffLimitPerIndex": 1 }));
    assert_eq!(next(per_index.clone(), json!({}), &["a0F", "b1R"]), "wait 5");
    let failed = json!({ "completedIndexes": "0,1", "failedIndexes": "2" });
    assert_eq!(next(per_index, failed, &[]), "FailureTarget FailedIndexes");
    let many = indexed(json!({ "backoffLimitPerIndex": 0, "maxFailedIndexes": 0 }));
    assert_eq!(next(many, json!({}), &["a0F"]), "FailureTarget MaxFailedIndexesExceeded");
    let enough = indexed(json!({ "successPolicy": { "rules": [{ "succeededCount": 1 }] } }));
    assert_eq!(next(enough, json!({}), &["a1S", "b0R"]), "SuccessCriteriaMet SuccessPolicy");
}

#[test]
fn a_pod_inherits_the_failures_of_its_index() {
    let job = job(json!({ "completionMode": "Indexed", "backoffLimitPerIndex": 3 }), json!({}));
    with(&job, &["a1F"], Backoff::default(), |seen, standing| {
        let pods: Vec<_> = template::pods(&job, seen.terms, vec![Some(0), Some(1)], &standing.kept).collect();
        let annotation = |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()[INDEX_FAILURES].clone();
        assert_eq!([annotation(&pods[0]), annotation(&pods[1])], ["0", "1"]);
        let spec = pods[1].spec.as_ref().unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("j-1"));
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
        assert_eq!(pods[1].metadata.generate_name.as_deref(), Some("j-1-"));
    });
}

#[test]
fn pods_are_counted_once() {
    let job = job(json!({}), json!({ "uncountedTerminatedPods": { "succeeded": ["a"] }, "failed": 1 }));
    with(&job, &["aS-", "bS", "cF", "dR"], Backoff::default(), |seen, standing| {
        let mut status = seen.status.clone();
        let mut tally = tracking::note(seen, standing, None, false, &mut status);
        let noted = status.uncounted_terminated_pods.clone().unwrap();
        assert_eq!(noted.succeeded, Some(vec!["b".to_owned()]), "a was let go, and counts");
        assert_eq!((noted.failed, status.succeeded), (Some(vec!["c".to_owned()]), Some(1)));
        let released: Vec<_> = tally.release.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        assert_eq!(released, ["b", "c"]);
        tally.held.retain(|uid| !released.contains(uid));
        tracking::settle(&mut status, &tally.held);
        assert_eq!((status.succeeded, status.failed), (Some(2), Some(2)));
        assert_eq!(status.uncounted_terminated_pods, Some(Default::default()));
    });
}

#[test]
fn a_job_ends_when_its_pods_are_counted_and_gone() {
    let job = job(json!({}), json!({ "succeeded": 2 }));
    with(&job, &["aS"], Backoff::default(), |seen, standing| {
        let verdict = condition("SuccessCriteriaMet", true, "CompletionsReached", "", seen.now);
        let mut status = seen.status.clone();
        let mut tally = tracking::note(seen, standing, Some(verdict), false, &mut status);
        let kinds = |status: &JobStatus| -> Vec<String> {
            status.conditions.iter().flatten().map(|condition| condition.type_.clone()).collect()
        };
        assert_eq!(kinds(&status), ["SuccessCriteriaMet"]);
        assert!(!tracking::finish(&mut status, &tally, 0, seen.now), "a pod is noted and not counted");
        tally.held.clear();
        tracking::settle(&mut status, &tally.held);
        assert!(!tracking::finish(&mut status, &tally, 1, seen.now), "a pod is going");
        assert!(tracking::finish(&mut status, &tally, 0, seen.now));
        assert_eq!(kinds(&status), ["SuccessCriteriaMet", "Complete"]);
        assert!(status.completion_time.is_some());
    });
}

#[test]
fn a_condition_that_never_held_does_not_end() {
    let (mut status, now) = (JobStatus::default(), NOW.parse().unwrap());
    assert!(!put(&mut status, condition("Suspended", false, "JobResumed", "", now)));
    assert!(put(&mut status, condition("Suspended", true, "JobSuspended", "", now)));
    assert!(!put(&mut status, condition("Suspended", true, "JobSuspended", "", now)));
    assert!(put(&mut status, condition("Suspended", false, "JobResumed", "", now)));
}
