//! Device nodes of a container and the cgroup rules that let it use them.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coxswain_cri::v1::ContainerConfig;
use serde_json::{Value, json};

use super::SpecError;

/// Directories of `/dev` that are not the host's to share.
const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"];

/// Nodes (`linux.devices`) and rules (`linux.resources.devices`).
pub(super) fn devices(
    config: &ContainerConfig,
    privileged: bool,
) -> Result<(Vec<Value>, Vec<Value>), SpecError> {
    let mut nodes = Vec::new();
    let mut rules = Vec::new();
    if privileged {
        for path in walk(Path::new("/dev")) {
            // A device that goes away while we look is none.
            if let Ok(metadata) = std::fs::symlink_metadata(&path) {
                nodes.extend(node(&path, &metadata));
            }
        }
    }
    for device in &config.devices {
        let failed = |error| SpecError::Device { path: device.host_path.clone(), error };
        let host = std::fs::canonicalize(&device.host_path).map_err(failed)?;
        let found = if host.is_dir() { walk(&host) } else { vec![host.clone()] };
        for path in found {
            let metadata = std::fs::symlink_metadata(&path).map_err(failed)?;
            let below = path.strip_prefix(&host).unwrap_or(Path::new(""));
            let target = match below.as_os_str().is_empty() {
                true => PathBuf::from(&device.container_path),
                false => Path::new(&device.container_path).join(below),
            };
            let Some(node) = node(&target, &metadata) else {
                return Err(failed(io::Error::other("not a device node")));
            };
            let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
            rules.push(json!({"allow": true, "type": node["type"], "major": node["major"],
                "minor": node["minor"], "access": access}));
            nodes.push(node);
        }
    }
    Ok((nodes, rules))
}

fn node(path: &Path, metadata: &Metadata) -> Option<Value> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let number = metadata.rdev();
    Some(json!({
        "path": path,
        "type": kind,
        "major": nix::sys::stat::major(number),
        "minor": nix::sys::stat::minor(number),
        "fileMode": metadata.mode() & 0o7777,
        "uid": metadata.uid(),
        "gid": metadata.gid(),
    }))
}

/// Device nodes below `dir`; `/dev` is shallow.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in crate::files::entries(dir) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            if !OWN.contains(&name) {
                found.extend(walk(&path));
            }
        } else if name != "console" && node(&path, &metadata).is_some() {
            found.push(path);
        }
    }
    found
}
