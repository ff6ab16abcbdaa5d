//! What the machine is and has: processors, memory, disk, huge pages, names and versions.

use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantities::Resources;

/// The architecture as Go calls it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn processors() -> usize {
    let listed = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    if listed > 0 { listed } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// A value of `/proc/meminfo` in KiB.
pub fn meminfo_kib(key: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::to_owned));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn disk_kib(path: &Path) -> u64 {
    // The directory may not exist yet: its nearest ancestor is on the same disk.
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(there).map_or(0, |fs| fs.blocks() * fs.fragment_size() / 1024)
}

/// What pods may have of the machine.
pub fn capacity(root_dir: &Path, max_pods: u32) -> Resources {
    let mut capacity: Resources = [
        ("cpu", processors().to_string()),
        ("memory", format!("{}Ki", meminfo_kib("MemTotal"))),
        ("ephemeral-storage", format!("{}Ki", disk_kib(root_dir))),
        ("pods", max_pods.to_string()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB"))
            .and_then(|n| n.parse::<u64>().ok());
        let Some(size) = size else { continue };
        let pages: u64 = read(&entry.path().join("nr_hugepages").to_string_lossy()).parse().unwrap_or(0);
        let shown = |kib: u64| match kib {
            0 => "0".to_owned(),
            kib if kib % (1 << 20) == 0 => format!("{}Gi", kib >> 20),
            kib if kib % 1024 == 0 => format!("{}Mi", kib >> 10),
            kib => format!("{kib}Ki"),
        };
        capacity.insert(format!("hugepages-{}", shown(size)), Quantity(shown(size * pages)));
    }
    capacity
}

/// Names and versions.
pub fn info(runtime_version: String) -> NodeSystemInfo {
    let os = read("/etc/os-release");
    let pretty = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let machine_id = read("/etc/machine-id");
    let product = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime_version,
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: crate::VERSION.to_owned(),
        operating_system: "linux".to_owned(),
        os_image: pretty.map_or("Linux", |name| name.trim_matches('"')).to_owned(),
        system_uuid: if product.is_empty() { machine_id.clone() } else { product },
        machine_id,
        ..NodeSystemInfo::default()
    }
}
