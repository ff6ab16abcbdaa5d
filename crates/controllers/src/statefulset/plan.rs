//! Which pods of a StatefulSet to make, mend and delete, in which order, and what its status says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::history::REVISION_LABEL;
use crate::pods;

/// A StatefulSet's spec, with what its defaults mean.
pub struct Terms {
    pub replicas: usize,
    /// The first ordinal.
    pub start: usize,
    pub parallel: bool,
    pub min_ready_seconds: i32,
    /// None for `OnDelete`.
    pub rolling: Option<Rolling>,
    pub deleting: bool,
}

/// How a new template reaches the pods.
pub struct Rolling {
    pub partition: usize,
    pub max_unavailable: Option<usize>,
}

fn count(number: Option<i32>, default: usize) -> usize {
    number.map_or(default, |number| usize::try_from(number).unwrap_or(0))
}

fn share(value: &IntOrString, of: usize) -> usize {
    match value {
        IntOrString::Int(number) => count(Some(*number), 0),
        IntOrString::String(text) => {
            text.trim_end_matches('%').parse::<usize>().map_or(1, |percent| percent * of / 100)
        }
    }
}

impl Terms {
    /// The terms of a StatefulSet.
    pub fn of(set: &StatefulSet) -> Self {
        let spec = &set.spec;
        let replicas = count(spec.replicas, 1);
        let strategy = spec.update_strategy.clone().unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        Self {
            replicas,
            start: count(spec.ordinals.as_ref().and_then(|ordinals| ordinals.start), 0),
            parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            rolling: (strategy.type_.as_deref() != Some("OnDelete")).then(|| Rolling {
                partition: count(rolling.partition, 0),
                max_unavailable: rolling.max_unavailable.map(|most| share(&most, replicas).max(1)),
            }),
            deleting: set.metadata.deletion_timestamp.is_some(),
        }
    }

    /// Whether the set wants a pod of this ordinal.
    pub fn wants(&self, ordinal: usize) -> bool {
        (self.start..self.start + self.replicas).contains(&ordinal)
    }

    /// Whether a missing pod is made from the current revision, not from the one that replaces it.
    fn is_made_as_before(&self, ordinal: usize) -> bool {
        self.rolling.as_ref().is_some_and(|rolling| ordinal < self.start + rolling.partition)
    }
}

/// The name before the ordinal, and the ordinal.
pub fn parse_name(name: &str) -> Option<(&str, usize)> {
    let (parent, ordinal) = name.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    let ordinal: i32 = ordinal.parse().ok().filter(|_| digits)?;
    Some((parent, usize::try_from(ordinal).ok()?))
}

/// A pod's ordinal.
pub fn ordinal_of(pod: &Pod) -> Option<usize> {
    parse_name(pod.metadata.name.as_deref()?).map(|(_, ordinal)| ordinal)
}

/// The name of the revision that a pod was made from.
pub fn revision_of(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(REVISION_LABEL)).map(String::as_str).unwrap_or_default()
}

/// One thing to do. The steps of a plan are done in order, up to the first that fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make the pod of an ordinal, and before it its claims; from the update revision or as before.
    Create { ordinal: usize, updated: bool },
    /// Make the claims of a waiting pod that are missing.
    MakeClaims(Arc<Pod>),
    /// See that identity, volumes and the owners of claims are as they should be.
    Mend(Arc<Pod>),
    /// See that the owners of the claims of a pod that goes are as they should be.
    MendClaims(Arc<Pod>),
    /// Delete a pod: it has ended, is not wanted, or makes place for its next revision.
    Delete(Arc<Pod>),
}

/// The counts of a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub replicas: i32,
    pub ready: i32,
    pub available: i32,
    pub current: i32,
    pub updated: i32,
}

/// What to do, and what the status says then.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub counts: Counts,
    /// When the next pod becomes available by time alone.
    pub next: Option<Duration>,
}

struct Planner<'a> {
    terms: &'a Terms,
    update_revision: &'a str,
    now: Timestamp,
    /// By distance from the first ordinal.
    replicas: Vec<Option<Arc<Pod>>>,
    /// The highest ordinal first.
    condemned: Vec<Arc<Pod>>,
    steps: Vec<Step>,
}

