//! Validation of Jobs and CronJobs.

use coxswain_meta::json::{Map, Value};
use coxswain_meta::labels::Selector;
use coxswain_meta::{ErrorList, FieldError, Path, names};

use super::cron;
use crate::apps::not_negative;
use crate::check::{domain_prefixed_path, one_of};
use crate::core::pod;
use crate::objectmeta::{self, immutable, immutable_struct};
use crate::value::{filled, flag, has, int, items, text};

const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PARALLEL: i64 = 100_000;
const LONGEST_MANAGER: usize = 63;

pub(super) fn job(job: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&job["spec"], Path::new("spec"));
    job_spec(&mut errors, spec, &path);
    let at = path.child("selector");
    if spec["selector"].is_object() {
        objectmeta::label_selector(&mut errors, &spec["selector"], &at);
    } else {
        errors.push(FieldError::required(&at, ""));
    }
    let selector = match spec["selector"].is_object() {
        true => Selector::from_label_selector(&spec["selector"]),
        false => Ok(Selector::nothing()),
    };
    if let Ok(selector) = selector {
        pod::validate_selected(&mut errors, &spec["template"], &selector, &path.child("template"));
    }
    errors
}

/// Pods of an indexed job are called after it.
pub(super) fn new_job(job: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, name) = (&job["spec"], crate::value::name(job));
    if !flag(spec, "manualSelector") {
        generated_selector(&mut errors, job, name);
    }
    if let Some(last) = int(spec, "completions").filter(|n| *n > 0)
        && text(spec, "completionMode") == "Indexed"
    {
        let host = format!("{name}-{}", last - 1);
        if !names::dns1123_label(&host).is_empty() {
            let rule = format!("will not able to create pod with invalid DNS label: {host}");
            errors.push(FieldError::invalid(&Path::new("metadata").child("name"), name, rule));
        }
    }
    errors
}

/// What the selector is made of may be contradicted by labels that the client wrote itself.
fn generated_selector(errors: &mut ErrorList, job: &Value, name: &str) {
    let (spec, uid) = (&job["spec"], text(&job["metadata"], "uid"));
    let labels = &spec["template"]["metadata"]["labels"];
    let wanted = [("controller-uid", uid), ("job-name", name)]
        .into_iter()
        .flat_map(|(label, value)| ["", super::PREFIX].map(|prefix| (format!("{prefix}{label}"), value)));
    let mut expected = Map::new();
    for (label, value) in wanted {
        let at = Path::new("spec.template.metadata.labels").key(&label);
        if labels[&label] != value {
            errors.push(FieldError::invalid(&at, labels.clone(), format!("must be '{value}'")));
        }
        expected.insert(label, value.into());
    }
    let expected = Value::Object(expected);
    let selector = Selector::from_label_selector(&spec["selector"]);
    if selector.is_ok_and(|selector| !selector.matches_json(&expected)) {
        let rule = "`selector` not auto-generated";
        errors.push(FieldError::invalid(&Path::new("spec.selector"), spec["selector"].clone(), rule));
    }
}

fn job_spec(errors: &mut ErrorList, spec: &Value, path: &Path) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        not_negative(errors, spec, key, path);
    }
    if has(spec, "maxFailedIndexes") && !has(spec, "backoffLimitPerIndex") {
        let rule = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(&path.child("backoffLimitPerIndex"), rule));
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        let at = path.child("managedBy");
        domain_prefixed_path(errors, manager, &at);
        if manager.len() > LONGEST_MANAGER {
            errors.push(FieldError::too_long(&at, LONGEST_MANAGER));
        }
    }
    one_of(errors, spec, "completionMode", &["NonIndexed", "Indexed"], path);
    match text(spec, "completionMode") {
        "Indexed" => indexed(errors, spec, path),
        "" | "NonIndexed" => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(n) = int(spec, key) {
                    errors.push(FieldError::invalid(&path.child(key), n, "requires indexed completion mode"));
                }
            }
        }
        _ => {}
    }
    if has(spec, "podFailurePolicy") {
        failure_policy(errors, spec, &path.child("podFailurePolicy"));
    }
    if has(spec, "podFailurePolicy") && text(spec, "podReplacementPolicy") != "Failed" {
        let at = path.child("podReplacementPolicy");
        if !text(spec, "podReplacementPolicy").is_empty() {
            errors.push(FieldError::not_supported(&at, text(spec, "podReplacementPolicy"), &["Failed"]));
        }
    } else {
        one_of(errors, spec, "podReplacementPolicy", &["Failed", "TerminatingOrFailed"], path);
    }
    let (template, at) = (&spec["template"], path.child("template"));
    pod::validate_template(errors, template, &at);
    let (policy, at) = (text(&template["spec"], "restartPolicy"), at.child("spec.restartPolicy"));
    match policy {
        "Always" | "" => errors.push(FieldError::required(&at, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if has(spec, "podFailurePolicy") => {
            let rule = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(&at, policy, rule));
        }
        "OnFailure" => {}
        other => errors.push(FieldError::not_supported(&at, other, &["OnFailure", "Never"])),
    }
}

