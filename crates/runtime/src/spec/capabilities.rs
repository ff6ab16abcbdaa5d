//! Which capabilities a container gets: containerd's default set, the pod's additions and drops, and
//! never more than this process could hand out.

use std::collections::BTreeSet;

use coxswain_cri::v1::LinuxContainerSecurityContext;

/// What containerd (and docker) grant by default.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Names by number (`linux/capability.h`).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A capability set by name.
pub(crate) type Capabilities = BTreeSet<&'static str>;

/// Decodes a `CapBnd:`-like mask.
pub(super) fn from_mask(mask: u64) -> Capabilities {
    NAMES.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

/// A container's permitted and bounding set, and its ambient set.
pub(super) struct Granted {
    pub permitted: Capabilities,
    pub ambient: Capabilities,
}

/// Applies a security context. Unknown names are passed over, as containerd does with `ALL` around them.
pub(super) fn grant(context: &LinuxContainerSecurityContext, available: &Capabilities) -> Granted {
    if context.privileged {
        return Granted { permitted: available.clone(), ambient: Capabilities::new() };
    }
    let request = context.capabilities.clone().unwrap_or_default();
    let named = |names: &[String]| -> Capabilities { names.iter().filter_map(|name| lookup(name)).collect() };
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));

    let mut permitted: Capabilities = DEFAULT.into();
    if is_all(&request.add_capabilities) {
        permitted = NAMES.into();
    }
    if is_all(&request.drop_capabilities) {
        permitted.clear();
    }
    permitted.extend(named(&request.add_capabilities));
    for dropped in named(&request.drop_capabilities) {
        permitted.remove(dropped);
    }
    permitted.retain(|name| available.contains(name));
    let ambient = named(&request.add_ambient_capabilities).intersection(&permitted).copied().collect();
    Granted { permitted, ambient }
}

/// `net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are one.
fn lookup(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.into_iter().find(|known| &known[4..] == bare)
}

#[cfg(test)]
mod tests {
    use coxswain_cri::v1::Capability;

    use super::*;

    fn granted(add: &[&str], drop: &[&str]) -> Capabilities {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let context = LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: owned(add),
                drop_capabilities: owned(drop),
                add_ambient_capabilities: Vec::new(),
            }),
            ..Default::default()
        };
        let mut available = from_mask(u64::MAX);
        available.remove("CAP_SYS_RESOURCE");
        grant(&context, &available).permitted
    }

    #[test]
    fn additions_and_drops_apply_to_the_default_set() {
        assert_eq!(granted(&[], &[]).len(), 14);
        assert_eq!(granted(&["NET_ADMIN"], &["ALL"]), Capabilities::from(["CAP_NET_ADMIN"]));
        assert!(!granted(&["all"], &["CAP_SYS_ADMIN"]).contains("CAP_SYS_ADMIN"));
        assert!(!granted(&["SYS_RESOURCE"], &[]).contains("CAP_SYS_RESOURCE"), "what we lack, nobody gets");
    }
}
