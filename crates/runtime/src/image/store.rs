//! The images of this node on disk. The directory is the truth and locks guard it, so a command line
//! tool and a running server can use it side by side:
//!
//! ```text
//! images/<hex of the id>.json   one record an image
//! layers/<chain>                an unpacked layer, ready to be an overlay's lower directory
//! layers/<chain>.json           marks the layer as whole
//! ingest/                       whatever is on its way in; swept when nobody works
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::reference::{InvalidReference, Reference, is_digest};
use super::unpack;
use super::{ConfigDocument, Hashing, ImageSettings, digest_of};
use crate::files;

/// Characters of a chain id's hex that name a layer's directory. Overlay options are limited to a page,
/// so names are short; 80 bits do not collide by accident.
const LAYER_NAME_CHARS: usize = 20;

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing the store failed.
    #[error("image store: {0}")]
    Io(#[from] io::Error),
    /// The archive or manifest is not one.
    #[error("invalid image: {0}")]
    Invalid(String),
    /// Content does not have the digest it was announced with.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest {
        /// What the manifest or configuration says.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A reference names nothing.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the configuration: the image's id.
    pub id: String,
    /// The configuration document, byte for byte.
    pub config: String,
    /// Bytes of its layers as they came, and of its documents.
    pub size: u64,
    /// `name:tag`, normalised.
    pub repo_tags: Vec<String>,
    /// `name@digest`, normalised.
    pub repo_digests: Vec<String>,
    /// Layer directories, the lowest first.
    pub layers: Vec<String>,
}

impl ImageRecord {
    pub(crate) fn settings(&self) -> ImageSettings {
        let document: ConfigDocument = serde_json::from_str(&self.config).unwrap_or_default();
        document.config.unwrap_or_default().into()
    }

    /// Whether `name` (an id, or a normalised reference) is this image.
    fn answers_to(&self, name: &Lookup) -> bool {
        match name {
            Lookup::Id(id) => self.id == *id || self.id.strip_prefix("sha256:") == Some(id),
            Lookup::Reference(reference) => match &reference.digest {
                Some(digest) => self.repo_digests.contains(&reference.repo_digest(digest)),
                None => reference.repo_tag().is_some_and(|tag| self.repo_tags.contains(&tag)),
            },
        }
    }
}

enum Lookup {
    Id(String),
    Reference(Reference),
}

impl Lookup {
    fn parse(name: &str) -> Result<Self, InvalidReference> {
        let is_hex = name.len() == 64 && is_digest(&format!("sha256:{name}"));
        if is_digest(name) || is_hex {
            Ok(Self::Id(name.to_owned()))
        } else {
            Reference::parse(name).map(Self::Reference)
        }
    }
}

/// The store. Cheap to open; all calls block.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

/// Somebody is bringing layers in or mounting them: nothing may be collected.
pub(crate) struct Ingest {
    _lock: Flock<File>,
    /// A directory of one's own, on the store's file system.
    pub dir: PathBuf,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let _ = files::remove_tree(&self.dir);
    }
}

/// Layers of an image, unpacked one after the other.
pub(crate) struct Layering {
    /// Directories so far, the lowest first.
    pub layers: Vec<String>,
    chain: String,
}

