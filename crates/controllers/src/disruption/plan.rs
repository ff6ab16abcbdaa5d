//! What a budget allows, from the pods it selects and the scale of their controllers. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::pods::is_ready;

/// A pod that was to be evicted and is still there after this time counts again.
const DISRUPTION_LASTS: SignedDuration = SignedDuration::from_secs(120);

/// The share of a whole that a budget names, rounded up.
fn share(of: &IntOrString, whole: i32) -> i32 {
    match of {
        IntOrString::Int(count) => *count,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(whole) + 99) / 100).unwrap_or(i32::MAX)
        }
    }
}

/// How many pods there should be, and how many of them healthy. `scale` is what the controllers of the pods ask for.
pub fn expected(spec: &PodDisruptionBudgetSpec, pods: usize, scale: i32) -> (i32, i32) {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - share(most, scale)).max(0)),
        (None, Some(IntOrString::Int(least))) => (i32::try_from(pods).unwrap_or(i32::MAX), *least),
        (None, Some(least)) => (scale, share(least, scale)),
        (None, None) => (i32::try_from(pods).unwrap_or(i32::MAX), 1),
    }
}

/// The status of a budget, and when it has to be looked at again by itself.
pub fn status(
    old: Option<&PodDisruptionBudgetStatus>,
    generation: Option<i64>,
    (expected_pods, desired_healthy): (i32, i32),
    pods: &[&Pod],
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let disrupted = old.and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let still = |name: &str, Time(at): &Time| {
        let there =
            pods.iter().any(|pod| pod.name_any() == name && pod.metadata.deletion_timestamp.is_none());
        there && now.duration_since(*at) < DISRUPTION_LASTS
    };
    let disrupted: BTreeMap<String, Time> =
        disrupted.into_iter().filter(|(name, at)| still(name, at)).collect();
    let healthy = pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(&pod.name_any()) && is_ready(pod)
    });
    let current_healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let disruptions_allowed = if expected_pods > 0 { (current_healthy - desired_healthy).max(0) } else { 0 };
    let again = disrupted.values().map(|Time(at)| DISRUPTION_LASTS - now.duration_since(*at)).min();
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions(old, generation, disruptions_allowed > 0, now)),
        current_healthy: Some(current_healthy),
        desired_healthy: Some(desired_healthy),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(disruptions_allowed),
        expected_pods: Some(expected_pods),
        observed_generation: generation,
    };
    (status, again.map(SignedDuration::unsigned_abs))
}

fn conditions(
    old: Option<&PodDisruptionBudgetStatus>,
    generation: Option<i64>,
    allowed: bool,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (status, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let kept = conditions.iter().position(|condition| condition.type_ == "DisruptionAllowed");
    let since = kept.map(|at| conditions.remove(at)).filter(|condition| condition.status == status);
    conditions.push(Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: String::new(),
        last_transition_time: since.map_or(Time(now), |condition| condition.last_transition_time),
        observed_generation: generation,
    });
    conditions
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodDisruptionBudgetSpec {
        serde_json::from_value(value).expect("a spec")
    }

    fn pod(name: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .expect("a pod")
    }

    #[test]
    fn shares_round_up() {
        assert_eq!(expected(&spec(json!({"maxUnavailable": "30%"})), 7, 10), (10, 7));
        assert_eq!(expected(&spec(json!({"maxUnavailable": 20})), 7, 10), (10, 0));
        assert_eq!(expected(&spec(json!({"minAvailable": "25%"})), 7, 10), (10, 3));
        assert_eq!(expected(&spec(json!({"minAvailable": 2})), 7, 10), (7, 2));
    }

    #[test]
    fn evicted_pods_count_as_gone_for_a_while() {
        let (a, b, c) = (pod("a", "True"), pod("b", "True"), pod("c", "False"));
        let pods = [&a, &b, &c];
        let now = Timestamp::from_second(1_000).expect("a time");
        let (status, again) = super::status(None, Some(3), (3, 1), &pods, now);
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(2), Some(1)));
        assert_eq!((status.observed_generation, again), (Some(3), None));
        let disrupted = BTreeMap::from([("a".to_owned(), Time(now)), ("gone".to_owned(), Time(now))]);
        let old = PodDisruptionBudgetStatus { disrupted_pods: Some(disrupted), ..status };
        let (status, again) = super::status(Some(&old), Some(3), (3, 1), &pods, now);
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(1), Some(0)));
        assert_eq!(
            status.disrupted_pods.map(|pods| pods.into_keys().collect::<Vec<_>>()),
            Some(vec!["a".into()])
        );
        assert_eq!(again, Some(Duration::from_secs(120)));
        let condition = &status.conditions.expect("a condition")[0];
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "InsufficientPods"));
    }
}
