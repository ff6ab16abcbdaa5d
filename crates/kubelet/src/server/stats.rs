//! `/stats/summary`: what node and pods use, as metrics-server and `kubectl describe` readers expect it.

use coxswain_cri::v1;
use http::Response;
use serde_json::{Value, json};

use super::{Body, Refusal};
use crate::kubelet::Kubelet;
use crate::model::{self, PodId};

fn number(value: Option<&v1::UInt64Value>) -> Value {
    value.map_or(Value::Null, |value| value.value.into())
}

fn cpu(usage: Option<&v1::CpuUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": model::seconds(model::time(usage.timestamp)),
        "usageNanoCores": number(usage.usage_nano_cores.as_ref()),
        "usageCoreNanoSeconds": number(usage.usage_core_nano_seconds.as_ref()),
    })
}

fn memory(usage: Option<&v1::MemoryUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": model::seconds(model::time(usage.timestamp)),
        "availableBytes": number(usage.available_bytes.as_ref()),
        "usageBytes": number(usage.usage_bytes.as_ref()),
        "workingSetBytes": number(usage.working_set_bytes.as_ref()),
        "rssBytes": number(usage.rss_bytes.as_ref()),
        "pageFaults": number(usage.page_faults.as_ref()),
        "majorPageFaults": number(usage.major_page_faults.as_ref()),
    })
}

fn container(stats: &v1::ContainerStats) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
    json!({ "name": name, "cpu": cpu(stats.cpu.as_ref()), "memory": memory(stats.memory.as_ref()) })
}

fn network(stats: &v1::LinuxPodSandboxStats) -> Value {
    let Some(network) = &stats.network else { return Value::Null };
    let interface = |i: &v1::NetworkInterfaceUsage| {
        json!({
            "name": i.name,
            "rxBytes": number(i.rx_bytes.as_ref()),
            "rxErrors": number(i.rx_errors.as_ref()),
            "txBytes": number(i.tx_bytes.as_ref()),
            "txErrors": number(i.tx_errors.as_ref()),
        })
    };
    let mut value = network.default_interface.as_ref().map_or(json!({}), interface);
    value["time"] = json!(model::seconds(model::time(network.timestamp)));
    value["interfaces"] =
        network.interfaces.iter().chain(&network.default_interface).map(interface).collect();
    value
}

fn pod(stats: &v1::PodSandboxStats) -> Option<Value> {
    let id = PodId::of_labels(&stats.attributes.as_ref()?.labels)?;
    let linux = stats.linux.as_ref()?;
    Some(json!({
        "podRef": { "name": id.name, "namespace": id.namespace, "uid": id.uid },
        "containers": linux.containers.iter().map(container).collect::<Vec<_>>(),
        "cpu": cpu(linux.cpu.as_ref()),
        "memory": memory(linux.memory.as_ref()),
        "network": network(linux),
        "process_stats": { "process_count": linux.process.as_ref().and_then(|p| p.process_count.as_ref()).map(|c| c.value) },
    }))
}

/// Statistics of all pods.
pub async fn all(kubelet: &Kubelet) -> Result<Vec<v1::PodSandboxStats>, Refusal> {
    kubelet.cri.sandbox_stats().await.map_err(|error| Refusal::internal(crate::cri::text(&error)))
}

/// Nanoseconds of CPU time the node has used since it started.
pub fn node_cpu_nanoseconds() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; a tick is 10 ms.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum();
    busy.saturating_mul(10_000_000)
}

/// Bytes of memory the node uses.
pub fn node_memory_bytes() -> (u64, u64) {
    let kib = crate::node::meminfo_kib;
    let (total, available) = (kib("MemTotal"), kib("MemAvailable"));
    (total.saturating_sub(available) * 1024, available * 1024)
}

/// The summary.
pub async fn summary(kubelet: &Kubelet) -> Result<Response<Body>, Refusal> {
    let pods: Vec<Value> = all(kubelet).await?.iter().filter_map(pod).collect();
    let now = model::seconds(jiff::Timestamp::now());
    let (used, available) = node_memory_bytes();
    super::json(&json!({
        "node": {
            "nodeName": kubelet.config.node_name,
            "cpu": { "time": now, "usageCoreNanoSeconds": node_cpu_nanoseconds() },
            "memory": { "time": now, "availableBytes": available, "usageBytes": used, "workingSetBytes": used },
        },
        "pods": pods,
    }))
}
