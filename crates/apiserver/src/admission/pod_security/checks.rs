//! The checks of the Pod Security Standards: what each level forbids in a pod, and since which version of the policy.
//! <https://kubernetes.io/docs/concepts/security/pod-security-standards/>

use std::collections::BTreeSet;

use coxswain_meta::json::Value;

/// The volumes that the restricted level knows and forbids; others that it does not allow are `unknown`.
const NAMED_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];
const ALLOWED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Sysctls that are safe, and the minor version of the policy since which they are.
const SAFE_SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];
const SELINUX_TYPES: &[(&str, u32)] = &[
    ("", 0),
    ("container_t", 0),
    ("container_init_t", 0),
    ("container_kvm_t", 0),
    ("container_engine_t", 31),
];

/// What is wrong with a pod in the eyes of one check.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub reason: String,
    /// Who breaks it.
    pub detail: String,
}

/// A pod as the checks see it, and the minor version of the policy.
pub struct Subject<'a> {
    /// The pod's metadata, or that of a pod template.
    pub metadata: &'a Value,
    /// The pod's spec.
    pub spec: &'a Value,
    /// The policy is the one of version `1.minor`.
    pub minor: u32,
}

type Check = fn(&Subject) -> Option<Violation>;

/// A baseline check, and whether a check of the restricted level stands in its place there.
pub struct Baseline(pub Check, pub fn(u32) -> bool);

/// In upstream's order, which is that of their names.
pub const BASELINE: &[Baseline] = &[
    Baseline(app_armor, |_| false),
    Baseline(default_capabilities, |minor| minor >= 22),
    Baseline(host_namespaces, |_| false),
    Baseline(host_path_volumes, |_| true),
    Baseline(host_ports, |_| false),
    Baseline(probe_hosts, |_| false),
    Baseline(privileged, |_| false),
    Baseline(proc_mount, |minor| minor >= 35),
    Baseline(selinux, |_| false),
    Baseline(seccomp, |minor| minor >= 19),
    Baseline(sysctls, |_| false),
    Baseline(host_process, |_| false),
];

/// What the restricted level adds.
pub const RESTRICTED: &[Check] = &[
    privilege_escalation,
    restricted_capabilities,
    restricted_proc_mount,
    restricted_volumes,
    non_root,
    root_user,
    required_seccomp,
];

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn quoted<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("\"{}\"", word.as_ref())).collect();
    words.join(", ")
}

