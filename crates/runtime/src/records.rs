//! What sandboxes and containers leave on disk, so that a server that comes back finds them:
//!
//! ```text
//! sandboxes/<id>/config.pb     the CRI configuration       containers/<id>/config.pb
//! sandboxes/<id>/record.json   last: it stands             containers/<id>/record.json
//!                                                          containers/<id>/status.json (the shim's)
//! ```
//!
//! A directory without its `record.json` is half made, and is removed by whoever finds it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::files;

const RECORD_FILE: &str = "record.json";
const CONFIG_FILE: &str = "config.pb";

/// A sandbox that stands, or stood.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub created_at: i64,
    pub runtime_handler: String,
    pub ready: bool,
    pub ips: Vec<IpAddr>,
    /// Process that holds the namespaces.
    pub holder: i32,
}

/// A container that was created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub sandbox: String,
    pub created_at: i64,
    pub image_id: String,
    /// What `ContainerStatus` calls `image_ref`: a repo digest if there is one.
    pub image_ref: String,
    /// The image's layers; the image store keeps them for as long as this record is there.
    pub layers: Vec<String>,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub log_path: Option<PathBuf>,
    /// Signal number to stop it with.
    pub stop_signal: i32,
    pub cgroup: String,
}

/// Writes the configuration, which comes first.
pub(crate) fn write_config(dir: &Path, config: &impl Message) -> io::Result<()> {
    files::write_atomic(&dir.join(CONFIG_FILE), &config.encode_to_vec())
}

/// Reads a configuration back.
pub(crate) fn read_config<M: Message + Default>(dir: &Path) -> io::Result<M> {
    let bytes = std::fs::read(dir.join(CONFIG_FILE))?;
    M::decode(bytes.as_slice()).map_err(io::Error::other)
}

/// Writes the record: from now on the object stands.
pub(crate) fn write_record(dir: &Path, record: &impl Serialize) -> io::Result<()> {
    files::write_json(&dir.join(RECORD_FILE), record)
}

/// Reads a record back; `None` for what is half made.
pub(crate) fn read_record<T: serde::de::DeserializeOwned>(dir: &Path) -> io::Result<Option<T>> {
    files::read_json(&dir.join(RECORD_FILE))
}

/// Takes the record away before the rest goes: what a crash then leaves is half made.
pub(crate) fn remove_with_record(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(RECORD_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    files::remove_tree(dir)
}
