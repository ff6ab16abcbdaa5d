//! Security contexts: the container's over the pod's, in the runtime's terms. Pure.

use coxswain_cri::v1;
use coxswain_cri::v1::NamespaceMode;
use coxswain_cri::v1::security_profile::ProfileType;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile, SecurityContext,
};

use super::container::ConfigError;
use crate::model::PodId;
use crate::pod::containers::{self, spec};

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The user an image runs as: its number, or its name when it has no number.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    /// Number.
    pub uid: Option<i64>,
    /// Name.
    pub name: String,
}

/// The user and group a container runs as, if its pod says so.
pub fn user_and_group(pod: &Pod, container: &Container) -> (Option<i64>, Option<i64>) {
    let (own, pods) = (container.security_context.as_ref(), spec(pod).security_context.as_ref());
    (
        own.and_then(|c| c.run_as_user).or_else(|| pods.and_then(|c| c.run_as_user)),
        own.and_then(|c| c.run_as_group).or_else(|| pods.and_then(|c| c.run_as_group)),
    )
}

/// `runAsNonRoot`: refuses a container that would run as root, or may.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), ConfigError> {
    let own = container.security_context.as_ref().and_then(|c| c.run_as_non_root);
    let pods = spec(pod).security_context.as_ref().and_then(|c| c.run_as_non_root);
    if own.or(pods) != Some(true) {
        return Ok(());
    }
    let of = format!("(pod: \"{}\", container: {})", PodId::of(pod), container.name);
    let refuse = |text: String| Err(ConfigError::Refused(text));
    match (user_and_group(pod, container).0, image.uid) {
        (Some(0), _) => refuse(format!("container's runAsUser breaks non-root policy {of}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => refuse(format!("container has runAsNonRoot and image will run as root {of}")),
        (None, None) if !image.name.is_empty() => refuse(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {of}",
            image.name
        )),
        (None, None) => refuse(format!("container has runAsNonRoot and image will run as root {of}")),
        (None, Some(_)) => Ok(()),
    }
}

/// Which namespaces a pod shares with its node.
pub fn namespaces(pod: &Pod, target_id: Option<&str>) -> v1::NamespaceOption {
    let spec = spec(pod);
    let node = |on: Option<bool>, other| if on == Some(true) { NamespaceMode::Node } else { other };
    let shared = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    let pid = if target_id.is_some() { NamespaceMode::Target } else { node(spec.host_pid, shared) };
    v1::NamespaceOption {
        network: node(spec.host_network, NamespaceMode::Pod).into(),
        pid: pid.into(),
        ipc: node(spec.host_ipc, NamespaceMode::Pod).into(),
        target_id: target_id.unwrap_or_default().to_owned(),
        userns_options: None,
    }
}

fn seccomp(profile: Option<&SeccompProfile>, seccomp_root: &str) -> v1::SecurityProfile {
    let (type_, reference) = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
            (ProfileType::Localhost, format!("{seccomp_root}/{name}"))
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    v1::SecurityProfile { profile_type: type_.into(), localhost_ref: reference }
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<v1::SecurityProfile> {
    let profile = profile?;
    let (type_, reference) = match profile.type_.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new()),
        "Localhost" => (ProfileType::Localhost, profile.localhost_profile.clone().unwrap_or_default()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    Some(v1::SecurityProfile { profile_type: type_.into(), localhost_ref: reference })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    let options = options?.clone();
    Some(v1::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    })
}

fn number(value: Option<i64>) -> Option<v1::Int64Value> {
    value.map(|value| v1::Int64Value { value })
}

/// `supplementalGroups` and `fsGroup` of the pod.
fn groups(pod: &Pod) -> (Vec<i64>, i32) {
    let Some(context) = &spec(pod).security_context else { return (Vec::new(), 0) };
    let groups = context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect();
    let strict = context.supplemental_groups_policy.as_deref() == Some("Strict");
    let policy =
        if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge };
    (groups, policy.into())
}

/// The sandbox's context.
pub fn of_sandbox(pod: &Pod, seccomp_root: &str) -> v1::LinuxSandboxSecurityContext {
    let context = spec(pod).security_context.as_ref();
    let privileged = |c: &SecurityContext| c.privileged == Some(true);
    let every = spec(pod).containers.iter().chain(containers::init_containers(pod).map(|(_, c)| c));
    let (supplemental_groups, policy) = groups(pod);
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux(context.and_then(|c| c.se_linux_options.as_ref())),
        run_as_user: number(context.and_then(|c| c.run_as_user)),
        run_as_group: number(
            context.and_then(|c| c.run_as_group).filter(|_| context.and_then(|c| c.run_as_user).is_some()),
        ),
        readonly_rootfs: false,
        supplemental_groups,
        supplemental_groups_policy: policy,
        privileged: every.filter_map(|c| c.security_context.as_ref()).any(privileged),
        seccomp: Some(seccomp(
            Some(&SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            seccomp_root,
        )),
        ..Default::default()
    }
}

/// A container's context.
pub fn of_container(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target_id: Option<&str>,
    seccomp_root: &str,
) -> v1::LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let pods = spec(pod).security_context.as_ref();
    let privileged = own.privileged == Some(true);
    let (user, group) = user_and_group(pod, container);
    let (supplemental_groups, policy) = groups(pod);
    let bare = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths =
        |paths: &[&str]| if bare { Vec::new() } else { paths.iter().map(|p| (*p).to_owned()).collect() };
    let name = user.is_none() && image.uid.is_none();
    v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| v1::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target_id)),
        selinux_options: selinux(
            own.se_linux_options.as_ref().or(pods.and_then(|c| c.se_linux_options.as_ref())),
        ),
        run_as_user: number(user.or(image.uid)),
        run_as_group: number(group),
        run_as_username: if name { image.name.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups,
        supplemental_groups_policy: policy,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: Some(seccomp(
            own.seccomp_profile.as_ref().or(pods.and_then(|c| c.seccomp_profile.as_ref())),
            seccomp_root,
        )),
        apparmor: apparmor(
            own.app_armor_profile.as_ref().or(pods.and_then(|c| c.app_armor_profile.as_ref())),
        ),
        ..Default::default()
    }
}
