//! The containers of a pod's spec: their kinds, and the rule whether an ended one runs again.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// The role of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to completion before the next.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// One of `spec.containers`.
    App,
    /// Added to look into a running pod; never restarted.
    Ephemeral,
}

/// The spec of a pod; every pod the API server serves has one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static NONE: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&NONE)
}

/// Init containers and sidecars, in order.
pub fn init_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = (Kind, &Container)> {
    spec(pod).init_containers.iter().flatten().map(|container| (init_kind(container), container))
}

fn init_kind(container: &Container) -> Kind {
    if container.restart_policy.as_deref() == Some("Always") { Kind::Sidecar } else { Kind::Init }
}

/// One container of the pod by name, ephemeral ones included.
pub fn find(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    let spec = spec(pod);
    if let Some(container) = spec.containers.iter().find(|c| c.name == name) {
        return Some((Kind::App, container.clone()));
    }
    if let Some((kind, container)) = init_containers(pod).find(|(_, c)| c.name == name) {
        return Some((kind, container.clone()));
    }
    spec.ephemeral_containers
        .iter()
        .flatten()
        .find(|c| c.name == name)
        .map(|c| (Kind::Ephemeral, of_ephemeral(c)))
}

/// The kind of the container with a name; an unknown name counts as an app container.
pub fn kind(pod: &Pod, name: &str) -> Kind {
    let spec = spec(pod);
    init_containers(pod).find(|(_, c)| c.name == name).map(|(kind, _)| kind).unwrap_or_else(|| {
        let ephemeral = spec.ephemeral_containers.iter().flatten().any(|c| c.name == name);
        if ephemeral { Kind::Ephemeral } else { Kind::App }
    })
}

fn of_ephemeral(container: &EphemeralContainer) -> Container {
    let c = container.clone();
    Container {
        args: c.args,
        command: c.command,
        env: c.env,
        env_from: c.env_from,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        name: c.name,
        resources: c.resources,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        tty: c.tty,
        volume_mounts: c.volume_mounts,
        working_dir: c.working_dir,
        ..Container::default()
    }
}

/// `spec.restartPolicy`.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with an exit code runs again (KEP-5307 for a container's own rules).
pub fn restarts(pod: &Pod, kind: Kind, container: &Container, exit_code: i32) -> bool {
    match kind {
        Kind::Sidecar => return true,
        Kind::Ephemeral => return false,
        Kind::Init if exit_code == 0 => return false,
        Kind::Init | Kind::App => {}
    }
    let by_rule = container.restart_policy_rules.iter().flatten().any(|rule| {
        rule.action == "Restart"
            && rule.exit_codes.as_ref().is_some_and(|codes| {
                let listed = codes.values.iter().flatten().any(|value| *value == exit_code);
                (codes.operator == "In") == listed
            })
    });
    let policy = container.restart_policy.as_deref().unwrap_or(restart_policy(pod));
    by_rule || policy == "Always" || (policy == "OnFailure" && exit_code != 0)
}

/// `spec.terminationGracePeriodSeconds`.
pub fn grace_seconds(pod: &Pod) -> i64 {
    spec(pod).termination_grace_period_seconds.unwrap_or(30)
}

/// Whether the pod shares the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// FNV-1a of what a change of means that the container must be restarted: name and image, as upstream.
pub fn hash(container: &Container) -> String {
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}
