//! Requests and limits as cgroup values: shares, quota, memory, oom_score_adj; and the pod's QoS class. Pure.

use coxswain_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::containers::{self, Kind, spec};
use crate::quantities::{self, Resources};

/// Period of the CPU quota in microseconds.
pub const CPU_PERIOD: i64 = 100_000;

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container's requests are its limits.
    Guaranteed,
    /// Something is requested.
    Burstable,
    /// Nothing is.
    BestEffort,
}

/// The pod's class: the API server's word, or the rule.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let all: Vec<&Container> =
        spec(pod).containers.iter().chain(containers::init_containers(pod).map(|(_, c)| c)).collect();
    let amount = |c: &Container, name| {
        let resources = c.resources.as_ref();
        let milli = |q| quantities::milli(q);
        (quantities::request(resources, name).map(milli), quantities::limit(resources, name).map(milli))
    };
    let positive = |v: Option<i64>| v.is_some_and(|v| v > 0);
    let any = all.iter().any(|c| ["cpu", "memory"].iter().any(|n| positive(amount(c, n).0)));
    let full = |c: &&Container| {
        ["cpu", "memory"].iter().all(|n| {
            let (request, limit) = amount(c, n);
            positive(limit) && request == limit
        })
    };
    match (any, all.iter().all(full)) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// CPU shares of thousandths of a CPU.
pub fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(2, 262_144)
}

/// CPU quota of thousandths of a CPU, in microseconds a period.
pub fn quota(milli: i64) -> i64 {
    (milli * CPU_PERIOD / 1000).max(1000)
}

/// What one resource amounts to over the pod: app containers and sidecars together, or the hungriest init container.
pub fn pod_total(pod: &Pod, amount: impl Fn(&Container) -> i64) -> i64 {
    let apps: i64 = spec(pod).containers.iter().map(&amount).sum();
    let (mut sidecars, mut hungriest) = (0, 0);
    for (kind, container) in containers::init_containers(pod) {
        let own = amount(container);
        if kind == Kind::Sidecar {
            sidecars += own;
            hungriest = hungriest.max(sidecars);
        } else {
            hungriest = hungriest.max(sidecars + own);
        }
    }
    (apps + sidecars).max(hungriest)
}

fn overhead(pod: &Pod) -> &Resources {
    static NONE: Resources = Resources::new();
    spec(pod).overhead.as_ref().unwrap_or(&NONE)
}

/// What the pod requests of a resource, in thousandths for `cpu` and units otherwise; pod-level resources win.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    let read = |q: &Quantity| if name == "cpu" { quantities::milli(q) } else { quantities::units(q) };
    let own = quantities::request(spec(pod).resources.as_ref(), name).map(read);
    let total = own.unwrap_or_else(|| {
        pod_total(pod, |c| quantities::request(c.resources.as_ref(), name).map_or(0, read))
    });
    total + overhead(pod).get(name).map_or(0, read)
}

/// What the pod is limited to; `None` when a container has no limit.
pub fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let read = |q: &Quantity| if name == "cpu" { quantities::milli(q) } else { quantities::units(q) };
    let own = quantities::limit(spec(pod).resources.as_ref(), name).map(read);
    let of = |c: &Container| quantities::limit(c.resources.as_ref(), name).map(read).filter(|v| *v > 0);
    let bounded = spec(pod).containers.iter().chain(containers::init_containers(pod).map(|(_, c)| c));
    let total =
        own.or_else(|| bounded.map(of).all(|v| v.is_some()).then(|| pod_total(pod, |c| of(c).unwrap_or(0))));
    total.map(|total| total + overhead(pod).get(name).map_or(0, read))
}

/// The pod's own cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// Class, which is the cgroup above.
    pub qos: Qos,
    /// CPU shares.
    pub cpu_shares: i64,
    /// CPU quota in microseconds a period.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes.
    pub memory_bytes: Option<i64>,
}

/// The values of the pod's cgroup.
pub fn pod_cgroup(pod: &Pod) -> PodCgroup {
    let qos = qos(pod);
    PodCgroup {
        qos,
        cpu_shares: if qos == Qos::BestEffort { 2 } else { shares(pod_request(pod, "cpu")) },
        cpu_quota: pod_limit(pod, "cpu").map(quota),
        memory_bytes: pod_limit(pod, "memory"),
    }
}

/// A container's values; `node_memory` is the node's in bytes.
pub fn container(
    pod: &Pod,
    container: &Container,
    kind: Kind,
    node_memory: i64,
) -> v1::LinuxContainerResources {
    let resources = container.resources.as_ref();
    let cpu = quantities::request(resources, "cpu").map_or(0, quantities::milli);
    let cpu_limit = quantities::limit(resources, "cpu").map(quantities::milli).filter(|v| *v > 0);
    let memory_limit = quantities::limit(resources, "memory").map(quantities::units);
    v1::LinuxContainerResources {
        cpu_shares: shares(cpu),
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_limit.map_or(0, quota),
        memory_limit_in_bytes: memory_limit.unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, kind, node_memory),
        ..Default::default()
    }
}

fn oom_score_adj(pod: &Pod, container: &Container, kind: Kind, node_memory: i64) -> i64 {
    if spec(pod).priority.is_some_and(|p| p >= 2_000_001_000) {
        return -997;
    }
    let memory =
        |c: &Container| quantities::request(c.resources.as_ref(), "memory").map_or(0, quantities::units);
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = |bytes: i64| i64::try_from(1000 * i128::from(bytes) / i128::from(node_memory.max(1)));
            let mut score = 1000 - share(memory(container)).unwrap_or(1000);
            if kind == Kind::Sidecar {
                // A sidecar is not to be killed before the containers it serves (KEP-753).
                let apps = spec(pod).containers.iter().map(memory).max().unwrap_or(0);
                score = score.min(1000 - share(apps).unwrap_or(1000));
            }
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "spec": { "containers": containers } })).expect("a pod")
    }

    #[test]
    fn classes_and_values_follow_requests_and_limits() {
        let best = pod(json!([{ "name": "a" }]));
        let all = json!({ "cpu": "500m", "memory": "128Mi" });
        let guaranteed = pod(json!([{ "name": "a", "resources": { "limits": all, "requests": all } }]));
        let burstable =
            pod(json!([{ "name": "a", "resources": { "requests": { "memory": "1Gi" } } }, { "name": "b" }]));
        assert_eq!(
            (qos(&best), qos(&guaranteed), qos(&burstable)),
            (Qos::BestEffort, Qos::Guaranteed, Qos::Burstable)
        );
        assert_eq!(
            pod_cgroup(&guaranteed),
            PodCgroup {
                qos: Qos::Guaranteed,
                cpu_shares: 512,
                cpu_quota: Some(50_000),
                memory_bytes: Some(128 << 20),
            }
        );
        assert_eq!(pod_cgroup(&burstable).memory_bytes, None);
        let first = &spec(&burstable).containers[0];
        let values = container(&burstable, first, Kind::App, 4 << 30);
        assert_eq!((values.cpu_shares, values.cpu_quota, values.oom_score_adj), (2, 0, 750));
    }
}
