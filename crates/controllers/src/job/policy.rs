//! The two policies of a job: what the failure of a pod means, and when enough has succeeded.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicy,
};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::Indexes;

/// What the failure of a pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It counts towards the back-off limits.
    Counts,
    /// It does not.
    Ignored,
    /// The pod's index has failed.
    FailsIndex,
    /// The job has failed, with this message.
    FailsJob(String),
}

impl Meaning {
    /// Whether the failure counts towards the limits.
    pub fn counts(&self) -> bool {
        *self != Self::Ignored
    }
}

/// What a policy makes of a failed pod.
pub fn meaning(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Meaning {
    for (at, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Meaning::Ignored,
            "FailIndex" => Meaning::FailsIndex,
            "FailJob" => Meaning::FailsJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Meaning::Counts,
        };
    }
    Meaning::Counts
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let of = |text: Option<&String>| text.cloned().unwrap_or_default();
    let pod_name = format!("{}/{}", of(pod.metadata.namespace.as_ref()), of(pod.metadata.name.as_ref()));
    if let Some(codes) = &rule.on_exit_codes {
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let mut ended = containers.filter_map(|container| {
            Some((container.name.as_str(), container.state.as_ref()?.terminated.as_ref()?.exit_code))
        });
        let (container, code) = ended.find(|(name, code)| is_code(codes, name, *code))?;
        return Some(format!("Container {container} for pod {pod_name} failed with exit code {code}"));
    }
    let patterns = rule.on_pod_conditions.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|condition| {
        patterns.iter().any(|pattern| {
            pattern.type_ == condition.type_
                && pattern.status.as_deref().unwrap_or("True") == condition.status
        })
    })?;
    Some(format!("Pod {pod_name} has condition {}", condition.type_))
}

fn is_code(codes: &PodFailurePolicyOnExitCodesRequirement, container: &str, code: i32) -> bool {
    let named = codes.container_name.as_deref().is_none_or(|name| name == container);
    let matched = match codes.operator.as_str() {
        "In" => codes.values.contains(&code),
        "NotIn" => !codes.values.contains(&code),
        _ => false,
    };
    named && code != 0 && matched
}

/// The message of the first rule that is met.
pub fn success(policy: Option<&SuccessPolicy>, completions: u32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let met = policy?.rules.iter().position(|rule| {
        let enough = |count: u32| {
            rule.succeeded_count
                .and_then(|wanted| u32::try_from(wanted).ok())
                .is_some_and(|wanted| count >= wanted)
        };
        match &rule.succeeded_indexes {
            Some(text) => {
                let wanted = Indexes::parse(text, completions);
                let have = wanted.shared(succeeded);
                !wanted.is_empty() && (have == wanted.total() || enough(have))
            }
            None => enough(succeeded.total()),
        }
    });
    met.map(|at| format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({ "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            { "action": "FailJob", "onExitCodes": { "containerName": "c", "operator": "In", "values": [42] } },
            { "action": "FailIndex", "onExitCodes": { "operator": "NotIn", "values": [1] } }] }))
        .unwrap();
        let pod = |code: i32, disrupted: bool| -> Pod {
            let conditions =
                if disrupted { json!([{ "type": "DisruptionTarget", "status": "True" }]) } else { json!([]) };
            serde_json::from_value(json!({ "metadata": { "name": "p", "namespace": "n" }, "status": { "conditions": conditions,
                "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "terminated": { "exitCode": code } } }] } }))
            .unwrap()
        };
        let meaning = |code, disrupted| meaning(Some(&policy), &pod(code, disrupted));
        assert_eq!(meaning(42, true), Meaning::Ignored);
        let message = "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(meaning(42, false), Meaning::FailsJob(message.into()));
        assert_eq!(meaning(7, false), Meaning::FailsIndex);
        assert_eq!(meaning(1, false), Meaning::Counts);
        assert_eq!(meaning(0, false), Meaning::Counts, "an exit without failure matches nothing");
    }

    #[test]
    fn success_is_a_matter_of_indexes_or_of_their_number() {
        let policy = |rules: serde_json::Value| -> SuccessPolicy {
            serde_json::from_value(json!({ "rules": rules })).unwrap()
        };
        let met = |rules, succeeded| success(Some(&policy(rules)), 10, &Indexes::parse(succeeded, 10));
        let all = json!([{ "succeededIndexes": "0,2-4" }]);
        assert_eq!(met(all.clone(), "0-3"), None);
        assert_eq!(met(all, "0-4").as_deref(), Some("Matched rules at index 0"));
        let some = json!([{ "succeededCount": 5 }, { "succeededIndexes": "0,2-4", "succeededCount": 2 }]);
        assert_eq!(met(some, "1,3,4").as_deref(), Some("Matched rules at index 1"));
        assert_eq!(success(None, 10, &Indexes::parse("0-9", 10)), None);
    }
}
