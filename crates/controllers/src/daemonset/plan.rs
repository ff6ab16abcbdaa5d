//! Which pods of a DaemonSet to make and to delete, node by node, and what its status says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::fit::{Fit, node_of};
use crate::history::REVISION_LABEL;
use crate::pods;

/// The label on pods of a template's generation, from before there were revisions.
pub const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION: &str = "deprecated.daemonset.template.generation";

/// How a DaemonSet's pods are to be.
pub struct Terms {
    /// The hash of the current revision.
    pub hash: String,
    /// The template's generation, where the set says it.
    pub generation: Option<String>,
    pub min_ready_seconds: i32,
    /// None for `OnDelete`.
    rolling: Option<(IntOrString, IntOrString)>,
}

impl Terms {
    /// The terms of a set whose current revision has this hash.
    pub fn of(set: &DaemonSet, hash: &str) -> Self {
        let strategy = set.spec.update_strategy.clone().unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let annotations = set.metadata.annotations.as_ref();
        Self {
            hash: hash.to_owned(),
            generation: annotations.and_then(|all| all.get(GENERATION)).cloned(),
            min_ready_seconds: set.spec.min_ready_seconds.unwrap_or(0),
            rolling: (strategy.type_.as_deref() != Some("OnDelete")).then(|| {
                let default =
                    |value: Option<IntOrString>, default| value.unwrap_or(IntOrString::Int(default));
                (default(rolling.max_unavailable, 1), default(rolling.max_surge, 0))
            }),
        }
    }

    /// How many nodes may be without a pod, and with two.
    fn limits(&self, nodes: usize) -> Option<(usize, usize)> {
        let (unavailable, surge) = self.rolling.as_ref()?;
        let (unavailable, surge) = (share(unavailable, nodes), share(surge, nodes));
        Some(if (unavailable, surge) == (0, 0) { (1, 0) } else { (unavailable, surge) })
    }

    fn allows_surge(&self) -> bool {
        self.rolling.as_ref().is_some_and(|(_, surge)| share(surge, 1) > 0)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
        let by_generation = self.generation.is_some() && label(GENERATION_LABEL) == self.generation.as_ref();
        (!self.hash.is_empty() && label(REVISION_LABEL) == Some(&self.hash)) || by_generation
    }

    fn is_available(&self, pod: &Pod, now: Timestamp) -> bool {
        pods::is_available(pod, self.min_ready_seconds, now).is_ok()
    }
}

/// A share of nodes, rounded up.
fn share(value: &IntOrString, of: usize) -> usize {
    match value {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            text.trim_end_matches('%').parse::<usize>().map_or(0, |percent| (percent * of).div_ceil(100))
        }
    }
}

/// A set's pods by node. Those that have ended and are going do not count any more.
pub type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// Sorts pods by their nodes, the oldest of a node first, those that run there before those that only will.
pub fn by_node(owned: &[Arc<Pod>]) -> ByNode {
    let mut all = ByNode::new();
    for pod in owned.iter().filter(|pod| !(pods::has_ended(pod) && is_going(pod))) {
        if let Some(node) = node_of(pod) {
            all.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    let age = |pod: &Arc<Pod>| {
        let waits = pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none());
        let created = pod.metadata.creation_timestamp.as_ref().map(|Time(at)| *at);
        (waits, created, pod.metadata.name.clone())
    };
    all.values_mut().for_each(|pods| pods.sort_by_key(age));
    all
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that failed, with their nodes: to delete, but not too often.
    pub failed: Vec<(String, Arc<Pod>)>,
    /// Pods that ended though they should not: to delete.
    pub succeeded: Vec<Arc<Pod>>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Sees that each node has the pods it should have. `fits` holds every node.
pub fn place(terms: &Terms, fits: &HashMap<String, Fit>, pods: &ByNode, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut nodes: Vec<_> = fits.iter().collect();
    nodes.sort_by_key(|(node, _)| *node);
    for (node, fit) in nodes {
        match (fit, pods.get(node)) {
            (Fit::Runs, None) => plan.create.push(node.clone()),
            (Fit::Stays | Fit::Leaves, None) => {}
            (Fit::Leaves, Some(pods)) => {
                plan.delete.extend(pods.iter().filter(|pod| !is_going(pod)).cloned())
            }
            (Fit::Runs | Fit::Stays, Some(pods)) => place_on(terms, node, *fit, pods, now, &mut plan),
        }
    }
    for pod in pods.iter().filter(|(node, _)| !fits.contains_key(*node)).flat_map(|(_, pods)| pods) {
        // The node went before the pod came to it; those that did are the pod collector's.
        if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) && !is_going(pod) {
            plan.delete.push(pod.clone());
        }
    }
    plan
}

fn place_on(terms: &Terms, node: &str, fit: Fit, pods: &[Arc<Pod>], now: Timestamp, plan: &mut Plan) {
    let mut running = Vec::new();
    for pod in pods.iter().filter(|pod| !is_going(pod)) {
        match pods::phase(pod) {
            "Failed" => plan.failed.push((node.to_owned(), pod.clone())),
            "Succeeded" => plan.succeeded.push(pod.clone()),
            _ => running.push(pod),
        }
    }
    if !terms.allows_surge() {
        plan.delete.extend(running.into_iter().skip(1).cloned());
        return;
    }
    if running.len() <= 1 {
        if running.is_empty() && fit == Fit::Runs {
            plan.create.push(node.to_owned());
        }
        return;
    }
    let has_hash = |pod: &Pod| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)) == Some(&terms.hash)
    };
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| has_hash(pod));
    plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!pods::is_ready(old) || terms.is_available(new, now))
    {
        plan.delete.push((*old).clone());
    }
}