/// Decides about the pods of a set.
pub fn plan(
    terms: &Terms,
    owned: &[Arc<Pod>],
    current_revision: &str,
    update_revision: &str,
    now: Timestamp,
) -> Plan {
    let (mut replicas, mut condemned) = (vec![None; terms.replicas], Vec::new());
    for pod in owned {
        match ordinal_of(pod) {
            Some(ordinal) if terms.wants(ordinal) => replicas[ordinal - terms.start] = Some(pod.clone()),
            Some(_) => condemned.push(pod.clone()),
            None => {}
        }
    }
    condemned.sort_by_key(|pod| std::cmp::Reverse(ordinal_of(pod)));
    let mut planner = Planner { terms, update_revision, now, replicas, condemned, steps: Vec::new() };
    let mut counts = tally(owned, terms.min_ready_seconds, current_revision, update_revision, now);
    if !terms.deleting {
        // In order, the first pod that is not as it should be ends the plan.
        if planner.keep() && planner.scale_down() {
            counts.current -= planner.update();
        }
    }
    let waits =
        owned.iter().filter_map(|pod| pods::is_available(pod, terms.min_ready_seconds, now).err().flatten());
    Plan { next: waits.min(), steps: planner.steps, counts }
}

fn tally(owned: &[Arc<Pod>], min_ready_seconds: i32, current: &str, update: &str, now: Timestamp) -> Counts {
    let mut counts = Counts::default();
    for pod in owned.iter().filter(|pod| !pods::phase(pod).is_empty()) {
        counts.replicas += 1;
        if pods::phase(pod) == "Running" && pods::is_ready(pod) {
            counts.ready += 1;
            counts.available += i32::from(pods::is_available(pod, min_ready_seconds, now).is_ok());
        }
        if pod.metadata.deletion_timestamp.is_none() {
            counts.current += i32::from(revision_of(pod) == current);
            counts.updated += i32::from(revision_of(pod) == update);
        }
    }
    counts
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl Planner<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.terms.min_ready_seconds, self.now).is_ok()
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && self.is_available(pod)
    }

    /// Makes and mends the pods that are wanted. Whether the pods after them may be looked at.
    fn keep(&mut self) -> bool {
        let ordered = !self.terms.parallel;
        for (at, pod) in self.replicas.clone().into_iter().enumerate() {
            let Some(pod) = pod else {
                let ordinal = self.terms.start + at;
                self.steps.push(Step::Create { ordinal, updated: !self.terms.is_made_as_before(ordinal) });
                if ordered {
                    return false;
                }
                continue;
            };
            if pods::has_ended(&pod) {
                if !is_going(&pod) {
                    self.steps.push(Step::Delete(pod));
                }
                if ordered {
                    return false;
                }
                continue;
            }
            if pods::phase(&pod) == "Pending" {
                self.steps.push(Step::MakeClaims(pod.clone()));
            }
            if ordered && (is_going(&pod) || !self.is_healthy(&pod)) {
                return false;
            }
            self.steps.push(Step::Mend(pod));
        }
        true
    }

    /// Deletes the pods that are not wanted, the highest ordinal first. Whether there are none.
    fn scale_down(&mut self) -> bool {
        let ordered = !self.terms.parallel;
        let condemned = self.condemned.clone();
        self.steps.extend(condemned.iter().cloned().map(Step::MendClaims));
        if !ordered {
            let gone = condemned.into_iter().filter(|pod| !is_going(pod));
            self.steps.extend(gone.map(Step::Delete));
            return true;
        }
        let Some(highest) = condemned.first() else { return true };
        let unavailable = |pod: &&Arc<Pod>| is_going(pod) || !self.is_available(pod);
        // A pod that is unhealthy goes only when all below it are well.
        let first_unavailable = condemned.iter().rev().find(unavailable);
        let is_first = first_unavailable.is_some_and(|first| Arc::ptr_eq(first, highest));
        if !is_going(highest) && (self.is_healthy(highest) || is_first) {
            self.steps.push(Step::Delete(highest.clone()));
        }
        false
    }

    /// Deletes pods of old revisions to have them made anew, the highest ordinal first; how many.
    fn update(&mut self) -> i32 {
        let Some(rolling) = &self.terms.rolling else { return 0 };
        let is_unavailable =
            |pod: &Option<Arc<Pod>>| pod.as_ref().is_none_or(|pod| is_going(pod) || !self.is_available(pod));
        let is_old = |pod: &Pod| revision_of(pod) != self.update_revision && !is_going(pod);
        let above = self.replicas.iter().skip(rolling.partition).rev();
        let chosen: Vec<Arc<Pod>> = match rolling.max_unavailable {
            Some(most) => {
                let free =
                    most.saturating_sub(self.replicas.iter().filter(|pod| is_unavailable(pod)).count());
                above.flatten().filter(|pod| is_old(pod)).take(free).cloned().collect()
            }
            None => {
                let mut first =
                    above.filter(|pod| is_unavailable(pod) || pod.as_ref().is_some_and(|pod| is_old(pod)));
                let first = first.next().and_then(Option::as_ref);
                first.filter(|pod| is_old(pod)).cloned().into_iter().collect()
            }
        };
        let deleted = i32::try_from(chosen.len()).unwrap_or(i32::MAX);
        // What has ended is deleted already.
        let chosen: Vec<_> =
            chosen.into_iter().map(Step::Delete).filter(|step| !self.steps.contains(step)).collect();
        self.steps.extend(chosen);
        deleted
    }
}

