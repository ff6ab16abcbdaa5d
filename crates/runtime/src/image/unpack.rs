//! A layer's tar stream becomes a directory that overlayfs can use as a lower one: whiteouts turn into
//! its markers, ownership, modes, times and attributes are kept. Every name is resolved within the
//! destination, so that a hostile layer cannot write anywhere else.

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use tar::{Archive, Entry, EntryType, Header};

use crate::snapshot::open_dir_in;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// AUFS keeps its own files under this prefix; they mean nothing here.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Undoes a layer's compression, whichever it is: gzip and zstd are known by their first bytes.
pub(crate) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    (&mut reader).take(4).read_to_end(&mut magic)?;
    let compressed = match magic.as_slice() {
        [0x1f, 0x8b, ..] => 1,
        [0x28, 0xb5, 0x2f, 0xfd] => 2,
        _ => 0,
    };
    let whole = io::Cursor::new(magic).chain(reader);
    Ok(match compressed {
        1 => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(64 << 10, whole))),
        2 => Box::new(ruzstd::decoding::StreamingDecoder::new(whole).map_err(io::Error::other)?),
        _ => Box::new(whole),
    })
}

/// Unpacks an (uncompressed) layer into `destination`, an empty directory. `lower` are the directories
/// of the layers below, the lowest first: directories a layer does not mention take after theirs.
/// Returns the bytes of the files.
pub(crate) fn unpack(layer: impl Read, destination: &Path, lower: &[PathBuf]) -> io::Result<u64> {
    let mut unpacker =
        Unpacker { root: File::open(destination)?, lower, last: None, directories: Vec::new(), size: 0 };
    for entry in Archive::new(layer).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        unpacker
            .entry(&path, &mut entry)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    }
    // Writing into a directory changes its time, so that comes last; the deepest ones first.
    for (path, modified) in unpacker.directories.iter().rev() {
        set_modified(path_in(&unpacker.root, path).as_path(), *modified)?;
    }
    Ok(unpacker.size)
}

struct Unpacker<'a> {
    root: File,
    lower: &'a [PathBuf],
    /// The directory of the entry before: most entries have the same.
    last: Option<(PathBuf, OwnedFd)>,
    directories: Vec<(PathBuf, u64)>,
    size: u64,
}

