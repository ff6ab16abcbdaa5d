//! From a CRI container to an OCI runtime specification. Everything here is a decision over data; what
//! it needs to know of the host and the image is handed in.

mod capabilities;
mod devices;
mod mounts;
mod seccomp;
mod user;

use std::path::Path;

use coxswain_cri::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    UserNamespace,
};
use serde_json::{Map, Value, json};

pub(crate) use capabilities::Capabilities;
pub(crate) use mounts::SandboxFiles;
pub(crate) use user::{Accounts, Identity, resolve as resolve_user};

use crate::image::ImageSettings;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container that cannot be described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Neither the pod nor the image names a command.
    #[error("no command specified")]
    NoCommand,
    /// The user is not in the image's passwd file.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// The group is not in the image's group file.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A seccomp profile of the node cannot be used.
    #[error("cannot load seccomp profile {path:?}: {reason}")]
    SeccompProfile { path: String, reason: String },
    /// A mount's host path cannot be made.
    #[error("failed to mkdir {path:?}: {error}")]
    MountSource { path: String, error: std::io::Error },
    /// A device of the host is not one.
    #[error("cannot use device {path:?}: {error}")]
    Device { path: String, error: std::io::Error },
}

/// What the host can give.
#[derive(Clone, Debug)]
pub(crate) struct HostFacts {
    /// Capabilities this process could hand on.
    pub capabilities: Capabilities,
    /// Lowest `oom_score_adj` we may set; `None` when any.
    pub oom_score_floor: Option<i32>,
    /// cgroup v2 with all controllers.
    pub unified_cgroups: bool,
    /// Huge pages can be limited; where they cannot, limits are dropped, as containerd does.
    pub hugetlb_limits: bool,
    /// Swap can be limited; where it cannot, limits are dropped.
    pub swap_limits: bool,
}

impl HostFacts {
    /// Looks at `/proc`.
    pub fn detect() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
        };
        let held = capabilities::from_mask(mask("CapEff:"));
        let current = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        Self {
            oom_score_floor: match held.contains("CAP_SYS_RESOURCE") {
                true => None,
                false => Some(current.trim().parse().unwrap_or(0)),
            },
            capabilities: capabilities::from_mask(mask("CapBnd:")).intersection(&held).copied().collect(),
            unified_cgroups: crate::cgroup::layout() == crate::cgroup::Layout::Unified,
            hugetlb_limits: crate::cgroup::limits_huge_pages(),
            swap_limits: crate::cgroup::limits_swap(),
        }
    }
}

/// All a specification is made of.
pub(crate) struct SpecInput<'a> {
    pub config: &'a ContainerConfig,
    pub context: &'a LinuxContainerSecurityContext,
    pub namespaces: NamespaceOption,
    /// Whether the pod has a user namespace of its own.
    pub user_namespace: bool,
    /// Host name of the sandbox; empty on the host's network.
    pub hostname: &'a str,
    pub image: &'a ImageSettings,
    pub identity: &'a Identity,
    pub rootfs: &'a Path,
    pub files: &'a SandboxFiles,
    /// Process that holds the pod's namespaces.
    pub holder: i32,
    /// Process whose PID namespace to join (`NamespaceMode::Target`).
    pub target: Option<i32>,
    pub cgroup: &'a str,
    pub host: &'a HostFacts,
}

/// The OCI specification (`config.json`).
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value, SpecError> {
    let granted = capabilities::grant(input.context, &input.host.capabilities);
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "root": {"path": input.rootfs, "readonly": input.context.readonly_rootfs},
        "mounts": mounts::mounts(input)?,
        "process": process(input, &granted)?,
        "linux": linux(input, &granted)?,
        "annotations": input.config.annotations,
    });
    if let Some(map) = spec.as_object_mut()
        && input.config.annotations.is_empty()
    {
        map.remove("annotations");
    }
    Ok(spec)
}

fn process(input: &SpecInput<'_>, granted: &capabilities::Granted) -> Result<Value, SpecError> {
    let config = input.config;
    let cwd = [&config.working_dir, &input.image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let mut process = json!({
        "terminal": config.tty,
        "user": {
            "uid": input.identity.uid,
            "gid": input.identity.gid,
            "additionalGids": input.identity.groups,
        },
        "args": arguments(config, input.image)?,
        "env": environment(input),
        "cwd": cwd.map_or("/", String::as_str),
        "capabilities": {
            "bounding": granted.permitted,
            "effective": granted.permitted,
            "permitted": granted.permitted,
            "inheritable": granted.ambient,
            "ambient": granted.ambient,
        },
    });
    // Absent is not the same as false to libcontainer: false installs seccomp too late.
    if input.context.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(resources) = resources(config) {
        let wanted = i32::try_from(resources.oom_score_adj).unwrap_or(0);
        process["oomScoreAdj"] = json!(input.host.oom_score_floor.map_or(wanted, |floor| wanted.max(floor)));
    }
    Ok(process)
}

/// Entry point and arguments: a command in the pod also silences the image's arguments.
fn arguments(config: &ContainerConfig, image: &ImageSettings) -> Result<Vec<String>, SpecError> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if all.first().is_none_or(String::is_empty) { Err(SpecError::NoCommand) } else { Ok(all) }
}

fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        match env.iter_mut().find(|old| old.split('=').next() == Some(&key)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    set(format!("PATH={DEFAULT_PATH}"));
    if input.config.tty {
        set("TERM=xterm".to_owned());
    }
    input.image.env.iter().cloned().for_each(&mut set);
    if !input.hostname.is_empty() {
        set(format!("HOSTNAME={}", input.hostname));
    }
    for entry in &input.config.envs {
        set(format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)));
    }
    env
}

fn linux(input: &SpecInput<'_>, granted: &capabilities::Granted) -> Result<Value, SpecError> {
    let context = input.context;
    let (devices, mut rules) = devices::devices(input.config, context.privileged)?;
    let mut linux = Map::new();
    linux.insert("cgroupsPath".into(), json!(input.cgroup));
    linux.insert("namespaces".into(), json!(namespaces(input)));
    if !devices.is_empty() {
        linux.insert("devices".into(), json!(devices));
    }
    rules.insert(0, json!({"allow": context.privileged, "access": "rwm"}));
    let mut limits = resources(input.config).map_or_else(Map::new, |r| limits(r, input.host));
    limits.insert("devices".into(), json!(rules));
    linux.insert("resources".into(), Value::Object(limits));
    if !context.privileged {
        linux.insert("maskedPaths".into(), json!(context.masked_paths));
        linux.insert("readonlyPaths".into(), json!(context.readonly_paths));
        if let Some(profile) = seccomp::profile(context.seccomp.as_ref(), &granted.permitted)? {
            linux.insert("seccomp".into(), profile);
        }
    }
    if let Some(propagation) = mounts::root_propagation(&input.config.mounts) {
        linux.insert("rootfsPropagation".into(), json!(propagation));
    }
    Ok(Value::Object(linux))
}

fn namespaces(input: &SpecInput<'_>) -> Vec<Value> {
    let of =
        |pid: i32, kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    let holder = input.holder;
    let mut namespaces = vec![json!({"type": "mount"})];
    if input.user_namespace {
        namespaces.push(of(holder, "user", "user"));
    }
    if input.namespaces.network() != NamespaceMode::Node {
        namespaces.push(of(holder, "network", "net"));
        namespaces.push(of(holder, "uts", "uts"));
    }
    if input.namespaces.ipc() != NamespaceMode::Node {
        namespaces.push(of(holder, "ipc", "ipc"));
    }
    match (input.namespaces.pid(), input.target) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod, _) => namespaces.push(of(holder, "pid", "pid")),
        (NamespaceMode::Target, Some(target)) => namespaces.push(of(target, "pid", "pid")),
        (NamespaceMode::Container | NamespaceMode::Target, _) => namespaces.push(json!({"type": "pid"})),
    }
    if input.host.unified_cgroups {
        namespaces.push(json!({"type": "cgroup"}));
    }
    namespaces
}

fn resources(config: &ContainerConfig) -> Option<&LinuxContainerResources> {
    config.linux.as_ref()?.resources.as_ref()
}

/// The OCI `resources` object; zero means unset throughout CRI.
fn limits(resources: &LinuxContainerResources, host: &HostFacts) -> Map<String, Value> {
    let mut cpu = Map::new();
    let mut memory = Map::new();
    let number = |map: &mut Map<String, Value>, name: &str, value: i64| {
        if value != 0 {
            map.insert(name.to_owned(), json!(value));
        }
    };
    number(&mut cpu, "shares", resources.cpu_shares);
    number(&mut cpu, "quota", resources.cpu_quota);
    number(&mut cpu, "period", resources.cpu_period);
    for (name, value) in [("cpus", &resources.cpuset_cpus), ("mems", &resources.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(name.to_owned(), json!(value));
        }
    }
    number(&mut memory, "limit", resources.memory_limit_in_bytes);
    if host.swap_limits {
        number(&mut memory, "swap", resources.memory_swap_limit_in_bytes);
    }
    let mut all = Map::new();
    for (name, part) in [("cpu", cpu), ("memory", memory)] {
        if !part.is_empty() {
            all.insert(name.to_owned(), Value::Object(part));
        }
    }
    if host.hugetlb_limits && !resources.hugepage_limits.is_empty() {
        let pages = resources.hugepage_limits.iter();
        let limits: Vec<Value> = pages.map(|p| json!({"pageSize": p.page_size, "limit": p.limit})).collect();
        all.insert("hugepageLimits".to_owned(), json!(limits));
    }
    if host.unified_cgroups && !resources.unified.is_empty() {
        all.insert("unified".to_owned(), json!(resources.unified));
    }
    all
}

/// Whether a pod asks for a user namespace of its own.
pub(crate) fn wants_user_namespace(options: &NamespaceOption) -> Option<&UserNamespace> {
    options
        .userns_options
        .as_ref()
        .filter(|userns| userns.mode() == NamespaceMode::Pod && !userns.uids.is_empty())
}

#[cfg(test)]
mod tests;