fn indexed(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let completions = int(spec, "completions");
    if completions.is_none() {
        errors.push(FieldError::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    if let Some(n) = int(spec, "parallelism").filter(|n| *n > MOST_PARALLEL) {
        let rule = format!("must be less than or equal to {MOST_PARALLEL} when completion mode is Indexed");
        errors.push(FieldError::invalid(&path.child("parallelism"), n, rule));
    }
    let Some(failed) = int(spec, "maxFailedIndexes") else { return };
    let at = path.child("maxFailedIndexes");
    if completions.is_some_and(|n| failed > n) {
        errors.push(FieldError::invalid(&at, failed, "must be less than or equal to completions"));
    }
    if failed > MOST_PARALLEL {
        let rule = format!("must be less than or equal to {MOST_PARALLEL}");
        errors.push(FieldError::invalid(&at, failed, rule));
    }
}

fn failure_policy(errors: &mut ErrorList, spec: &Value, path: &Path) {
    let (rules, path) = (items(&spec["podFailurePolicy"], "rules"), path.child("rules"));
    if rules.len() > MOST_RULES {
        errors.push(FieldError::too_many(&path, rules.len(), MOST_RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = path.index(i);
        match text(rule, "action") {
            "" => {
                let known = format!("valid values: {}", quoted(ACTIONS));
                errors.push(FieldError::required(&at.child("action"), known));
            }
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => {
                let why = "requires the backoffLimitPerIndex to be set";
                errors.push(FieldError::invalid(&at.child("action"), "FailIndex", why));
            }
            _ => one_of(errors, rule, "action", ACTIONS, &at),
        }
        if has(rule, "onExitCodes") {
            exit_codes(errors, spec, &rule["onExitCodes"], &at.child("onExitCodes"));
        }
        pod_conditions(errors, rule, &at.child("onPodConditions"));
        let why = match (has(rule, "onExitCodes"), filled(rule, "onPodConditions")) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.push(FieldError::invalid_without_value(&at, why));
    }
}

/// `["A" "B"]`, as Go prints a list of quoted texts.
fn quoted(list: &[&str]) -> String {
    format!("[{}]", list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "))
}

fn exit_codes(errors: &mut ErrorList, spec: &Value, codes: &Value, path: &Path) {
    match text(codes, "operator") {
        "" => {
            let known = format!("valid values: {}", quoted(&["In", "NotIn"]));
            errors.push(FieldError::required(&path.child("operator"), known));
        }
        _ => one_of(errors, codes, "operator", &["In", "NotIn"], path),
    }
    let pod = &spec["template"]["spec"];
    let known = |name: &str| {
        ["containers", "initContainers"]
            .iter()
            .any(|list| items(pod, list).iter().any(|c| text(c, "name") == name))
    };
    if let Some(name) = codes["containerName"].as_str().filter(|name| !known(name)) {
        let rule = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(&path.child("containerName"), name, rule));
    }
    let values: Vec<i64> = items(codes, "values").iter().filter_map(Value::as_i64).collect();
    let at = path.child("values");
    if values.is_empty() {
        let shown = codes.get("values").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(&at, shown, "at least one value is required"));
    } else if values.len() > MOST_EXIT_CODES {
        errors.push(FieldError::too_many(&at, values.len(), MOST_EXIT_CODES));
    }
    for (j, code) in values.iter().enumerate() {
        if text(codes, "operator") == "In" && *code == 0 {
            errors.push(FieldError::invalid(&at.index(j), 0, "must not be 0 for the In operator"));
        }
        if values[..j].contains(code) {
            errors.push(FieldError::duplicate(&at.index(j), *code));
        }
    }
    if !values.is_sorted() {
        errors.push(FieldError::invalid(&at, codes["values"].clone(), "must be ordered"));
    }
}

fn pod_conditions(errors: &mut ErrorList, rule: &Value, path: &Path) {
    for (j, pattern) in items(rule, "onPodConditions").iter().enumerate() {
        let (at, kind) = (path.index(j), text(pattern, "type"));
        errors.invalid_each(&at.child("type"), kind, names::qualified_name(kind));
        let known = &["False", "True", "Unknown"];
        match text(pattern, "status") {
            "" => {
                let rule = format!("valid values: {}", quoted(known));
                errors.push(FieldError::required(&at.child("status"), rule));
            }
            _ => one_of(errors, pattern, "status", known, &at),
        }
    }
}

pub(super) fn job_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec");
    let (new, old) = (&new["spec"], &old["spec"]);
    if text(new, "completionMode") != "Indexed" {
        immutable(&mut errors, new, old, "completions", &path);
    } else if new["completions"] != old["completions"]
        && has(new, "completions")
        && new["completions"] != new["parallelism"]
    {
        let rule = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid(&path.child("completions"), new["completions"].clone(), rule));
    }
    immutable(&mut errors, new, old, "selector", &path);
    // A suspended job that never started may still have its template's placement changed.
    if !(flag(old, "suspend") && flag(new, "suspend")) {
        immutable_struct(&mut errors, new, old, "template", "io.k8s.api.core.v1.PodTemplateSpec", &path);
    }
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(&mut errors, new, old, key, &path);
    }
    errors
}

