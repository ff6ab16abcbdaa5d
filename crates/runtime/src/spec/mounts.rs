//! A container's mounts: the kernel's file systems, the sandbox's files, and what the kubelet asks for.

use std::path::{Path, PathBuf};

use coxswain_cri::v1::{Mount, MountPropagation, NamespaceMode};
use serde_json::{Value, json};

use super::{SpecError, SpecInput};

/// Where a sandbox keeps what its containers share.
#[derive(Clone, Debug)]
pub(crate) struct SandboxFiles {
    pub dir: PathBuf,
}

impl SandboxFiles {
    /// The tmpfs behind `/dev/shm`.
    pub fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// Content of `/etc/hostname`.
    pub fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    /// Content of `/etc/hosts` where the kubelet mounts none.
    pub fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Content of `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }
}

/// All mounts in the order they are made: a mount never hides one before it.
pub(super) fn mounts(input: &SpecInput<'_>) -> Result<Vec<Value>, SpecError> {
    let mut mounts = kernel_mounts(input);
    let asked =
        |path: &str| input.config.mounts.iter().any(|m| Path::new(&m.container_path) == Path::new(path));
    let files = input.files;
    let read_only = input.context.readonly_rootfs;
    for (source, target) in [
        (files.hostname(), "/etc/hostname"),
        (files.hosts(), "/etc/hosts"),
        (files.resolv_conf(), "/etc/resolv.conf"),
    ] {
        if !asked(target) {
            mounts.push(bind(&source, target, if read_only { "ro" } else { "rw" }, "rprivate"));
        }
    }
    if !asked("/dev/shm") {
        let host_ipc = input.namespaces.ipc() == NamespaceMode::Node;
        let source = if host_ipc { PathBuf::from("/dev/shm") } else { files.shm() };
        mounts.push(bind(&source, "/dev/shm", "rw", "rprivate"));
    }
    let mut requested: Vec<&Mount> = input.config.mounts.iter().collect();
    requested.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
    for mount in requested {
        mounts.retain(|earlier| earlier["destination"] != mount.container_path.as_str());
        mounts.push(requested_mount(mount)?);
    }
    Ok(mounts)
}

fn kernel_mounts(input: &SpecInput<'_>) -> Vec<Value> {
    let access = if input.context.privileged { "rw" } else { "ro" };
    let hardened = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": hardened}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": hardened}),
    ];
    // A network namespace of the host may not be shown through a sysfs of another user namespace.
    let foreign = input.user_namespace && input.namespaces.network() == NamespaceMode::Node;
    mounts.push(if foreign {
        bind(Path::new("/sys"), "/sys", "ro", "rslave")
    } else {
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access]})
    });
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", access]}));
    mounts
}

fn requested_mount(mount: &Mount) -> Result<Value, SpecError> {
    let source = Path::new(&mount.host_path);
    // As containerd does: a host directory that is not there comes into being.
    if !source.exists() {
        std::fs::create_dir_all(source)
            .map_err(|error| SpecError::MountSource { path: mount.host_path.clone(), error })?;
    }
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    Ok(bind(source, &mount.container_path, access, propagation))
}

fn bind(source: &Path, target: &str, access: &str, propagation: &str) -> Value {
    json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", propagation, access]})
}

/// Propagation of the container's root: shared as soon as one mount is to reach the host.
pub(super) fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let any = |wanted| mounts.iter().any(|mount| mount.propagation() == wanted);
    if any(MountPropagation::PropagationBidirectional) {
        Some("shared")
    } else if any(MountPropagation::PropagationHostToContainer) {
        Some("slave")
    } else {
        None
    }
}