/// The revision that is current once the status has these counts: when every pod is updated and ready, the new one.
pub fn is_rolled_out(terms: &Terms, counts: &Counts) -> bool {
    let all = i32::try_from(terms.replicas).unwrap_or(i32::MAX);
    terms.rolling.is_some()
        && [counts.updated, counts.ready, counts.replicas].iter().all(|count| *count == all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn terms(spec: Value) -> Terms {
        let mut base = json!({ "serviceName": "s", "selector": {}, "template": {}, "replicas": 3,
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } } });
        base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        Terms::of(&serde_json::from_value(json!({ "metadata": {}, "spec": base })).unwrap())
    }

    /// `2old!x`: ordinal, revision, `!` unready, `x` going, `f` failed.
    fn pod(text: &str) -> Arc<Pod> {
        let revision = if text.contains("old") { "old" } else { "new" };
        let ready = if text.contains('!') { "False" } else { "True" };
        let phase = if text.contains('f') { "Failed" } else { "Running" };
        let going = text.contains('x').then_some("2026-01-01T00:00:00Z");
        let pod = json!({ "metadata": { "name": format!("web-{}", &text[..1]), "deletionTimestamp": going,
                "labels": { REVISION_LABEL: revision } },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready }] } });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn check(spec: Value, pods: &[&str], expected: &[&str]) {
        let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
        let plan = plan(&terms(spec.clone()), &pods, "old", "new", Timestamp::UNIX_EPOCH);
        let name = |pod: &Pod| ordinal_of(pod).unwrap().to_string();
        let steps: Vec<String> = plan
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Create { ordinal, updated } => {
                    Some(format!("+{ordinal}{}", if *updated { "new" } else { "old" }))
                }
                Step::Delete(pod) => Some(format!("-{}", name(pod))),
                Step::MakeClaims(_) | Step::Mend(_) | Step::MendClaims(_) => None,
            })
            .collect();
        assert_eq!(steps, expected, "{spec} {:?}", plan.counts);
    }

    #[test]
    fn pods_come_one_after_the_other() {
        check(json!({}), &[], &["+0new"]);
        check(json!({}), &["0new!"], &[]);
        check(json!({}), &["0new"], &["+1new"]);
        check(json!({}), &["0newf", "1new"], &["-0"]);
        check(json!({}), &["0newxf", "1new"], &[]);
        check(json!({ "ordinals": { "start": 5 } }), &["5new"], &["+6new"]);
        let partition =
            json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } } });
        check(partition, &["0old"], &["+1old"]);
    }

    #[test]
    fn parallel_pods_come_and_go_at_once() {
        let parallel = |replicas: i32| json!({ "podManagementPolicy": "Parallel", "replicas": replicas });
        check(parallel(3), &["1new!"], &["+0new", "+2new"]);
        check(parallel(1), &["0new!", "1new!", "2new", "3newx"], &["-2", "-1"]);
    }

    #[test]
    fn pods_go_in_reverse_order_and_wait_for_unhealthy_ones() {
        let one = || json!({ "replicas": 1 });
        check(one(), &["0new", "1new", "2new"], &["-2"]);
        check(one(), &["0new", "1new", "2newx"], &[]);
        check(one(), &["0new!", "1new", "2new"], &[]);
        check(one(), &["0new", "1new", "2new!"], &["-2"]);
        check(one(), &["0new", "1new!", "2new!"], &[]);
    }

    #[test]
    fn updates_go_down_to_the_partition() {
        check(json!({}), &["0old", "1old", "2old"], &["-2"]);
        check(json!({}), &["0old", "1old", "2new"], &["-1"]);
        let strategy = |rolling: Value| json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": rolling } });
        check(strategy(json!({ "partition": 1 })), &["0old", "1new", "2new"], &[]);
        check(strategy(json!({ "maxUnavailable": 2 })), &["0old", "1old", "2old"], &["-2", "-1"]);
        check(strategy(json!({ "maxUnavailable": "50%" })), &["0old", "1old", "2old"], &["-2"]);
        check(json!({ "updateStrategy": { "type": "OnDelete" } }), &["0old", "1old", "2old"], &[]);
    }

    #[test]
    fn counts_tell_when_an_update_is_done() {
        let (terms, pods) = (terms(json!({})), ["0new", "1new", "2new!"].map(pod));
        let counts = plan(&terms, &pods, "old", "new", Timestamp::UNIX_EPOCH).counts;
        assert_eq!(counts, Counts { replicas: 3, ready: 2, available: 2, current: 0, updated: 3 });
        assert!(!is_rolled_out(&terms, &counts));
        assert!(is_rolled_out(&terms, &Counts { ready: 3, ..counts }));
    }
}
