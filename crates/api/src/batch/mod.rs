//! Job and CronJob.

pub mod cron;
mod validate;

use coxswain_meta::json::{Value, json};

use crate::catalogue::{Column, Hooks, Kind, Subresource, kind};
use crate::core::pod;
use crate::table::{
    AGE, CONTAINERS, IMAGES, NAME, SELECTOR, age, boolean, column, containers, count, name, number, or,
    selector, since, tristate,
};
use crate::time;
use crate::value::{child, filled, flag, has, int, items, set, set_default, text};

pub(crate) const JOB: Kind = Kind {
    categories: &["all"],
    subresources: &[Subresource::status("batch", "v1", "Job")],
    status: true,
    columns: JOB_COLUMNS,
    selectable: &["status.successful"],
    hooks: Hooks {
        default: default_job,
        prepare_create: prepare_job,
        prepare_update: |new, old| {
            share_labels(new);
            (Hooks::COUNTED.prepare_update)(new, old);
        },
        validate: validate::job,
        validate_new: validate::new_job,
        validate_update: validate::job_update,
        selectable: |v| vec![("status.successful", number(&v["status"], "succeeded").to_string())],
        row: job_row,
        ..Hooks::COUNTED
    },
    ..kind!("batch", "v1", "Job", "jobs", "job")
};
const JOB_COLUMNS: &[Column] = &[
    NAME,
    column("Status", "What the job is doing."),
    column("Completions", "Pods that succeeded, of those wanted."),
    column("Duration", "How long it ran."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// What labels of jobs begin with, besides the old ones without it.
const PREFIX: &str = "batch.kubernetes.io/";
const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";

pub(crate) const CRON_JOB: Kind = Kind {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::status("batch", "v1", "CronJob")],
    status: true,
    columns: CRON_COLUMNS,
    hooks: Hooks {
        default: default_cron,
        validate: validate::cron_job,
        validate_new: validate::new_cron_job,
        row: cron_row,
        ..Hooks::COUNTED
    },
    ..kind!("batch", "v1", "CronJob", "cronjobs", "cronjob")
};
const CRON_COLUMNS: &[Column] = &[
    NAME,
    column("Schedule", "When it runs."),
    column("Timezone", "Time zone of the schedule."),
    boolean("Suspend", "Whether it is suspended."),
    count("Active", "Jobs that are running."),
    column("Last Schedule", "Time since it last ran."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn default_job(job: &mut Value) {
    if let Some(spec) = child(job, "spec") {
        if !has(spec, "completions") && !has(spec, "parallelism") {
            set(spec, "completions", 1);
        }
        set_default(spec, "parallelism", 1);
        let backoff = if has(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 };
        set_default(spec, "backoffLimit", backoff);
        set_default(spec, "completionMode", "NonIndexed");
        set_default(spec, "suspend", false);
        set_default(spec, "manualSelector", false);
        let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        set_default(spec, "podReplacementPolicy", replacement);
        if let Some(policy) = crate::value::present(spec, "podFailurePolicy") {
            for rule in crate::value::items_mut(policy, "rules") {
                for pattern in crate::value::items_mut(rule, "onPodConditions") {
                    set_default(pattern, "status", "True");
                }
            }
        }
        if let Some(template) = child(spec, "template") {
            pod::default_template(template);
        }
    }
}

/// Unless the client chose a selector, pods are found by labels with the job's UID.
fn prepare_job(job: &mut Value) {
    crate::prepare::create_counted(job);
    let uid = text(&job["metadata"], "uid").to_owned();
    let job_name = crate::value::name(job).to_owned();
    let Some(spec) = child(job, "spec").filter(|s| !flag(s, "manualSelector") && !uid.is_empty()) else {
        return;
    };
    // What a client says of these labels itself is checked, not overwritten.
    set_default(spec, "selector", json!({}));
    if let Some(selector) = child(spec, "selector") {
        set_default(selector, "matchLabels", json!({}));
        let selected = child(selector, "matchLabels");
        selected.into_iter().for_each(|labels| set_default(labels, UID_LABEL, uid.as_str()));
    }
    if let Some(metadata) = child(spec, "template").and_then(|template| child(template, "metadata")) {
        set_default(metadata, "labels", json!({}));
        let (uid, name) = (("controller-uid", &uid), ("job-name", &job_name));
        for ((label, value), prefix) in [(uid, ""), (uid, PREFIX), (name, ""), (name, PREFIX)] {
            let labels = child(metadata, "labels");
            labels.into_iter().for_each(|l| set_default(l, &format!("{prefix}{label}"), value.as_str()));
        }
    }
    share_labels(job);
}

/// A job without labels of its own has its pods' labels: upstream shares one map.
fn share_labels(job: &mut Value) {
    let labels = job["spec"]["template"]["metadata"].get("labels").cloned();
    if let Some(labels) = labels.filter(Value::is_object)
        && let Some(metadata) = child(job, "metadata").filter(|m| !filled(m, "labels"))
    {
        set(metadata, "labels", labels);
    }
}

fn job_row(job: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let succeeded = int(status, "succeeded").unwrap_or(0);
    let completions = match (int(spec, "completions"), int(spec, "parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = time::parse(text(status, "startTime")).map_or(String::new(), |start| {
        time::human_duration(time::parse(text(status, "completionTime")).unwrap_or(now) - start)
    });
    let [names, images] = containers(&spec["template"]);
    vec![
        name(job),
        job_status(job).into(),
        completions.into(),
        duration.into(),
        age(job, now),
        names,
        images,
        selector(&spec["selector"]).into(),
    ]
}

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| {
        items(&job["status"], "conditions")
            .iter()
            .any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    let deleted = has(&job["metadata"], "deletionTimestamp");
    let states = [
        (holds("Complete"), "Complete"),
        (holds("Failed"), "Failed"),
        (deleted, "Terminating"),
        (holds("Suspended"), "Suspended"),
        (holds("FailureTarget"), "FailureTarget"),
        (holds("SuccessCriteriaMet"), "SuccessCriteriaMet"),
    ];
    states.into_iter().find(|(yes, _)| *yes).map_or("Running", |(_, state)| state)
}

fn default_cron(cron: &mut Value) {
    let Some(spec) = child(cron, "spec") else { return };
    set_default(spec, "concurrencyPolicy", "Allow");
    set_default(spec, "suspend", false);
    set_default(spec, "successfulJobsHistoryLimit", 3);
    set_default(spec, "failedJobsHistoryLimit", 1);
    let template =
        child(spec, "jobTemplate").and_then(|t| child(t, "spec")).and_then(|s| child(s, "template"));
    if let Some(template) = template {
        pod::default_template(template);
    }
}

fn cron_row(cron: &Value, now: i64) -> Vec<Value> {
    let (spec, status) = (&cron["spec"], &cron["status"]);
    let job = &spec["jobTemplate"]["spec"];
    let [names, images] = containers(&job["template"]);
    let last = match has(status, "lastScheduleTime") {
        true => since(status, "lastScheduleTime", now),
        false => "<none>".into(),
    };
    vec![
        name(cron),
        text(spec, "schedule").into(),
        or(text(spec, "timeZone"), "<none>").into(),
        tristate(&spec["suspend"]),
        items(status, "active").len().into(),
        last.into(),
        age(cron, now),
        names,
        images,
        selector(&job["selector"]).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_select_by_uid_and_do_not_restart_always() {
        let mut job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"template":
            {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        JOB.default(&mut job).expect("defaults");
        JOB.prepare_create(&mut job);
        assert_eq!(JOB.validate_create(&job).to_string(), "[]");
        assert_eq!(
            job["spec"]["selector"]["matchLabels"],
            json!({"batch.kubernetes.io/controller-uid": "u"})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(JOB.row(&job, 0)[1..3], [json!("Running"), json!("0/1")]);
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(
            JOB.validate_create(&job).to_string(),
            r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#
        );
    }
}