/// The next step of a rolling update, when every node has the pods it should have.
pub fn roll(terms: &Terms, fits: &HashMap<String, Fit>, pods: &ByNode, now: Timestamp) -> Plan {
    let runs = |node: &str| fits.get(node) == Some(&Fit::Runs);
    let wanted = fits.values().filter(|fit| **fit == Fit::Runs).count();
    let Some((unavailable, surge)) = terms.limits(wanted) else { return Plan::default() };
    let mut pods = pods.clone();
    for node in fits.keys().filter(|node| runs(node)) {
        pods.entry(node.clone()).or_default();
    }
    if surge == 0 {
        return replace(terms, &pods, unavailable, now);
    }
    let mut plan = Plan::default();
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
    for (node, pods) in &pods {
        let Some((new, old)) = pair(terms, pods) else {
            surging += 1;
            continue;
        };
        let is_available = |pod: &Arc<Pod>| terms.is_available(pod, now);
        available += usize::from(old.or(new).is_some_and(is_available));
        match (old, new) {
            (None, _) => {}
            (Some(old), None) => match (is_available(old), runs(node)) {
                (false, false) => plan.delete.push(old.clone()),
                (false, true) => plan.create.push(node.clone()),
                (true, false) => leaving.push(old.clone()),
                (true, true) => candidates.push(node.clone()),
            },
            (Some(_), Some(new)) if !is_available(new) => surging += 1,
            (Some(old), Some(_)) => plan.delete.push(old.clone()),
        }
    }
    plan.delete.extend(leaving.into_iter().take(available.saturating_sub(wanted)));
    plan.create.extend(candidates.into_iter().take(surge.saturating_sub(surging)));
    plan
}

fn replace(terms: &Terms, pods: &ByNode, limit: usize, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for pods in pods.values() {
        match pair(terms, pods) {
            None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
            Some((Some(new), None)) => unavailable += usize::from(!terms.is_available(new, now)),
            Some((None, Some(old))) if !terms.is_available(old, now) => {
                plan.delete.push(old.clone());
                unavailable += 1;
            }
            Some((None, Some(old))) => candidates.push(old.clone()),
        }
    }
    plan.delete.extend(candidates.into_iter().take(limit.saturating_sub(unavailable)));
    plan
}

type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);

/// The updated and the old pod of a node; none where there are more than one of either.
fn pair<'a>(terms: &Terms, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = (None, None);
    for pod in pods.iter().filter(|pod| !is_going(pod)) {
        let place = if terms.is_updated(pod) { &mut pair.0 } else { &mut pair.1 };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// The counts of a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub desired: i32,
    pub current: i32,
    pub misscheduled: i32,
    pub ready: i32,
    pub updated: i32,
    pub available: i32,
    pub unavailable: i32,
}

