//! What containers and pods use, read from their cgroups, and limits written to them.

use std::io;
use std::path::Path;

use coxswain_cri::v1::{
    self, ContainerStats, CpuUsage, FilesystemUsage, LinuxContainerResources, MemoryUsage,
    NetworkInterfaceUsage, NetworkUsage, UInt64Value,
};

use crate::cgroup::{self, Layout};
use crate::container::Container;
use crate::files;
use crate::sandbox::Sandbox;

/// A cgroup's usage at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    cpu_nanos: u64,
    memory_bytes: u64,
    inactive_file_bytes: u64,
    rss_bytes: u64,
    /// `None` without a limit.
    limit_bytes: Option<u64>,
    page_faults: u64,
    major_page_faults: u64,
    processes: u64,
}

/// Limits at or above this are the kernel's way of writing "none" (cgroup v1).
const NO_LIMIT_BYTES: u64 = 1 << 62;

fn read(cgroup: &str) -> Usage {
    let text = |controller: &str, file: &str| {
        std::fs::read_to_string(cgroup::controller_dir(controller, cgroup).join(file)).unwrap_or_default()
    };
    let number = |controller: &str, file: &str| text(controller, file).trim().parse::<u64>().ok();
    let stat = text("memory", "memory.stat");
    let field = |name: &str| cgroup::field(&stat, name).unwrap_or(0);
    match cgroup::layout() {
        Layout::Unified => Usage {
            cpu_nanos: cgroup::field(&text("", "cpu.stat"), "usage_usec").unwrap_or(0) * 1000,
            memory_bytes: number("", "memory.current").unwrap_or(0),
            inactive_file_bytes: field("inactive_file"),
            rss_bytes: field("anon"),
            limit_bytes: number("", "memory.max"),
            page_faults: field("pgfault"),
            major_page_faults: field("pgmajfault"),
            processes: number("", "pids.current").unwrap_or(0),
        },
        Layout::Split => Usage {
            cpu_nanos: number("cpuacct", "cpuacct.usage").unwrap_or(0),
            memory_bytes: number("memory", "memory.usage_in_bytes").unwrap_or(0),
            inactive_file_bytes: field("total_inactive_file"),
            rss_bytes: field("total_rss"),
            limit_bytes: number("memory", "memory.limit_in_bytes").filter(|&limit| limit < NO_LIMIT_BYTES),
            page_faults: field("total_pgfault"),
            major_page_faults: field("total_pgmajfault"),
            processes: number("pids", "pids.current").unwrap_or(0),
        },
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Usage {
    fn cpu(&self, timestamp: i64) -> CpuUsage {
        CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(self.cpu_nanos),
            usage_nano_cores: None,
            psi: None,
        }
    }

    fn memory(&self, timestamp: i64) -> MemoryUsage {
        let working_set = self.memory_bytes.saturating_sub(self.inactive_file_bytes);
        MemoryUsage {
            timestamp,
            working_set_bytes: value(working_set),
            available_bytes: self.limit_bytes.and_then(|limit| value(limit.saturating_sub(working_set))),
            usage_bytes: value(self.memory_bytes),
            rss_bytes: value(self.rss_bytes),
            page_faults: value(self.page_faults),
            major_page_faults: value(self.major_page_faults),
            psi: None,
        }
    }
}

/// One container's statistics. Blocks: it walks what the container wrote.
pub(crate) fn container(container: &Container) -> ContainerStats {
    let usage = read(&container.record.cgroup);
    let timestamp = files::now_nanos();
    let snapshot = container.snapshot();
    let (used_bytes, inodes) = disk_usage(snapshot.upper());
    ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.clone(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: Some(usage.cpu(timestamp)),
        memory: Some(usage.memory(timestamp)),
        writable_layer: Some(FilesystemUsage {
            timestamp,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: snapshot.upper().display().to_string() }),
            used_bytes: value(used_bytes),
            inodes_used: value(inodes),
        }),
        swap: None,
        io: None,
    }
}

/// A pod's statistics: those of the cgroup above its containers, its network, and its containers'.
pub(crate) fn sandbox(sandbox: &Sandbox, containers: Vec<ContainerStats>) -> v1::PodSandboxStats {
    let timestamp = files::now_nanos();
    let linux = sandbox.config.linux.clone().unwrap_or_default();
    let usage = if linux.cgroup_parent.is_empty() { Usage::default() } else { read(&linux.cgroup_parent) };
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(usage.cpu(timestamp)),
            memory: Some(usage.memory(timestamp)),
            network: sandbox.has_network().then(|| network(sandbox.holder(), timestamp)),
            process: Some(v1::ProcessUsage { timestamp, process_count: value(usage.processes) }),
            containers,
            io: None,
        }),
    }
}