impl ImageStore {
    /// Opens (or makes) the store below the runtime's root directory.
    pub fn open(runtime_root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: runtime_root.to_owned() };
        for dir in [store.images_dir(), store.layers_dir(), store.ingest_dir()] {
            std::fs::create_dir_all(dir)?;
        }
        Ok(store)
    }

    fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn lock(&self, name: &str, how: FlockArg) -> io::Result<Flock<File>> {
        let file = File::options().create(true).append(true).open(self.root.join(name))?;
        Flock::lock(file, how).map_err(|(_, error)| error.into())
    }

    /// Keeps layers from being collected while held.
    pub(crate) fn ingest(&self) -> io::Result<Ingest> {
        let lock = self.lock("layers.lock", FlockArg::LockShared)?;
        let dir = self.ingest_dir().join(hex::encode(rand::random::<[u8; 8]>()));
        std::fs::create_dir_all(&dir)?;
        Ok(Ingest { _lock: lock, dir })
    }

    /// All images, in the order of their ids.
    pub fn list(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let mut records = Vec::new();
        for path in files::entries(&self.images_dir()) {
            if path.extension().is_some_and(|extension| extension == "json") {
                records.extend(files::read_json::<ImageRecord>(&path)?);
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// The image with this id (with or without `sha256:`) or reference.
    pub fn find(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let lookup = Lookup::parse(name)?;
        Ok(self.list()?.into_iter().find(|record| record.answers_to(&lookup)))
    }

    /// Removes the image and every name it has; `false` when there was none. Layers that no image and no
    /// container uses go too, unless somebody is bringing some in: then with the next removal.
    pub fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let found = {
            let _lock = self.lock("images.lock", FlockArg::LockExclusive)?;
            let found = self.find(name)?;
            if let Some(record) = &found {
                std::fs::remove_file(self.record_path(&record.id))?;
            }
            found
        };
        self.collect()?;
        Ok(found.is_some())
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.images_dir().join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    /// Adds an image, or names to one that is there. A tag belongs to one image only.
    pub(crate) fn put(&self, mut record: ImageRecord) -> Result<ImageRecord, StoreError> {
        let _lock = self.lock("images.lock", FlockArg::LockExclusive)?;
        for mut other in self.list()? {
            if other.id == record.id {
                for (names, old) in
                    [(&mut record.repo_tags, other.repo_tags), (&mut record.repo_digests, other.repo_digests)]
                {
                    names.extend(old);
                    names.sort();
                    names.dedup();
                }
            } else if other.repo_tags.iter().any(|tag| record.repo_tags.contains(tag)) {
                other.repo_tags.retain(|tag| !record.repo_tags.contains(tag));
                files::write_json(&self.record_path(&other.id), &other)?;
            }
        }
        files::write_json(&self.record_path(&record.id), &record)?;
        Ok(record)
    }

    /// Starts an image's layers.
    pub(crate) fn layering(&self) -> Layering {
        Layering { layers: Vec::new(), chain: String::new() }
    }

    /// Unpacks the next layer unless it is there already. `diff_id` is the digest of the uncompressed tar.
    pub(crate) fn add_layer<R: Read>(
        &self,
        layering: &mut Layering,
        ingest: &Ingest,
        diff_id: &str,
        open: impl FnOnce() -> io::Result<R>,
    ) -> Result<(), StoreError> {
        let name = layering.advance(diff_id);
        if !self.has_layer(&name) {
            let lower: Vec<PathBuf> = layering.layers[..layering.layers.len() - 1]
                .iter()
                .map(|l| self.layers_dir().join(l))
                .collect();
            let staging = ingest.dir.join(&name);
            std::fs::create_dir_all(&staging)?;
            let mut stream = Hashing::new(unpack::decompress(open()?)?);
            let size = unpack::unpack(&mut stream, &staging, &lower)?;
            // A tar ends before its stream does.
            io::copy(&mut stream, &mut io::sink())?;
            let actual = stream.digest();
            if actual != diff_id {
                return Err(StoreError::Digest { expected: diff_id.to_owned(), actual });
            }
            self.commit_layer(&staging, &name, size)?;
        }
        Ok(())
    }

    /// Whether a layer is whole.
    pub(crate) fn has_layer(&self, name: &str) -> bool {
        self.layers_dir().join(format!("{name}.json")).exists()
    }

    /// Moves an unpacked layer to its place and marks it as whole, unless somebody else brought the same one meanwhile: a
    /// layer that has its mark is in use and never changes.
    pub(crate) fn commit_layer(&self, staging: &Path, name: &str, size: u64) -> Result<(), StoreError> {
        let _lock = self.lock("commit.lock", FlockArg::LockExclusive)?;
        if self.has_layer(name) {
            return Ok(());
        }
        let place = self.layers_dir().join(name);
        // What a crash left without its mark.
        files::remove_tree(&place)?;
        std::fs::rename(staging, &place)?;
        nix::unistd::syncfs(File::open(&place)?).map_err(io::Error::from)?;
        files::write_json(&self.layers_dir().join(format!("{name}.json")), &size)?;
        Ok(())
    }

    /// Removes layers nobody uses and whatever a crash left behind. Does nothing while layers come in.
    pub(crate) fn collect(&self) -> Result<(), StoreError> {
        let Ok(_lock) = self.lock("layers.lock", FlockArg::LockExclusiveNonblock) else { return Ok(()) };
        let mut used: Vec<String> = self.list()?.into_iter().flat_map(|record| record.layers).collect();
        for container in files::entries(&self.root.join("containers")) {
            let record = files::read_json::<LayerUser>(&container.join("record.json"));
            used.extend(record.ok().flatten().into_iter().flat_map(|user| user.layers));
        }
        let unused = files::entries(&self.layers_dir()).into_iter().filter(|path| {
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            used.iter().all(|layer| layer != name)
        });
        let (marks, layers): (Vec<_>, Vec<_>) = unused.partition(|path| path.extension().is_some());
        // Whatever cuts this short, no mark stands for a layer that is not whole.
        marks.iter().try_for_each(std::fs::remove_file)?;
        layers.iter().try_for_each(|layer| files::remove_tree(layer))?;
        for path in files::entries(&self.ingest_dir()) {
            files::remove_tree(&path)?;
        }
        Ok(())
    }

    /// Writes an image whose layers are all here.
    pub(crate) fn commit(
        &self,
        config: Vec<u8>,
        layering: Layering,
        size: u64,
        reference: Option<&Reference>,
        manifest_digest: Option<&str>,
    ) -> Result<ImageRecord, StoreError> {
        let id = digest_of(&config);
        let config =
            String::from_utf8(config).map_err(|_| StoreError::Invalid("configuration is no text".into()))?;
        self.put(ImageRecord {
            id,
            config,
            size,
            repo_tags: reference.and_then(Reference::repo_tag).into_iter().collect(),
            repo_digests: reference.zip(manifest_digest).map(|(r, d)| r.repo_digest(d)).into_iter().collect(),
            layers: layering.layers,
        })
    }

    /// Bytes and inodes of the file system's share that images use.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let sizes = files::entries(&self.layers_dir());
        let marks = sizes.iter().filter(|path| path.extension().is_some());
        let mut count = 0;
        let bytes = marks
            .filter_map(|path| files::read_json::<u64>(path).ok().flatten())
            .inspect(|_| count += 1)
            .sum();
        (bytes, count)
    }
}

/// The part of a container's record that keeps layers alive.
#[derive(Deserialize)]
struct LayerUser {
    #[serde(default)]
    layers: Vec<String>,
}

impl Layering {
    /// Names the next layer by its chain id (image specification, "Layer ChainID").
    pub fn advance(&mut self, diff_id: &str) -> String {
        self.chain = if self.chain.is_empty() {
            diff_id.to_owned()
        } else {
            digest_of(format!("{} {diff_id}", self.chain).as_bytes())
        };
        let hex = self.chain.trim_start_matches("sha256:");
        let name: String = hex.chars().take(LAYER_NAME_CHARS).collect();
        self.layers.push(name.clone());
        name
    }
}

/// The digests of an image's uncompressed layers.
pub(crate) fn diff_ids(config: &[u8]) -> Result<Vec<String>, StoreError> {
    let document: ConfigDocument = serde_json::from_slice(config)
        .map_err(|error| StoreError::Invalid(format!("configuration: {error}")))?;
    match document.rootfs.diff_ids.iter().find(|id| !is_digest(id)) {
        Some(id) => Err(StoreError::Invalid(format!("unsupported digest {id:?}"))),
        None => Ok(document.rootfs.diff_ids),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_layer_that_several_bring_at_once_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(dir.path()).expect("a store");
        let together = std::sync::Barrier::new(16);
        let bring = || {
            let ingest = store.ingest().expect("a place");
            let staging = ingest.dir.join("layer");
            std::fs::create_dir(&staging).expect("a layer");
            std::fs::write(staging.join("file"), "content").expect("a file");
            together.wait();
            store.commit_layer(&staging, "layer", 7).expect("the layer is there");
            std::fs::metadata(store.layers_dir().join("layer")).expect("the layer").ino()
        };
        let seen: Vec<u64> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16).map(|_| scope.spawn(bring)).collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    }
    #[test]
    fn a_removal_that_is_cut_short_leaves_no_mark() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(dir.path()).expect("a store");
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            // Not a directory: its removal fails.
            std::fs::write(store.layers_dir().join(name), "").expect("a file");
            std::fs::write(store.layers_dir().join(format!("{name}.json")), "7").expect("a mark");
        }
        store.collect().expect_err("a layer cannot be removed");
        assert!(files::entries(&store.layers_dir()).iter().all(|path| path.extension().is_none()));
    }
}
