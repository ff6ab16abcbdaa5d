//! Metrics in Prometheus' text format: the kubelet's own, and those of pods and containers.

use std::fmt::Write;

use coxswain_cri::v1;
use http::Response;

use super::{Body, Refusal, answer, stats};
use crate::kubelet::Kubelet;
use crate::model::PodId;

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, type_: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {type_}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", quoted(v))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn answer(self) -> Response<Body> {
        answer(http::StatusCode::OK, TYPE, self.0)
    }
}

/// The kubelet's own metrics.
pub fn own(kubelet: &Kubelet) -> Response<Body> {
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    page.sample("kubelet_node_name", &[("node", &kubelet.config.node_name)], 1.0);
    let pods = kubelet.table.pods();
    let phase = |pod: &k8s_openapi::api::core::v1::Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
    let running = pods.iter().filter(|pod| phase(pod).as_deref() == Some("Running")).count();
    page.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    page.sample("kubelet_running_pods", &[], running as f64);
    page.family(
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run.",
    );
    page.sample("kubelet_desired_pods", &[("static", "")], pods.len() as f64);
    page.answer()
}

struct Used<'a> {
    id: PodId,
    container: Option<&'a str>,
    cpu_seconds: Option<f64>,
    memory_bytes: Option<f64>,
}

fn amounts(cpu: Option<&v1::CpuUsage>, memory: Option<&v1::MemoryUsage>) -> (Option<f64>, Option<f64>) {
    let seconds = cpu.and_then(|c| c.usage_core_nano_seconds.as_ref()).map(|n| n.value as f64 / 1e9);
    (seconds, memory.and_then(|m| m.working_set_bytes.as_ref()).map(|n| n.value as f64))
}

fn used(stats: &[v1::PodSandboxStats]) -> Vec<Used<'_>> {
    let mut all = Vec::new();
    for pod in stats {
        let Some(id) = pod.attributes.as_ref().and_then(|a| PodId::of_labels(&a.labels)) else { continue };
        let Some(linux) = &pod.linux else { continue };
        let (cpu_seconds, memory_bytes) = amounts(linux.cpu.as_ref(), linux.memory.as_ref());
        all.push(Used { id: id.clone(), container: None, cpu_seconds, memory_bytes });
        for container in &linux.containers {
            let metadata = container.attributes.as_ref().and_then(|a| a.metadata.as_ref());
            let (cpu_seconds, memory_bytes) = amounts(container.cpu.as_ref(), container.memory.as_ref());
            let name = metadata.map(|m| m.name.as_str());
            all.push(Used { id: id.clone(), container: name.or(Some("")), cpu_seconds, memory_bytes });
        }
    }
    all
}

type Pick = fn(&Used<'_>) -> Option<f64>;
const CPU: Pick = |used| used.cpu_seconds;
const MEMORY: Pick = |used| used.memory_bytes;

fn write_used(
    page: &mut Page,
    all: &[Used<'_>],
    containers: bool,
    name: &str,
    type_: &str,
    help: &str,
    pick: Pick,
) {
    page.family(name, type_, help);
    for used in all.iter().filter(|used| used.container.is_some() == containers) {
        let Some(value) = pick(used) else { continue };
        let mut labels = vec![("namespace", used.id.namespace.as_str()), ("pod", used.id.name.as_str())];
        labels.extend(used.container.map(|name| ("container", name)));
        page.sample(name, &labels, value);
    }
}

/// What metrics-server scrapes.
pub async fn resource(kubelet: &Kubelet) -> Result<Response<Body>, Refusal> {
    let stats = stats::all(kubelet).await?;
    let all = used(&stats);
    let mut page = Page::default();
    let cpu = "Cumulative cpu time consumed in core-seconds";
    let memory = "Current working set in bytes";
    write_used(&mut page, &all, true, "container_cpu_usage_seconds_total", "counter", cpu, CPU);
    write_used(&mut page, &all, true, "container_memory_working_set_bytes", "gauge", memory, MEMORY);
    write_used(&mut page, &all, false, "pod_cpu_usage_seconds_total", "counter", cpu, CPU);
    write_used(&mut page, &all, false, "pod_memory_working_set_bytes", "gauge", memory, MEMORY);
    page.family("node_cpu_usage_seconds_total", "counter", cpu);
    page.sample("node_cpu_usage_seconds_total", &[], stats::node_cpu_nanoseconds() as f64 / 1e9);
    page.family("node_memory_working_set_bytes", "gauge", memory);
    page.sample("node_memory_working_set_bytes", &[], stats::node_memory_bytes().0 as f64);
    page.family("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics");
    page.sample("resource_scrape_error", &[], 0.0);
    Ok(page.answer())
}

/// Containers under the names dashboards know from cAdvisor.
pub async fn cadvisor(kubelet: &Kubelet) -> Result<Response<Body>, Refusal> {
    let stats = stats::all(kubelet).await?;
    let all = used(&stats);
    let mut page = Page::default();
    let (cpu, memory) = ("Cumulative cpu time consumed in seconds.", "Current working set in bytes.");
    write_used(&mut page, &all, true, "container_cpu_usage_seconds_total", "counter", cpu, CPU);
    write_used(&mut page, &all, true, "container_memory_working_set_bytes", "gauge", memory, MEMORY);
    Ok(page.answer())
}