fn network(holder: i32, timestamp: i64) -> NetworkUsage {
    let text = std::fs::read_to_string(format!("/proc/{holder}/net/dev")).unwrap_or_default();
    let mut interfaces: Vec<_> = text.lines().filter_map(interface).filter(|i| i.name != "lo").collect();
    let main = interfaces.iter().position(|interface| interface.name == "eth0").unwrap_or(0);
    let default_interface = (main < interfaces.len()).then(|| interfaces.remove(main));
    NetworkUsage { timestamp, default_interface, interfaces }
}

/// A line of `/proc/net/dev`: name, eight receive counters, eight send counters.
fn interface(line: &str) -> Option<NetworkInterfaceUsage> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some(NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: value(*counters.first()?),
        rx_errors: value(*counters.get(2)?),
        tx_bytes: value(*counters.get(8)?),
        tx_errors: value(*counters.get(10)?),
    })
}

/// Bytes on disk and inodes below `dir`.
fn disk_usage(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        bytes += metadata.blocks() * 512;
        inodes += 1;
        if metadata.is_dir() {
            pending.extend(files::entries(&path));
        }
    }
    (bytes, inodes)
}

/// Writes new limits to a running container's cgroup. Zero and empty leave what is.
pub(crate) fn apply_limits(cgroup: &str, wanted: &LinuxContainerResources) -> io::Result<()> {
    for (controller, file, value) in limit_writes(wanted, cgroup::layout()) {
        match cgroup::write(controller, cgroup, &file, &value) {
            // A host without swap accounting has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.contains("memsw") => {}
            other => other?,
        }
    }
    Ok(())
}

/// Which files get which values, in the order of writing.
fn limit_writes(wanted: &LinuxContainerResources, layout: Layout) -> Vec<(&'static str, String, String)> {
    let mut writes = Vec::new();
    let mut add = |controller, file: &str, value: String| writes.push((controller, file.to_owned(), value));
    let period = if wanted.cpu_period == 0 { 100_000 } else { wanted.cpu_period };
    match layout {
        Layout::Split => {
            for (controller, file, value) in [
                ("cpu", "cpu.shares", wanted.cpu_shares),
                ("cpu", "cpu.cfs_period_us", wanted.cpu_period),
                ("cpu", "cpu.cfs_quota_us", wanted.cpu_quota),
                ("memory", "memory.limit_in_bytes", wanted.memory_limit_in_bytes),
                ("memory", "memory.memsw.limit_in_bytes", wanted.memory_swap_limit_in_bytes),
            ] {
                if value != 0 {
                    add(controller, file, value.to_string());
                }
            }
        }
        Layout::Unified => {
            if wanted.cpu_shares != 0 {
                add("", "cpu.weight", weight(wanted.cpu_shares).to_string());
            }
            if wanted.cpu_quota != 0 {
                let quota =
                    if wanted.cpu_quota < 0 { "max".to_owned() } else { wanted.cpu_quota.to_string() };
                add("", "cpu.max", format!("{quota} {period}"));
            }
            if wanted.memory_limit_in_bytes != 0 {
                let limit = wanted.memory_limit_in_bytes;
                add("", "memory.max", if limit < 0 { "max".to_owned() } else { limit.to_string() });
            }
            for (file, value) in &wanted.unified {
                add("", file, value.clone());
            }
        }
    }
    for (file, value) in [("cpuset.cpus", &wanted.cpuset_cpus), ("cpuset.mems", &wanted.cpuset_mems)] {
        if !value.is_empty() {
            add("cpuset", file, value.clone());
        }
    }
    writes
}

/// v1 shares (2..=262144) as a v2 weight (1..=10000), linearly.
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_translate_for_each_layout() {
        let wanted = LinuxContainerResources {
            cpu_shares: 1024,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let text = |layout| -> Vec<String> {
            limit_writes(&wanted, layout)
                .into_iter()
                .map(|(_, file, value)| format!("{file}={value}"))
                .collect()
        };
        assert_eq!(
            text(Layout::Split),
            ["cpu.shares=1024", "cpu.cfs_quota_us=50000", "memory.limit_in_bytes=1048576"]
        );
        assert_eq!(text(Layout::Unified), ["cpu.weight=39", "cpu.max=50000 100000", "memory.max=1048576"]);
    }

    #[test]
    fn interface_counters_are_read_by_column() {
        let usage = interface("  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0").unwrap();
        let numbers =
            [usage.rx_bytes, usage.rx_errors, usage.tx_bytes, usage.tx_errors].map(|v| v.unwrap().value);
        assert_eq!(numbers, [10, 2, 20, 3]);
    }
}
