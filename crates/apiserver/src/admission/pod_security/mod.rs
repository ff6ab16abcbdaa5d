//! PodSecurity: the labels of a namespace say which of the Pod Security Standards its pods must keep, and which they are
//! warned of. <https://kubernetes.io/docs/concepts/security/pod-security-admission/>

mod checks;

use coxswain_meta::json::Value;
use coxswain_meta::{ErrorList, FieldError, Path};

use checks::{BASELINE, RESTRICTED, Subject};

/// The newest version whose policy differs from the one before it.
const NEWEST_MINOR: u32 = 36;
const LABEL: &str = "pod-security.kubernetes.io/";
const LEVELS: [&str; 3] = ["privileged", "baseline", "restricted"];

/// How much is forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Privileged,
    /// What is known to lead out of the container.
    Baseline,
    /// All that a hardened pod does without.
    Restricted,
}

/// A level in one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    level: Level,
    /// None is the latest.
    minor: Option<u32>,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What is wrong with a namespace's labels.
pub fn label_faults(namespace: &Value) -> ErrorList {
    let labels = &namespace["metadata"]["labels"];
    let path = Path::new("metadata").child("labels");
    let mut faults = ErrorList::new();
    for mode in ["enforce", "audit", "warn"] {
        let (level, version) = (format!("{LABEL}{mode}"), format!("{LABEL}{mode}-version"));
        if let Some(said) = labels[&level].as_str().filter(|said| !LEVELS.contains(said)) {
            let rule = format!("must be one of {}", LEVELS.join(", "));
            faults.push(FieldError::invalid(&path.key(&level), said, rule));
        }
        let minor = |said: &str| said.strip_prefix("v1.").is_some_and(|minor| minor.parse::<u32>().is_ok());
        if let Some(said) = labels[&version].as_str().filter(|said| *said != "latest" && !minor(said)) {
            faults.push(FieldError::invalid(&path.key(&version), said, "must be \"latest\" or \"v1.x\""));
        }
    }
    faults
}

impl Policy {
    /// What a namespace's labels say for `enforce` or `warn`; nothing or nonsense is the privileged level, as upstream's
    /// defaults have it, except that a level that nobody knows is the restricted one.
    fn of(namespace: &Value, mode: &str) -> Self {
        let labels = &namespace["metadata"]["labels"];
        let level = match labels[format!("{LABEL}{mode}")].as_str() {
            None | Some("privileged") => Level::Privileged,
            Some("baseline") => Level::Baseline,
            Some(_) => Level::Restricted,
        };
        let version = labels[format!("{LABEL}{mode}-version")].as_str();
        let minor = version.and_then(|version| version.strip_prefix("v1.")?.parse().ok());
        Self { level, minor }
    }

    /// What a pod does that the policy forbids, in words; none where it keeps the policy.
    fn violations(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let minor = self.minor.unwrap_or(NEWEST_MINOR).min(NEWEST_MINOR);
        let pod = Subject { metadata, spec, minor };
        let restricted = self.level == Level::Restricted;
        let baseline = BASELINE
            .iter()
            .filter(|check| self.level != Level::Privileged && !(restricted && (check.1)(minor)))
            .filter_map(|check| (check.0)(&pod));
        let added = RESTRICTED.iter().filter(|_| restricted).filter_map(|check| check(&pod));
        let found: Vec<String> =
            baseline.chain(added).map(|found| format!("{} ({})", found.reason, found.detail)).collect();
        (!found.is_empty()).then(|| found.join(", "))
    }
}

/// What is said of a pod in a namespace: why it is refused, or what its author is warned of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The reason of the refusal.
    pub refused: Option<String>,
    /// A warning.
    pub warning: Option<String>,
}

/// Whether a namespace names any standard.
pub fn has_standards(namespace: &Value) -> bool {
    let labels = namespace["metadata"]["labels"].as_object();
    labels.is_some_and(|labels| labels.keys().any(|label| label.starts_with(LABEL)))
}

/// Judges a pod, or with `enforce` unset the template of pods to come, whose author can only be warned.
pub fn judge(namespace: &Value, metadata: &Value, spec: &Value, enforce: bool) -> Verdict {
    let judged = |mode: &str| {
        let policy = Policy::of(namespace, mode);
        Some((policy, policy.violations(metadata, spec)?))
    };
    if enforce && let Some((policy, found)) = judged("enforce") {
        return Verdict {
            refused: Some(format!("violates PodSecurity \"{policy}\": {found}")),
            warning: None,
        };
    }
    let warning =
        judged("warn").map(|(policy, found)| format!("would violate PodSecurity \"{policy}\": {found}"));
    Verdict { refused: None, warning }
}

/// Whether a change of a pod can change what is said of it: anything but metadata and images that only move on.
pub fn is_significant(new: &Value, old: &Value) -> bool {
    new["spec"] != old["spec"] || annotations_that_matter(new) != annotations_that_matter(old)
}

fn annotations_that_matter(pod: &Value) -> Vec<(&str, &Value)> {
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    annotations
        .filter(|(key, _)| key.contains("apparmor.security") || key.contains("seccomp.security"))
        .collect()
}

/// The metadata and spec of the pods that an object of a kind makes.
pub fn template<'a>(kind: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match kind {
        "PodTemplate" => &object["template"],
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
        "ReplicationController" | "ReplicaSet" | "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
            &object["spec"]["template"]
        }
        _ => return None,
    };
    template.is_object().then(|| (&template["metadata"], &template["spec"]))
}

#[cfg(test)]
mod tests;
