//! Images made here of a few files: the demo's image is this very binary and nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, StoreError};
use super::{Hashing, digest_of};

/// Where a file's content comes from.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of the host: linked where the file system allows, copied otherwise. It must not be
    /// written in place later (replacing it is fine).
    HostFile(PathBuf),
}

/// A file of the image.
#[derive(Clone, Debug)]
pub struct ScratchFile {
    /// Absolute path in the image.
    pub path: String,
    /// Its content.
    pub content: Content,
    /// Its permissions, such as `0o755`.
    pub mode: u32,
}

/// How the image is run.
#[derive(Clone, Debug, Default)]
pub struct ScratchConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty is `/`.
    pub working_dir: String,
    /// User; empty is root.
    pub user: String,
}

impl ImageStore {
    /// Makes an image of one layer with the given files and gives it `name`.
    pub fn import_scratch(
        &self,
        name: &str,
        files: &[ScratchFile],
        config: &ScratchConfig,
    ) -> Result<ImageRecord, StoreError> {
        let reference = Reference::parse(name)?;
        let ingest = self.ingest()?;
        let (diff_id, size) = layer_digest(files)?;
        let document = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "Env": config.env,
                "WorkingDir": config.working_dir,
                "User": config.user,
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let document = document.to_string().into_bytes();
        let mut layering = self.layering();
        let layer = layering.advance(&diff_id);
        if !self.has_layer(&layer) {
            let staging = ingest.dir.join(&layer);
            std::fs::create_dir_all(&staging)?;
            std::fs::set_permissions(&staging, PermissionsExt::from_mode(0o755))?;
            for file in files {
                place(&staging, file)?;
            }
            self.commit_layer(&staging, &layer, size)?;
        }
        let manifest = digest_of(&[&b"scratch "[..], &document].concat());
        let size = size + document.len() as u64;
        self.commit(document, layering, size, Some(&reference), Some(&manifest))
    }
}

/// The digest the layer has as a tar, and the bytes of its files.
fn layer_digest(files: &[ScratchFile]) -> Result<(String, u64), StoreError> {
    let mut builder = tar::Builder::new(Hashing::new(io::sink()));
    let mut total = 0;
    for file in files {
        let (size, reader): (u64, Box<dyn Read>) = match &file.content {
            Content::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes.as_slice())),
            Content::HostFile(path) => (std::fs::metadata(path)?.len(), Box::new(File::open(path)?)),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(file.mode);
        builder.append_data(&mut header, file.path.trim_start_matches('/'), reader)?;
        total += size;
    }
    Ok((builder.into_inner()?.digest(), total))
}

fn place(root: &Path, file: &ScratchFile) -> io::Result<()> {
    let target = root.join(file.path.trim_start_matches('/'));
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match &file.content {
        Content::Bytes(bytes) => std::fs::write(&target, bytes)?,
        Content::HostFile(source) => {
            let metadata = std::fs::metadata(source)?;
            // A link shares owner and mode with its source, so they must be right already.
            let same = metadata.mode() & 0o7777 == file.mode && metadata.uid() == 0 && metadata.gid() == 0;
            if same && std::fs::hard_link(std::fs::canonicalize(source)?, &target).is_ok() {
                return Ok(());
            }
            // Copies in the kernel, and shares blocks where the file system can.
            std::fs::copy(source, &target)?;
        }
    }
    std::fs::set_permissions(&target, PermissionsExt::from_mode(file.mode))
}