pub(super) fn cron_job(cron: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, path) = (&cron["spec"], Path::new("spec"));
    let (schedule, at) = (text(spec, "schedule"), path.child("schedule"));
    if schedule.is_empty() {
        errors.push(FieldError::required(&at, ""));
    } else {
        if let Err(why) = cron::Schedule::parse(schedule) {
            errors.push(FieldError::invalid(&at, schedule, why));
        }
        if schedule.contains("TZ") {
            let rule = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid(&at, schedule, rule));
        }
    }
    not_negative(&mut errors, spec, "startingDeadlineSeconds", &path);
    if let Some(zone) = spec["timeZone"].as_str() {
        time_zone(&mut errors, zone, &path.child("timeZone"));
    }
    match text(spec, "concurrencyPolicy") {
        "" => errors.push(FieldError::required(&path.child("concurrencyPolicy"), "")),
        _ => one_of(&mut errors, spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path),
    }
    let (template, at) = (&spec["jobTemplate"]["spec"], path.child("jobTemplate.spec"));
    job_spec(&mut errors, template, &at);
    if has(template, "selector") {
        let rule = "`selector` will be auto-generated";
        errors.push(FieldError::invalid(&at.child("selector"), template["selector"].clone(), rule));
    }
    if flag(template, "manualSelector") {
        errors.push(FieldError::not_supported(&at.child("manualSelector"), true, &["nil", "false"]));
    }
    for key in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        not_negative(&mut errors, spec, key, &path);
    }
    errors
}

fn time_zone(errors: &mut ErrorList, zone: &str, at: &Path) {
    let legal = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.starts_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
    };
    if zone.is_empty() {
        errors.push(FieldError::invalid(at, zone, "timeZone must be nil or non-empty string"));
    } else if !zone.split('/').all(legal) {
        errors.push(FieldError::invalid(at, zone, format!("unknown time zone {zone}")));
    } else if zone.eq_ignore_ascii_case("local") {
        let rule = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(FieldError::invalid(at, zone, rule));
    } else if !is_area(zone) {
        errors.push(FieldError::invalid(at, zone, format!("unknown time zone {zone}")));
    }
}

/// Whether the name can be one of the time zone database: an area of it with a place, or one of the names without an area.
fn is_area(zone: &str) -> bool {
    const AREAS: &[&str] = &[
        "Africa",
        "America",
        "Antarctica",
        "Arctic",
        "Asia",
        "Atlantic",
        "Australia",
        "Brazil",
        "Canada",
        "Chile",
        "Etc",
        "Europe",
        "Indian",
        "Mexico",
        "Pacific",
        "US",
    ];
    const ALONE: &[&str] = &[
        "UTC",
        "GMT",
        "UCT",
        "Zulu",
        "Universal",
        "Greenwich",
        "GMT0",
        "GMT+0",
        "GMT-0",
        "EST",
        "MST",
        "HST",
        "CET",
        "MET",
        "EET",
        "WET",
        "EST5EDT",
        "CST6CDT",
        "MST7MDT",
        "PST8PDT",
        "Cuba",
        "Egypt",
        "Eire",
        "GB",
        "GB-Eire",
        "Hongkong",
        "Iceland",
        "Iran",
        "Israel",
        "Jamaica",
        "Japan",
        "Kwajalein",
        "Libya",
        "NZ",
        "NZ-CHAT",
        "Navajo",
        "PRC",
        "Poland",
        "Portugal",
        "ROC",
        "ROK",
        "Singapore",
        "Turkey",
        "W-SU",
    ];
    match zone.split_once('/') {
        Some((area, _)) => AREAS.contains(&area),
        None => ALONE.contains(&zone),
    }
}

/// Names of its jobs get eleven characters more and must stay DNS labels.
pub(super) fn new_cron_job(cron: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let own = crate::value::name(cron);
    if own.len() > 52 {
        let at = Path::new("metadata").child("name");
        errors.push(FieldError::invalid(&at, own, "must be no more than 52 characters"));
    }
    errors
}
