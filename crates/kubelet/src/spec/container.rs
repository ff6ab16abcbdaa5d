//! The runtime's configuration of one container instance, and the files it needs (last words, hosts, log directory).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coxswain_cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::env::{self, Environment, expand};
use super::security::{self, ImageUser};
use super::{dns, fields, resources};
use crate::kubelet::Kubelet;
use crate::model::{
    CONTAINER_HASH, CONTAINER_NAME, GRACE_PERIOD, MESSAGE_PATH, MESSAGE_POLICY, PodId, RESTART_COUNT,
};
use crate::objects::ObjectError;
use crate::pod::containers;
use crate::volumes::{self, Mounted, Place};

/// Why a container cannot be configured. The text is the container's waiting message.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A ConfigMap or Secret is not there.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It is there, without the key.
    #[error("couldn't find key {key} in {kind} {object}")]
    NoKey {
        /// The key.
        key: String,
        /// ConfigMap or Secret.
        kind: String,
        /// Its namespace and name.
        object: String,
    },
    /// A field of the downward API.
    #[error(transparent)]
    Field(#[from] fields::FieldError),
    /// The security context forbids it.
    #[error("{0}")]
    Refused(String),
    /// A mount of an unknown volume.
    #[error("cannot find volume \"{0}\" to mount into container \"{1}\"")]
    NoVolume(String, String),
    /// A path inside a volume.
    #[error("failed to prepare subPath for volumeMount \"{0}\" of container \"{1}\": {2}")]
    SubPath(String, String, std::io::Error),
    /// A file the container needs.
    #[error("cannot write {0}: {1}")]
    File(PathBuf, std::io::Error),
}

/// What a container is configured from.
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's spec.
    pub container: &'a Container,
    /// Restarts before this instance.
    pub restart_count: u32,
    /// The pod's addresses.
    pub ips: &'a [String],
    /// The pod's volumes.
    pub mounted: &'a Mounted,
    /// The image as the runtime has it.
    pub image: &'a v1::Image,
    /// The container whose process namespace it joins.
    pub target_id: Option<String>,
}

/// The configuration of a container; writes the files it mounts.
pub async fn config(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
) -> Result<v1::ContainerConfig, ConfigError> {
    let (pod, container) = (input.pod, input.container);
    let id = PodId::of(pod);
    let image = image_user(input.image);
    security::check_non_root(pod, container, &image)?;
    let environment = env::environment(kubelet, input).await?;
    let mut mounts = mounts(kubelet, input, &environment)?;
    mounts.extend(own_files(kubelet, input, &mounts)?);
    let log_dir = kubelet.dirs.logs(&id).join(&container.name);
    std::fs::create_dir_all(&log_dir).map_err(|e| ConfigError::File(log_dir, e))?;
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, |name| environment.get(name))).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let kind = containers::kind(pod, &container.name);
    let node_memory = kubelet.node.memory_bytes();
    let stop_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: input.restart_count }),
        image: Some(v1::ImageSpec {
            image: input.image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: environment
            .into_vec()
            .into_iter()
            .map(|(key, value)| v1::KeyValue { key, value: value.into_bytes() })
            .collect(),
        mounts,
        labels: id
            .labels()
            .into_iter()
            .chain([(CONTAINER_NAME.to_owned(), container.name.clone())])
            .collect(),
        annotations: annotations(input),
        log_path: format!("{}/{}.log", container.name, input.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::container(pod, container, kind, node_memory)),
            security_context: Some(security::of_container(
                pod,
                container,
                &image,
                input.target_id.as_deref(),
                &seccomp_root(kubelet),
            )),
        }),
        stop_signal: stop_signal
            .and_then(v1::Signal::from_str_name)
            .unwrap_or(v1::Signal::RuntimeDefault)
            .into(),
        ..Default::default()
    })
}

