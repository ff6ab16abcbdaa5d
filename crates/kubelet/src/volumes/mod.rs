//! Volumes of pods below `pods/<uid>/volumes`: setting up is idempotent and is also how live updates are written.

mod atomic;
mod host_path;
mod mount;
mod payload;
pub mod token;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod,
    Volume,
};
use kube::api::Api;

use crate::kubelet::Kubelet;
use crate::model::PodId;
use crate::objects::ObjectError;
use crate::pod::containers::spec;
use crate::quantities;
use crate::spec::fields::FieldError;

pub use mount::sub_path;

/// Where a volume's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path of the node.
    Path {
        /// The path.
        path: PathBuf,
        /// Whether no container may write to it.
        read_only: bool,
    },
    /// An image the runtime mounts.
    Image(String),
}

/// The volumes of a pod.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    /// By name.
    pub places: BTreeMap<String, Place>,
    /// When a token in them must be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Why a volume's content cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// A ConfigMap or Secret.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A field of the downward API.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A key that is not there.
    #[error("references non-existent {0} key: {1}")]
    NoKey(&'static str, String),
    /// The API server.
    #[error("failed to fetch token: {0}")]
    Token(kube::Error),
    /// The API server.
    #[error("{0}")]
    Api(kube::Error),
    /// Anything else, as a sentence.
    #[error("{0}")]
    Refused(String),
}

/// A volume that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume}: {source}")]
pub struct VolumeError {
    /// Its name.
    pub volume: String,
    /// Why.
    pub source: SourceError,
}

/// A file system error with its path.
fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.to_owned();
    |error| SourceError::Io(path, error)
}

/// Sets the permission bits of a path.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Sets up all volumes of a pod, or brings them up to date.
pub async fn set_up(kubelet: &Kubelet, pod: &Pod) -> Result<Mounted, VolumeError> {
    let mut mounted = Mounted::default();
    for volume in spec(pod).volumes.iter().flatten() {
        let (place, refresh_at) = one(kubelet, pod, volume)
            .await
            .map_err(|source| VolumeError { volume: volume.name.clone(), source })?;
        mounted.places.insert(volume.name.clone(), place);
        mounted.refresh_at = [mounted.refresh_at, refresh_at].into_iter().flatten().min();
    }
    Ok(mounted)
}

fn read_write(path: PathBuf) -> Place {
    Place::Path { path, read_only: false }
}

fn directory(kubelet: &Kubelet, pod: &Pod, plugin: &str, volume: &Volume) -> PathBuf {
    let pod_dir = kubelet.dirs.pod(&PodId::of(pod).uid);
    pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name)
}

async fn one(
    kubelet: &Kubelet,
    pod: &Pod,
    volume: &Volume,
) -> Result<(Place, Option<Timestamp>), SourceError> {
    if let Some(source) = &volume.empty_dir {
        let path = directory(kubelet, pod, "empty-dir", volume);
        empty_dir(pod, source, &path)?;
        return Ok((read_write(path), None));
    }
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
        return Ok((read_write(path), None));
    }
    if let Some(source) = &volume.image {
        let name = source.reference.clone().unwrap_or_default();
        let pulled = kubelet.images.ensure_volume(kubelet, pod, &name, source.pull_policy.as_deref()).await;
        return Ok((Place::Image(pulled.map_err(SourceError::Refused)?), None));
    }
    if let Some(source) = &volume.persistent_volume_claim {
        return Ok((claimed(kubelet, pod, source).await?, None));
    }
    let Some((plugin, payload)) = payload::of(kubelet, pod, volume).await? else {
        return Err(SourceError::Refused(format!("no volume plugin matched for volume {}", volume.name)));
    };
    let path = directory(kubelet, pod, plugin, volume);
    std::fs::create_dir_all(&path).map_err(io_at(&path))?;
    if plugin != "configmap" {
        mount::tmpfs(&path, None).map_err(io_at(&path))?;
    }
    let group = spec(pod).security_context.as_ref().and_then(|c| c.fs_group);
    atomic::write(&path, &payload.files, group).map_err(io_at(&path))?;
    Ok((read_write(path), payload.refresh_at))
}

fn empty_dir(pod: &Pod, source: &EmptyDirVolumeSource, path: &Path) -> Result<(), SourceError> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let new = !path.exists();
    std::fs::create_dir_all(path).map_err(io_at(path))?;
    match medium {
        "" => {}
        "Memory" => {
            let size = source.size_limit.as_ref().map(quantities::units).filter(|size| *size > 0);
            mount::tmpfs(path, size).map_err(io_at(path))?;
        }
        other => return Err(SourceError::Refused(format!("unknown storage medium \"{other}\""))),
    }
    if new {
        let group = spec(pod).security_context.as_ref().and_then(|c| c.fs_group);
        let mode = source.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o777);
        set_mode(path, mode).map_err(io_at(path))?;
        if let Some(group) = group.and_then(|group| u32::try_from(group).ok()) {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(io_at(path))?;
            set_mode(path, mode | 0o2770).map_err(io_at(path))?;
        }
    }
    Ok(())
}

/// A claim that is bound to a volume on this node's disk.
async fn claimed(
    kubelet: &Kubelet,
    pod: &Pod,
    source: &PersistentVolumeClaimVolumeSource,
) -> Result<Place, SourceError> {
    let namespace = PodId::of(pod).namespace;
    let client = kubelet.config.client.clone();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let claim = claims.get(&source.claim_name).await.map_err(SourceError::Api)?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|_| bound);
    let name = name.ok_or_else(|| {
        SourceError::Refused(format!("PVC {namespace}/{} has non-bound phase", source.claim_name))
    })?;
    let volumes: Api<PersistentVolume> = Api::all(client);
    let volume = volumes.get(&name).await.map_err(SourceError::Api)?.spec.unwrap_or_default();
    let path = match (&volume.host_path, &volume.local) {
        (Some(source), _) => {
            let path = PathBuf::from(&source.path);
            host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
            path
        }
        (None, Some(source)) => PathBuf::from(&source.path),
        (None, None) => {
            return Err(SourceError::Refused(format!("no volume plugin matched for volume {name}")));
        }
    };
    Ok(Place::Path { path, read_only: source.read_only == Some(true) })
}

/// Unmounts and removes everything of a pod's volumes; the directory itself stays.
pub async fn tear_down(pod_dir: &Path) -> io::Result<()> {
    let pod_dir = pod_dir.to_owned();
    let work = move || {
        mount::unmount_below(&pod_dir)?;
        for part in ["volumes", "volume-subpaths", "containers"] {
            match std::fs::remove_dir_all(pod_dir.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