fn named_containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and containers "a", "b"`: who set something.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    match (pod, containers.is_empty()) {
        (false, true) => None,
        (true, true) => Some("pod".to_owned()),
        (false, false) => Some(named_containers(containers)),
        (true, false) => Some(format!("pod and {}", named_containers(containers))),
    }
}

impl<'a> Subject<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        lists.into_iter().filter_map(|list| self.spec[list].as_array()).flatten()
    }

    /// The names of the containers of which something holds.
    fn where_any(&self, mut holds: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|container| holds(container)).map(name).collect()
    }

    fn pod_context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn on_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    fn in_user_namespace(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }
}

fn name(object: &Value) -> &str {
    object["name"].as_str().unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn listed(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Who names a profile of a kind that is neither the runtime's nor the node's own, and which.
fn bad_profiles(pod: &Subject, field: &str) -> (Option<String>, BTreeSet<String>) {
    let mut values = BTreeSet::new();
    let mut bad = |context: &Value| {
        let profile = &context[field];
        let kind = text(profile, "type").to_owned();
        let bad = profile.is_object() && kind != "RuntimeDefault" && kind != "Localhost";
        if bad {
            values.insert(kind);
        }
        bad
    };
    let by_pod = bad(pod.pod_context());
    let containers = pod.where_any(|container| bad(&container["securityContext"]));
    (setters(by_pod, &containers), values)
}

fn app_armor(pod: &Subject) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let (who, values) = bad_profiles(pod, "appArmorProfile");
    let annotations = pod.metadata["annotations"].as_object().into_iter().flatten();
    let forbidden: BTreeSet<String> = annotations
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .filter(|(_, value)| {
            !(value.is_empty() || *value == "runtime/default" || value.starts_with("localhost/"))
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who: Vec<String> = who.into_iter().collect();
    if !forbidden.is_empty() {
        who.push(plural("annotation", "annotations", forbidden.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let all: Vec<&String> = values.iter().chain(&forbidden).collect();
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", all.len());
    violation(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&all)))
}

fn added_capabilities(pod: &Subject, allowed: &[&str]) -> Option<String> {
    let mut forbidden = BTreeSet::new();
    let containers = pod.where_any(|container| {
        let before = forbidden.len();
        let added = listed(&container["securityContext"]["capabilities"]["add"]);
        let bad: Vec<&str> = added.filter(|capability| !allowed.contains(capability)).collect();
        forbidden.extend(bad.iter().copied());
        !bad.is_empty() || forbidden.len() > before
    });
    (!containers.is_empty()).then(|| {
        let who = named_containers(&containers);
        format!("{who} must not include {} in securityContext.capabilities.add", quoted(&forbidden))
    })
}

fn default_capabilities(pod: &Subject) -> Option<Violation> {
    violation("non-default capabilities", added_capabilities(pod, DEFAULT_CAPABILITIES)?)
}

fn restricted_capabilities(pod: &Subject) -> Option<Violation> {
    if pod.minor < 22 || pod.on_windows() {
        return None;
    }
    let keeping = pod.where_any(|container| {
        let dropped = &container["securityContext"]["capabilities"]["drop"];
        !listed(dropped).any(|capability| capability == "ALL")
    });
    let keeping = (!keeping.is_empty()).then(|| {
        format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named_containers(&keeping))
    });
    let details: Vec<String> =
        keeping.into_iter().chain(added_capabilities(pod, &["NET_BIND_SERVICE"])).collect();
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: &Subject) -> Option<Violation> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec[field] == true);
    let shared: Vec<String> = shared.map(|field| format!("{field}=true")).collect();
    if shared.is_empty() { None } else { violation("host namespaces", shared.join(", ")) }
}

fn volumes<'a>(pod: &Subject<'a>) -> impl Iterator<Item = &'a Value> {
    pod.spec["volumes"].as_array().into_iter().flatten()
}

fn host_path_volumes(pod: &Subject) -> Option<Violation> {
    let names: Vec<&str> = volumes(pod).filter(|volume| volume["hostPath"].is_object()).map(name).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

fn restricted_volumes(pod: &Subject) -> Option<Violation> {
    let is = |volume: &Value, kinds: &[&'static str]| {
        kinds.iter().copied().find(|kind| volume.get(kind).is_some_and(|source| !source.is_null()))
    };
    let bad: Vec<&Value> = volumes(pod).filter(|volume| is(volume, ALLOWED_VOLUMES).is_none()).collect();
    if bad.is_empty() {
        return None;
    }
    let names = quoted(bad.iter().map(|volume| name(volume)));
    let kinds: BTreeSet<&str> =
        bad.iter().map(|volume| is(volume, NAMED_VOLUMES).unwrap_or("unknown")).collect();
    let kind = plural("restricted volume type", "restricted volume types", kinds.len());
    let (volume, uses) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    violation("restricted volume types", format!("{volume} {names} {uses} {kind} {}", quoted(&kinds)))
}

fn host_ports(pod: &Subject) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let containers = pod.where_any(|container| {
        let used = container["ports"].as_array().into_iter().flatten();
        let used: Vec<String> = used
            .filter_map(|port| port["hostPort"].as_i64().filter(|port| *port != 0))
            .map(|port| port.to_string())
            .collect();
        let any = !used.is_empty();
        ports.extend(used);
        any
    });
    if containers.is_empty() {
        return None;
    }
    let who = named_containers(&containers);
    let uses = plural("uses", "use", containers.len());
    let what = plural("hostPort", "hostPorts", ports.len());
    let ports: Vec<String> = ports.into_iter().collect();
    violation("hostPort", format!("{who} {uses} {what} {}", ports.join(", ")))
}

fn probe_hosts(pod: &Subject) -> Option<Violation> {
    if pod.minor < 34 {
        return None;
    }
    let mut hosts = BTreeSet::new();
    let mut containers: Vec<&str> = pod.where_any(|container| {
        let lifecycle = &container["lifecycle"];
        let handlers = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
        let handlers = handlers.into_iter().chain([&lifecycle["postStart"], &lifecycle["preStop"]]);
        let named: Vec<&str> = handlers
            .flat_map(|handler| [text(&handler["httpGet"], "host"), text(&handler["tcpSocket"], "host")])
            .filter(|host| !host.is_empty())
            .collect();
        hosts.extend(named.iter().map(|host| (*host).to_owned()));
        !named.is_empty()
    });
    if containers.is_empty() {
        return None;
    }
    containers.sort_unstable();
    let who = named_containers(&containers);
    let uses = plural("uses", "use", containers.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{who} {uses} {what} {}", quoted(&hosts)))
}

fn privileged(pod: &Subject) -> Option<Violation> {
    let containers = pod.where_any(|container| container["securityContext"]["privileged"] == true);
    if containers.is_empty() {
        return None;
    }
    let who = named_containers(&containers);
    violation("privileged", format!("{who} must not set securityContext.privileged=true"))
}

fn unmasked(pod: &Subject) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let containers = pod.where_any(|container| {
        let kind = text(&container["securityContext"], "procMount");
        let bad = !kind.is_empty() && kind != "Default";
        if bad {
            kinds.insert(kind);
        }
        bad
    });
    if containers.is_empty() {
        return None;
    }
    let who = named_containers(&containers);
    violation("procMount", format!("{who} must not set securityContext.procMount to {}", quoted(&kinds)))
}

fn proc_mount(pod: &Subject) -> Option<Violation> {
    if pod.in_user_namespace() { None } else { unmasked(pod) }
}

fn restricted_proc_mount(pod: &Subject) -> Option<Violation> {
    if pod.minor >= 35 { unmasked(pod) } else { None }
}

fn selinux(pod: &Subject) -> Option<Violation> {
    let allowed = |kind: &str| SELINUX_TYPES.iter().any(|(name, since)| *name == kind && *since <= pod.minor);
    let (mut kinds, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        let kind = text(options, "type");
        let (by_kind, by_user, by_role) =
            (!allowed(kind), !text(options, "user").is_empty(), !text(options, "role").is_empty());
        if by_kind {
            kinds.insert(kind.to_owned());
        }
        user |= by_user;
        role |= by_role;
        by_kind || by_user || by_role
    };
    let by_pod = bad(pod.pod_context());
    let containers = pod.where_any(|container| bad(&container["securityContext"]));
    let who = setters(by_pod, &containers)?;
    let kinds =
        (!kinds.is_empty()).then(|| format!("{} {}", plural("type", "types", kinds.len()), quoted(&kinds)));
    let what: Vec<String> = kinds
        .into_iter()
        .chain(user.then(|| "user may not be set".to_owned()))
        .chain(role.then(|| "role may not be set".to_owned()))
        .collect();
    violation(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    )
}

/// Who names a profile that is not allowed, and which.
fn bad_seccomp(pod: &Subject) -> Option<Violation> {
    let (who, values) = bad_profiles(pod, "seccompProfile");
    let (who, what) = (who?, quoted(&values));
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {what}"))
}

fn seccomp(pod: &Subject) -> Option<Violation> {
    if pod.minor >= 19 {
        return bad_seccomp(pod);
    }
    let allowed = |value: &str| {
        value == "runtime/default" || value == "docker/default" || value.starts_with("localhost/")
    };
    let of_containers = pod
        .containers()
        .map(|container| format!("container.seccomp.security.alpha.kubernetes.io/{}", name(container)));
    let keys = of_containers.chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()]);
    let forbidden: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.metadata["annotations"][&key].as_str()?;
            (!allowed(value)).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let what = plural("annotation", "annotations", forbidden.len());
    let all: Vec<String> = forbidden.into_iter().collect();
    violation("seccompProfile", format!("forbidden {what} {}", all.join(", ")))
}

fn required_seccomp(pod: &Subject) -> Option<Violation> {
    if pod.minor < 19 || pod.on_windows() {
        return None;
    }
    if let Some(bad) = bad_seccomp(pod) {
        return Some(bad);
    }
    if pod.pod_context()["seccompProfile"].is_object() {
        return None;
    }
    let missing = pod.where_any(|container| !container["securityContext"]["seccompProfile"].is_object());
    if missing.is_empty() {
        return None;
    }
    let who = named_containers(&missing);
    violation(
        "seccompProfile",
        format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

fn sysctls(pod: &Subject) -> Option<Violation> {
    let safe = |sysctl: &str| SAFE_SYSCTLS.iter().any(|(name, since)| *name == sysctl && *since <= pod.minor);
    let set = pod.pod_context()["sysctls"].as_array().into_iter().flatten().map(name);
    let unsafe_ones: Vec<&str> = set.filter(|sysctl| !safe(sysctl)).collect();
    if unsafe_ones.is_empty() { None } else { violation("forbidden sysctls", unsafe_ones.join(", ")) }
}

fn host_process(pod: &Subject) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let containers = pod.where_any(|container| bad(&container["securityContext"]));
    let who = setters(bad(pod.pod_context()), &containers)?;
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: &Subject) -> Option<Violation> {
    if pod.minor < 8 || pod.on_windows() {
        return None;
    }
    let containers =
        pod.where_any(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if containers.is_empty() {
        return None;
    }
    let who = named_containers(&containers);
    violation(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn non_root(pod: &Subject) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.in_user_namespace() {
        return None;
    }
    let of_pod = pod.pod_context()["runAsNonRoot"].as_bool();
    let set = |container: &Value| container["securityContext"]["runAsNonRoot"].as_bool();
    let explicit = pod.where_any(|container| set(container) == Some(false));
    if let Some(who) = setters(of_pod == Some(false), &explicit) {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit = pod.where_any(|container| set(container).is_none() && of_pod != Some(true));
    if implicit.is_empty() {
        return None;
    }
    let who = named_containers(&implicit);
    violation(REASON, format!("pod or {who} must set securityContext.runAsNonRoot=true"))
}

fn root_user(pod: &Subject) -> Option<Violation> {
    if pod.minor < 23 || pod.in_user_namespace() {
        return None;
    }
    let root = |context: &Value| context["runAsUser"].as_i64() == Some(0);
    let containers = pod.where_any(|container| root(&container["securityContext"]));
    let who = setters(root(pod.pod_context()), &containers)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
