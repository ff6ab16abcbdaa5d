//! The runtime's configuration of a pod's sandbox.

use coxswain_cri::v1;
use k8s_openapi::api::core::v1::Pod;

use super::{container, dns, resources, security};
use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::pod::containers::{host_network, spec};

/// The configuration of a pod's sandbox.
pub fn config(kubelet: &Kubelet, pod: &Pod, attempt: u32) -> v1::PodSandboxConfig {
    let id = PodId::of(pod);
    let node = dns::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let resolver = dns::resolver(&kubelet.config, pod, node);
    let cgroup = resources::pod_cgroup(pod);
    let own = pod.metadata.labels.clone().unwrap_or_default();
    let sysctls = spec(pod).security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: id.name.clone(),
            uid: id.uid.clone(),
            namespace: id.namespace.clone(),
            attempt,
        }),
        hostname: dns::visible_hostname(&kubelet.config, pod),
        log_directory: kubelet.dirs.logs(&id).to_string_lossy().into_owned(),
        dns_config: Some(v1::DnsConfig {
            servers: resolver.servers,
            searches: resolver.searches,
            options: resolver.options,
        }),
        port_mappings: ports(pod),
        labels: own.into_iter().chain(id.labels()).collect(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: kubelet.cgroups.parent(&id.uid, cgroup.qos),
            security_context: Some(security::of_sandbox(pod, &container::seccomp_root(kubelet))),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            overhead: None,
            resources: Some(v1::LinuxContainerResources {
                cpu_shares: cgroup.cpu_shares,
                cpu_period: resources::CPU_PERIOD,
                cpu_quota: cgroup.cpu_quota.unwrap_or(0),
                memory_limit_in_bytes: cgroup.memory_bytes.unwrap_or(0),
                ..Default::default()
            }),
        }),
    }
}

fn ports(pod: &Pod) -> Vec<v1::PortMapping> {
    if host_network(pod) {
        return Vec::new();
    }
    let init = spec(pod).init_containers.iter().flatten();
    let ports = spec(pod).containers.iter().chain(init).flat_map(|c| c.ports.iter().flatten());
    ports
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
