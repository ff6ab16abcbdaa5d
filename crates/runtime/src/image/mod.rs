//! Images: what is kept of one, and the ways it comes here (archives, registries, made from files).

mod archive;
mod pull;
mod reference;
mod scratch;
mod store;
mod unpack;

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

pub use pull::{PullError, RegistryAuth, RegistryConfig};
pub use reference::{InvalidReference, Reference};
pub use scratch::{Content, ScratchConfig, ScratchFile};
pub use store::{ImageRecord, ImageStore, StoreError};

pub(crate) use pull::Puller;

/// What an image says about running it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageSettings {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    /// `name`, `uid` or either with `:group`; empty is root.
    pub user: String,
    /// Signal to stop it with; empty is SIGTERM.
    pub stop_signal: String,
}

/// The image configuration document, as far as it is read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigDocument {
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl From<RunConfig> for ImageSettings {
    fn from(config: RunConfig) -> Self {
        Self {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            stop_signal: config.stop_signal.unwrap_or_default(),
        }
    }
}

/// An OCI or docker manifest, as far as it is read.
#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// A pointer to content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

/// An index of manifests, one a platform.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Index {
    /// The manifest for this machine; one without a platform will do.
    fn for_this_machine(&self) -> Option<&Descriptor> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits = |platform: &Platform| {
            let variant = platform.variant.as_deref();
            platform.os == "linux"
                && platform.architecture == architecture
                && variant.is_none_or(|v| v.is_empty() || v == "v1" || v == "v8")
        };
        let exact = self.manifests.iter().find(|m| m.platform.as_ref().is_some_and(fits));
        exact.or_else(|| self.manifests.iter().find(|m| m.platform.is_none()))
    }
}

/// `sha256:<hex>` of some bytes.
fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes)))
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    context: ring::digest::Context,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, context: ring::digest::Context::new(&ring::digest::SHA256) }
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.context.finish()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_yields_this_machines_manifest() {
        let of = |arch: &str| {
            format!(r#"{{"digest":"{arch}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#)
        };
        let text = format!(r#"{{"manifests":[{},{},{}]}}"#, of("s390x"), of("arm64"), of("amd64"));
        let index: Index = serde_json::from_str(&text).unwrap();
        let expected = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        assert_eq!(index.for_this_machine().unwrap().digest, expected);
    }
}
