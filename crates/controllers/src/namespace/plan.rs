//! What a namespace that is going away tells of what is left in it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What stands in the way of a namespace's end.
#[derive(Debug, Default)]
pub struct Remaining {
    /// Objects left by `resource.group`.
    pub objects: BTreeMap<String, usize>,
    /// Objects that a finalizer holds.
    pub held: BTreeMap<String, usize>,
    /// Why objects could not be deleted.
    pub failures: Vec<String>,
}

impl Remaining {
    /// Whether nothing is left.
    pub fn is_nothing(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }

    /// The conditions, in upstream's words. What has not changed keeps its time.
    pub fn conditions(&self, before: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
        let condition = |(kind, told): (&str, Told)| {
            let status = if told.holds { "True" } else { "False" };
            let since = before.iter().find(|old| old.type_ == kind && old.status == status);
            NamespaceCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                last_transition_time: since
                    .and_then(|old| old.last_transition_time.clone())
                    .or(Some(Time(now))),
                reason: Some(told.reason.to_owned()),
                message: Some(told.message),
            }
        };
        let all = [
            (
                "NamespaceDeletionDiscoveryFailure",
                Told::done("ResourcesDiscovered", "All resources successfully discovered"),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                Told::done("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            ),
            ("NamespaceDeletionContentFailure", self.failed()),
            ("NamespaceContentRemaining", self.left()),
            ("NamespaceFinalizersRemaining", self.finalizing()),
        ];
        all.into_iter().map(condition).collect()
    }

    fn failed(&self) -> Told {
        if self.failures.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization";
            return Told::done("ContentDeleted", message);
        }
        let (count, failures) = (self.failures.len(), self.failures.join(", "));
        Told::holds(
            "ContentDeletionFailed",
            format!("Failed to delete all resource types, {count} remaining: {failures}"),
        )
    }

    fn left(&self) -> Told {
        if self.objects.is_empty() {
            return Told::done("ContentRemoved", "All content successfully removed");
        }
        let left = counted(&self.objects, "has");
        Told::holds("SomeResourcesRemain", format!("Some resources are remaining: {left}"))
    }

    fn finalizing(&self) -> Told {
        if self.held.is_empty() {
            return Told::done("ContentHasNoFinalizers", "All content-preserving finalizers finished");
        }
        let held = counted(&self.held, "in");
        Told::holds(
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {held}"),
        )
    }
}

/// What a condition says.
struct Told {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Told {
    fn done(reason: &'static str, message: &str) -> Self {
        Self { holds: false, reason, message: message.to_owned() }
    }

    fn holds(reason: &'static str, message: String) -> Self {
        Self { holds: true, reason, message }
    }
}

fn counted(counts: &BTreeMap<String, usize>, word: &str) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name} {word} {count} resource instances")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_and_times_are_kept() {
        let now = Timestamp::from_second(100).expect("a time");
        let done = Remaining::default().conditions(&[], now);
        assert!(done.iter().all(|condition| condition.status == "False") && done.len() == 5);
        let remaining = Remaining {
            objects: BTreeMap::from([("pods.".to_owned(), 2), ("configmaps.".to_owned(), 1)]),
            held: BTreeMap::from([("example.com/hold".to_owned(), 1)]),
            failures: Vec::new(),
        };
        let later = Timestamp::from_second(200).expect("a time");
        let told = remaining.conditions(&done, later);
        let message = |kind: &str| {
            let condition = told.iter().find(|condition| condition.type_ == kind).expect("told");
            (
                condition.message.clone().unwrap_or_default(),
                condition.last_transition_time.clone().map(|Time(at)| at),
            )
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            (
                "Some resources are remaining: configmaps. has 1 resource instances, pods. has 2 resource instances".into(),
                Some(later)
            )
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining").0,
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert_eq!(message("NamespaceDeletionContentFailure").1, Some(now));
    }
}