/// Counts nodes by their oldest pod; also when the next pod becomes available by time alone.
pub fn count(
    terms: &Terms,
    fits: &HashMap<String, Fit>,
    pods: &ByNode,
    now: Timestamp,
) -> (Counts, Option<Duration>) {
    let (mut counts, mut next) = (Counts::default(), None::<Duration>);
    for (node, fit) in fits {
        let pod = pods.get(node).and_then(|pods| pods.first());
        if *fit != Fit::Runs {
            counts.misscheduled += i32::from(pod.is_some());
            continue;
        }
        counts.desired += 1;
        let Some(pod) = pod else { continue };
        counts.current += 1;
        counts.updated += i32::from(terms.is_updated(pod));
        counts.ready += i32::from(pods::is_ready(pod));
        counts.available += i32::from(terms.is_available(pod, now));
    }
    for pod in pods.values().flatten() {
        if let Err(Some(left)) = pods::is_available(pod, terms.min_ready_seconds, now) {
            next = Some(next.map_or(left, |next| next.min(left)));
        }
    }
    counts.unavailable = counts.desired - counts.available;
    (counts, next)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn terms(rolling: Value) -> Terms {
        let strategy = if rolling == json!("OnDelete") {
            json!({ "type": "OnDelete" })
        } else {
            json!({ "type": "RollingUpdate", "rollingUpdate": rolling })
        };
        let set =
            json!({ "metadata": {}, "spec": { "selector": {}, "template": {}, "updateStrategy": strategy } });
        Terms::of(&serde_json::from_value(set).unwrap(), "new")
    }

    /// `a1old!`: node, number, revision; `!` unready, `x` going, `f` failed.
    fn pod(text: &str) -> Arc<Pod> {
        let revision = if text.contains("old") { "old" } else { "new" };
        let ready = if text.contains('!') { "False" } else { "True" };
        let phase = if text.contains('f') { "Failed" } else { "Running" };
        let going = text.contains('x').then_some("2026-01-01T00:00:00Z");
        let pod = json!({ "metadata": { "name": &text[..2], "deletionTimestamp": going, "labels": { REVISION_LABEL: revision } },
            "spec": { "nodeName": &text[..1], "containers": [] },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready }] } });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn fits() -> HashMap<String, Fit> {
        [("a", Fit::Runs), ("b", Fit::Runs), ("c", Fit::Runs), ("s", Fit::Stays), ("z", Fit::Leaves)]
            .map(|(node, fit)| (node.to_owned(), fit))
            .into()
    }

    fn told(plan: &Plan) -> String {
        let create = plan.create.iter().map(|node| format!("+{node}"));
        let delete = plan.delete.iter().map(|pod| format!("-{}", pod.metadata.name.as_ref().unwrap()));
        let failed = plan.failed.iter().map(|(node, _)| format!("!{node}"));
        create.chain(delete).chain(failed).collect::<Vec<_>>().join(" ")
    }

    fn check(
        act: impl Fn(&Terms, &HashMap<String, Fit>, &ByNode, Timestamp) -> Plan,
        rolling: Value,
        pods: &[&str],
        expected: &str,
    ) {
        let pods = by_node(&pods.iter().map(|text| pod(text)).collect::<Vec<_>>());
        let plan = act(&terms(rolling), &fits(), &pods, Timestamp::UNIX_EPOCH);
        assert_eq!(told(&plan), expected, "{:?}", pods.keys());
    }

    #[test]
    fn each_node_that_fits_has_one_pod() {
        check(place, json!({}), &[], "+a +b +c");
        check(place, json!({}), &["a1new", "b1old", "b2new", "c1newx", "s1new", "z1new"], "-b2 -z1");
        check(place, json!({}), &["a1newf", "b1new", "c1newfx"], "+c !a");
        let surge = || json!({ "maxSurge": 1, "maxUnavailable": 0 });
        check(place, surge(), &["a1old", "a2new!", "b1old", "b2new", "c1newx"], "+c -b1");
        check(place, surge(), &["a1old!", "a2new!", "b1new", "c1new"], "-a1");
    }

    #[test]
    fn updates_keep_to_the_limit() {
        let most = |most: Value| json!({ "maxUnavailable": most });
        check(roll, most(json!(1)), &["a1old", "b1old", "c1old"], "-a1");
        check(roll, most(json!("67%")), &["a1old", "b1old", "c1old"], "-a1 -b1 -c1");
        check(roll, most(json!(1)), &["a1new!", "b1old", "c1old"], "");
        check(roll, most(json!(1)), &["a1new", "b1old!", "c1old"], "-b1");
        check(roll, json!("OnDelete"), &["a1old", "b1old", "c1old"], "");
        let surge = || json!({ "maxSurge": 1, "maxUnavailable": 0 });
        check(roll, surge(), &["a1old", "b1old", "c1old"], "+a");
        check(roll, surge(), &["a1old", "a2new!", "b1old", "c1old"], "");
        check(roll, surge(), &["a1old", "a2new", "b1old", "c1old"], "+b -a1");
    }

    #[test]
    fn nodes_are_counted_by_their_pods() {
        let pods = by_node(&["a1new", "b1old!", "z1new"].map(pod));
        let (counts, _) = count(&terms(json!({})), &fits(), &pods, Timestamp::UNIX_EPOCH);
        let expected = Counts {
            desired: 3,
            current: 2,
            misscheduled: 1,
            ready: 1,
            updated: 1,
            available: 1,
            unavailable: 2,
        };
        assert_eq!(counts, expected);
    }
}
