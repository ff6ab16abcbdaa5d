//! The images of the suite, made here, as blobs of an OCI registry. A layer is made once for what it is made of.

mod busybox;
mod debian;
mod layer;
mod recipes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::digest::sha256;
use super::go::Programs;
use layer::Part;
use recipes::{RECIPES, Recipe};

/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Blobs, and the manifests by name.
#[derive(Debug)]
pub struct Images {
    directory: PathBuf,
    /// `repository:tag` without the registry's host → digest of the manifest.
    manifests: BTreeMap<String, String>,
}

impl Images {
    /// Makes what is missing.
    ///
    /// # Errors
    /// An image cannot be made.
    pub fn make(programs: &Programs, cache: &Path) -> anyhow::Result<Self> {
        let directory = cache.join("blobs");
        std::fs::create_dir_all(&directory)?;
        std::fs::create_dir_all(cache.join("layers"))?;
        let mut images = Self { directory, manifests: BTreeMap::new() };
        for recipe in RECIPES {
            let digest = images.image(recipe, programs, cache).with_context(|| recipe.names.join(", "))?;
            for name in recipe.names {
                let (_, name) = name.split_once('/').context("a name without a registry")?;
                images.manifests.insert(name.to_owned(), digest.clone());
            }
        }
        Ok(images)
    }

    /// The digest of the manifest that `reference`, a tag or a digest, names in `repository`.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<String> {
        if reference.starts_with("sha256:") {
            return self.blob(reference).map(|_| reference.to_owned());
        }
        self.manifests.get(&format!("{repository}:{reference}")).cloned()
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        let path = self.directory.join(hex);
        (hex.bytes().all(|byte| byte.is_ascii_hexdigit()) && path.exists()).then_some(path)
    }

    fn image(&self, recipe: &Recipe, programs: &Programs, cache: &Path) -> anyhow::Result<String> {
        let mut layers = Vec::new();
        for parts in recipe.layers {
            layers.push(self.layer(parts, programs, cache)?);
        }
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": recipe.entrypoint, "Cmd": recipe.command, "User": recipe.user,
            },
            // Layers are not compressed: their digests are the same packed and unpacked.
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(digest, _)| digest).collect::<Vec<_>>()},
        })
        .to_string();
        let config_digest = self.put(config.as_bytes())?;
        let layers: Vec<_> = layers
            .iter()
            .map(|(digest, size)| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest, "size": config.len(),
            },
            "layers": layers,
        })
        .to_string();
        self.put(manifest.as_bytes())
    }

    fn layer(&self, parts: &[Part], programs: &Programs, cache: &Path) -> anyhow::Result<(String, u64)> {
        let remembered = cache.join("layers").join(layer::key(parts, programs)?);
        let digest = std::fs::read_to_string(&remembered).unwrap_or_default();
        if let Some(path) = self.blob(&digest) {
            return Ok((digest, path.metadata()?.len()));
        }
        eprintln!("making a layer of {}", describe(parts));
        let tar = layer::tar(parts, programs, cache)?;
        let digest = self.put(&tar)?;
        std::fs::write(remembered, &digest)?;
        Ok((digest, tar.len() as u64))
    }

    fn put(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let digest = sha256(bytes);
        let path = self.directory.join(digest.trim_start_matches("sha256:"));
        if !path.exists() {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.persist(path)?;
        }
        Ok(digest)
    }
}

fn describe(parts: &[Part]) -> String {
    let shown = |part: &Part| match part {
        Part::Debian(packages) => format!("Debian's {}", packages.join(", ")),
        Part::Busybox => "busybox".to_owned(),
        Part::Program { path, .. }
        | Part::Upstream { path, .. }
        | Part::Text { path, .. }
        | Part::Link { path, .. }
        | Part::Directory { path, .. } => format!("/{path}"),
    };
    parts.iter().map(shown).collect::<Vec<_>>().join(", ")
}