/// Where `Localhost` seccomp profiles are.
pub fn seccomp_root(kubelet: &Kubelet) -> String {
    kubelet.config.root_dir.join("seccomp").to_string_lossy().into_owned()
}

fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or("/dev/termination-log")
}

fn annotations(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let container = input.container;
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    [
        (CONTAINER_HASH, containers::hash(container)),
        (RESTART_COUNT, input.restart_count.to_string()),
        (GRACE_PERIOD, containers::grace_seconds(input.pod).to_string()),
        (MESSAGE_PATH, message_path(container).to_owned()),
        (MESSAGE_POLICY, policy),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The mounts the spec asks for.
fn mounts(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    environment: &Environment,
) -> Result<Vec<v1::Mount>, ConfigError> {
    let container = &input.container.name;
    let mut mounts = Vec::new();
    for (index, mount) in input.container.volume_mounts.iter().flatten().enumerate() {
        let place = input
            .mounted
            .places
            .get(&mount.name)
            .ok_or_else(|| ConfigError::NoVolume(mount.name.clone(), container.clone()))?;
        let expression = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty());
        let sub_path = expression
            .map(|e| expand(e, |name| environment.get(name)))
            .or_else(|| mount.sub_path.clone().filter(|p| !p.is_empty()));
        let mut result = v1::Mount {
            container_path: absolute(&mount.mount_path),
            readonly: mount.read_only == Some(true),
            propagation: propagation(mount).into(),
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled")),
            ..Default::default()
        };
        match place {
            Place::Image(reference) => {
                result.image = Some(v1::ImageSpec { image: reference.clone(), ..Default::default() });
                result.image_sub_path = sub_path.unwrap_or_default();
                result.readonly = true;
            }
            Place::Path { path, read_only } => {
                result.readonly |= read_only;
                let path = match sub_path {
                    None => path.clone(),
                    Some(sub_path) => {
                        let pod_dir = kubelet.dirs.pod(&PodId::of(input.pod).uid);
                        let target = pod_dir.join("volume-subpaths").join(&mount.name).join(container);
                        volumes::sub_path(path, &sub_path, &target.join(index.to_string()))
                            .map_err(|e| ConfigError::SubPath(mount.name.clone(), container.clone(), e))?
                    }
                };
                result.host_path = path.to_string_lossy().into_owned();
            }
        }
        mounts.push(result);
    }
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(mount: &VolumeMount) -> v1::MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        _ => v1::MountPropagation::PropagationPrivate,
    }
}

/// The mounts the kubelet adds: `/etc/hosts` and the file of the last words.
fn own_files(
    kubelet: &Kubelet,
    input: &ContainerInput<'_>,
    mounts: &[v1::Mount],
) -> Result<Vec<v1::Mount>, ConfigError> {
    let id = PodId::of(input.pod);
    let taken = |path: &str| mounts.iter().any(|mount| mount.container_path == path);
    let bind = |container_path: &str, host_path: &Path| v1::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let mut own = Vec::new();
    if !taken("/etc/hosts") {
        let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = dns::hosts_file(&kubelet.config, input.pod, input.ips, &node);
        let path = kubelet.dirs.pod(&id.uid).join("etc-hosts");
        std::fs::write(&path, text).map_err(|e| ConfigError::File(path.clone(), e))?;
        own.push(bind("/etc/hosts", &path));
    }
    let words = message_path(input.container);
    if !words.is_empty() && !taken(words) {
        let dir = kubelet.dirs.pod(&id.uid).join("containers").join(&input.container.name);
        let path = dir.join(input.restart_count.to_string());
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&path, ""))
            .and_then(|()| volumes::set_mode(&path, 0o666))
            .map_err(|e| ConfigError::File(path.clone(), e))?;
        own.push(bind(words, &path));
    }
    Ok(own)
}

/// The user of an image.
fn image_user(image: &v1::Image) -> ImageUser {
    ImageUser { uid: image.uid.as_ref().map(|uid| uid.value), name: image.username.clone() }
}
