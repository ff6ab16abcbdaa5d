//! Mounts: tmpfs, bind mounts of paths inside volumes, and taking all of a pod's mounts away.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

/// Mounts a tmpfs unless something is mounted there.
pub fn tmpfs(path: &Path, size_bytes: Option<i64>) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let options = size_bytes.map(|size| format!("size={size}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())?;
    Ok(())
}

/// A mount point has another device than its parent.
fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().unwrap_or(path);
    Ok(std::fs::metadata(path)?.dev() != std::fs::metadata(parent)?.dev())
}

/// Unmounts everything below a directory, the deepest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mut points: Vec<PathBuf> = mount_points(&table).filter(|point| point.starts_with(&dir)).collect();
    points.reverse();
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The mount points of a `mountinfo`, in the order in which they were mounted.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
}

/// Undoes the kernel's octal escapes (`\040` is a space).
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// Binds a path inside a volume to `target`, so that a container cannot redirect it by a symbolic link afterwards.
/// A missing path becomes a directory. Returns the target.
pub fn sub_path(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    let inside = Path::new(sub_path);
    if inside.is_absolute() || inside.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "subPath must stay inside the volume"));
    }
    let source = open_inside(volume, inside)?;
    let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let is_dir = std::fs::metadata(&from)?.is_dir();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A mount of an earlier instance is replaced.
    if target.exists() {
        let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    if is_dir {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    mount(Some(&from), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(target.to_owned())
}

/// Opens a path that must resolve below `root`, making missing directories.
fn open_inside(root: &Path, inside: &Path) -> io::Result<OwnedFd> {
    let how = |resolve| OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    let root = openat2(AT_FDCWD, root, how(ResolveFlag::empty()))?;
    match openat2(&root, inside, how(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)) {
        Err(nix::errno::Errno::ENOENT) => {}
        result => return Ok(result?),
    }
    let mut dir = root;
    for part in inside.components().filter_map(|part| match part {
        Component::Normal(part) => Some(Path::new(part)),
        _ => None,
    }) {
        match mkdirat(&dir, part, Mode::from_bits_truncate(0o750)) {
            Err(nix::errno::Errno::EEXIST) => {}
            result => result?,
        }
        dir = openat2(&dir, part, how(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS))?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_and_unescaped() {
        let table = b"36 35 98:0 / /a\\040b rw - ext3 x rw\n37 36 0:5 / /a\\040b/c rw - tmpfs t rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/a b"), PathBuf::from("/a b/c")]);
    }

    #[test]
    fn a_sub_path_never_leaves_its_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        std::fs::create_dir(&volume).expect("a volume");
        std::os::unix::fs::symlink("/etc", volume.join("out")).expect("a link");
        for bad in ["../x", "/etc", "out", "out/passwd"] {
            assert!(sub_path(&volume, bad, &dir.path().join("t")).is_err(), "{bad}");
        }
        assert!(open_inside(&volume, Path::new("made/deep")).is_ok());
        assert!(volume.join("made/deep").is_dir());
    }
}
