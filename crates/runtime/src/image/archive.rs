//! `docker save` archives and OCI layouts in a tar (plain or compressed) come into the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, Ingest, StoreError, diff_ids};
use super::{Descriptor, Hashing, Index, Manifest, unpack};

/// Deepest nesting of indexes in an OCI layout.
const MAX_INDEX_DEPTH: usize = 4;

/// An entry of a docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An archive, spread out on disk.
struct Archive {
    files: BTreeMap<PathBuf, PathBuf>,
}

impl ImageStore {
    /// Imports every image of an archive; returns their records.
    pub fn import(&self, archive: impl Read) -> Result<Vec<ImageRecord>, StoreError> {
        let ingest = self.ingest()?;
        let archive = Archive::spread(archive, &ingest.dir.join("archive"))?;
        if archive.has("manifest.json") {
            self.import_docker(&archive, &ingest)
        } else if archive.has("index.json") {
            self.import_oci(&archive, &ingest)
        } else {
            Err(StoreError::Invalid("neither a docker nor an OCI archive".to_owned()))
        }
    }

    fn import_docker(&self, archive: &Archive, ingest: &Ingest) -> Result<Vec<ImageRecord>, StoreError> {
        let images: Vec<DockerImage> = archive.json("manifest.json")?;
        let mut records = Vec::new();
        for image in images {
            let config = archive.bytes(&image.config)?;
            let (layering, size) = self.add_layers(archive, ingest, &config, &image.layers)?;
            let mut record = self.commit(config, layering, size, None, None)?;
            for tag in image.repo_tags.into_iter().flatten() {
                record.repo_tags.extend(Reference::parse(&tag)?.repo_tag());
            }
            records.push(self.put(record)?);
        }
        Ok(records)
    }

    fn import_oci(&self, archive: &Archive, ingest: &Ingest) -> Result<Vec<ImageRecord>, StoreError> {
        let index: Index = archive.json("index.json")?;
        let mut records = Vec::new();
        for descriptor in &index.manifests {
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .find_map(|key| descriptor.annotations.get(*key));
            let reference = name.map(|name| Reference::parse(name)).transpose()?;
            let manifest_path = archive.manifest_for_this_machine(descriptor)?;
            let manifest: Manifest = archive.json(&manifest_path)?;
            let config = archive.blob(&manifest.config.digest)?;
            let paths: Vec<String> = manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
            let (layering, size) = self.add_layers(archive, ingest, &config, &paths)?;
            // The name stands for what it points to, an index or a manifest.
            records.push(self.commit(
                config,
                layering,
                size,
                reference.as_ref(),
                Some(&descriptor.digest),
            )?);
        }
        Ok(records)
    }

    fn add_layers(
        &self,
        archive: &Archive,
        ingest: &Ingest,
        config: &[u8],
        paths: &[String],
    ) -> Result<(super::store::Layering, u64), StoreError> {
        let diff_ids = diff_ids(config)?;
        if diff_ids.len() != paths.len() {
            return Err(StoreError::Invalid(format!("{} layers, {} described", paths.len(), diff_ids.len())));
        }
        let mut layering = self.layering();
        let mut size = config.len() as u64;
        for (diff_id, path) in diff_ids.iter().zip(paths) {
            let file = archive.file(path)?;
            size += std::fs::metadata(file)?.len();
            self.add_layer(&mut layering, ingest, diff_id, || File::open(file))?;
        }
        Ok((layering, size))
    }
}

impl Archive {
    fn spread(archive: impl Read, dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)?;
        let mut files = BTreeMap::new();
        let mut links = Vec::new();
        for entry in tar::Archive::new(unpack::decompress(archive)?).entries()? {
            let mut entry = entry?;
            let path = plain(&entry.path()?);
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let file = dir.join(files.len().to_string());
                    io::copy(&mut entry, &mut File::create(&file)?)?;
                    files.insert(path, file);
                }
                // Old docker versions link equal layers.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name()? {
                        let base = path.parent().unwrap_or(Path::new(""));
                        links.push((plain(&base.join(&target)), plain(&target), path.clone()));
                    }
                }
                _ => {}
            }
        }
        for (relative, absolute, path) in links {
            if let Some(file) = files.get(&relative).or_else(|| files.get(&absolute)).cloned() {
                files.insert(path, file);
            }
        }
        Ok(Self { files })
    }

    fn has(&self, path: &str) -> bool {
        self.files.contains_key(Path::new(path))
    }

    fn file(&self, path: &str) -> Result<&Path, StoreError> {
        let missing = || StoreError::Invalid(format!("{path} is missing from the archive"));
        self.files.get(&plain(Path::new(path))).map(PathBuf::as_path).ok_or_else(missing)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        Ok(std::fs::read(self.file(path)?)?)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, StoreError> {
        serde_json::from_slice(&self.bytes(path)?)
            .map_err(|error| StoreError::Invalid(format!("{path}: {error}")))
    }

    /// A small blob, verified.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, StoreError> {
        let mut reader = Hashing::new(File::open(self.file(&blob_path(digest))?)?);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        let actual = reader.digest();
        if actual == digest {
            Ok(bytes)
        } else {
            Err(StoreError::Digest { expected: digest.to_owned(), actual })
        }
    }

    fn manifest_for_this_machine(&self, descriptor: &Descriptor) -> Result<String, StoreError> {
        let mut digest = descriptor.digest.clone();
        for _ in 0..MAX_INDEX_DEPTH {
            let bytes = self.blob(&digest)?;
            let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return Ok(blob_path(&digest)) };
            let here = index.for_this_machine();
            digest = here
                .ok_or_else(|| StoreError::Invalid("no manifest for this platform".into()))?
                .digest
                .clone();
        }
        Err(StoreError::Invalid("indexes nest too deeply".to_owned()))
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// A path inside the archive without dots, for looking up only.
fn plain(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}