impl Unpacker<'_> {
    fn entry(&mut self, path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let relative = normalise(path)?;
        let Some(name) = relative.file_name().map(OsStr::to_owned) else {
            // The root itself: its attributes are the image's.
            return self.attributes(Path::new("."), entry);
        };
        let parent = relative.parent().unwrap_or(Path::new(""));
        let target = self.parent(parent)?.join(&name);
        if name.as_bytes().starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent, name.as_bytes());
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            if !std::fs::symlink_metadata(&target).is_ok_and(|found| found.is_dir()) {
                clear(&target)?;
                std::fs::create_dir(&target)?;
            }
            self.directories.push((relative.clone(), entry.header().mtime().unwrap_or(0)));
            return self.attributes(&target, entry);
        }
        clear(&target)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
                self.size += io::copy(entry, &mut file)?;
            }
            EntryType::Symlink => {
                let link = entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?;
                std::os::unix::fs::symlink(link, &target)?;
            }
            EntryType::Link => return self.hard_link(entry, &target),
            EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(&target, kind, entry.header())?,
            // Global headers and the like describe the archive, not a file.
            _ => return Ok(()),
        }
        self.attributes(&target, entry)
    }

    fn hard_link(&mut self, entry: &Entry<'_, impl Read>, target: &Path) -> io::Result<()> {
        let link = entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?;
        let source = normalise(&link)?;
        let name = source.file_name().ok_or_else(|| invalid("a link to the root"))?;
        let dir = open_dir_in(&self.root, source.parent().unwrap_or(Path::new("")))?;
        std::fs::hard_link(path_in(&dir, Path::new(name)), target)
    }

    /// A path to the directory `parent` that stays valid whatever the layer made of its components.
    fn parent(&mut self, parent: &Path) -> io::Result<PathBuf> {
        if self.last.as_ref().is_none_or(|(path, _)| path != parent) {
            self.make_missing(parent)?;
            self.last = Some((parent.to_owned(), open_dir_in(&self.root, parent)?));
        }
        let (_, dir) = self.last.as_ref().ok_or_else(|| invalid("no parent"))?;
        Ok(path_in(dir, Path::new("")))
    }

    fn make_missing(&self, path: &Path) -> io::Result<()> {
        let mut so_far = PathBuf::new();
        for component in path.components() {
            let dir = open_dir_in(&self.root, &so_far)?;
            so_far.push(component);
            let here = path_in(&dir, Path::new(component.as_os_str()));
            if std::fs::symlink_metadata(&here).is_ok() {
                continue;
            }
            std::fs::create_dir(&here)?;
            let below: Option<Metadata> = self.lower.iter().rev().find_map(|layer| {
                std::fs::symlink_metadata(layer.join(&so_far)).ok().filter(Metadata::is_dir)
            });
            if let Some(below) = below {
                std::os::unix::fs::lchown(&here, Some(below.uid()), Some(below.gid()))?;
                std::fs::set_permissions(&here, PermissionsExt::from_mode(below.mode() & 0o7777))?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: &Path, name: &[u8]) -> io::Result<()> {
        let dir = self.parent(parent)?;
        if name == OPAQUE_MARKER {
            return set_attribute(&dir, "trusted.overlay.opaque", b"y");
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = dir.join(OsStr::from_bytes(&name[WHITEOUT_PREFIX.len()..]));
        clear(&hidden)?;
        Ok(mknod(&hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?)
    }

    fn attributes(&self, target: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
        let rooted;
        let target = if target == Path::new(".") {
            rooted = path_in(&self.root, Path::new("."));
            rooted.as_path()
        } else {
            target
        };
        let header = entry.header();
        // Fields left empty are zero to other tools.
        let (uid, gid) = (header.uid().unwrap_or(0) as u32, header.gid().unwrap_or(0) as u32);
        let (mode, modified) = (header.mode()?, header.mtime().unwrap_or(0));
        let is_link = header.entry_type() == EntryType::Symlink;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(AT_FDCWD, target, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !is_link {
            let mode = Mode::from_bits_truncate(mode & 0o7777);
            fchmodat(AT_FDCWD, target, mode, FchmodatFlags::FollowSymlink)?;
        }
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            let name = extension.key().unwrap_or_default().strip_prefix("SCHILY.xattr.");
            // Overlayfs' own attributes are ours to set, never a layer's.
            if let Some(name) = name.filter(|name| !name.starts_with("trusted.")) {
                set_attribute(target, name, extension.value_bytes())?;
            }
        }
        set_modified(target, modified)
    }
}

/// The path below the root: no leading slash, no dots; parents are refused.
fn normalise(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid("a path that leads out of the layer"));
            }
        }
    }
    Ok(clean)
}

fn path_in(dir: &impl AsRawFd, name: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

fn clear(target: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(target),
        Ok(_) => std::fs::remove_file(target),
        Err(_) => Ok(()),
    }
}

fn make_node(target: &Path, kind: EntryType, header: &Header) -> io::Result<()> {
    let flag = match kind {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    let major = header.device_major().ok().flatten().unwrap_or(0);
    let minor = header.device_minor().ok().flatten().unwrap_or(0);
    Ok(mknod(target, flag, Mode::from_bits_truncate(0o600), makedev(major.into(), minor.into()))?)
}

fn set_modified(target: &Path, modified: u64) -> io::Result<()> {
    let time = TimeSpec::new(modified as i64, 0);
    Ok(utimensat(AT_FDCWD, target, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}

fn set_attribute(target: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: both strings end with a zero byte, and the value's length is its own.
    let outcome =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match nix::errno::Errno::result(outcome) {
        // A file system without such attributes loses them, as every container tool does.
        Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
