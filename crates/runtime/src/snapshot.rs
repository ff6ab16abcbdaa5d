//! A container's root file system: an overlay mount over its image's layers, and looking into one
//! without being led out of it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

/// Directories of one container's snapshot.
pub(crate) struct Snapshot {
    pub rootfs: PathBuf,
    upper: PathBuf,
    work: PathBuf,
}

impl Snapshot {
    /// The snapshot kept in a container's directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { rootfs: dir.join("rootfs"), upper: dir.join("upper"), work: dir.join("work") }
    }

    /// What the container wrote.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// Mounts the layers (directory names below `layers_dir`, the lowest first) with room to write.
    pub fn mount(&self, layers_dir: &Path, layers: &[String]) -> io::Result<()> {
        for dir in [&self.rootfs, &self.upper, &self.work] {
            std::fs::create_dir_all(dir)?;
        }
        let mut options = lower_option(layers_dir, layers)?;
        for (name, path) in [(",upperdir=", &self.upper), (",workdir=", &self.work)] {
            options.text.push(name);
            options.text.push(path);
        }
        // Nothing of a container survives a power loss, so its writes need no barriers.
        let mut volatile = options.text.clone();
        volatile.push(",volatile");
        match mount_overlay(&self.rootfs, &volatile, MsFlags::empty()) {
            Err(Errno::EINVAL) => Ok(mount_overlay(&self.rootfs, &options.text, MsFlags::empty())?),
            other => Ok(other?),
        }
    }

    /// Undoes [`Snapshot::mount`]; that it is not mounted is fine.
    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.rootfs)
    }
}

/// Mounts layers read-only at `target` (image volumes).
pub(crate) fn mount_read_only(target: &Path, layers_dir: &Path, layers: &[String]) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    if let [only] = layers {
        let source = layers_dir.join(only);
        mount(Some(&source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        return Ok(mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?);
    }
    let options = lower_option(layers_dir, layers)?;
    Ok(mount_overlay(target, &options.text, MsFlags::MS_RDONLY)?)
}

/// Unmounts whatever is at `target`.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Mounts a tmpfs for the pod's `/dev/shm`.
pub(crate) fn mount_shm(target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("shm"), target, Some("tmpfs"), flags, Some("mode=1777,size=64m"))?)
}

/// A mount option and the directory its paths lead through.
struct LowerOption {
    text: OsString,
    /// Open for as long as the paths are to mean something.
    _dir: File,
}

/// Options are limited to a page: paths go through a descriptor to be short enough for 127 layers.
fn lower_option(layers_dir: &Path, layers: &[String]) -> io::Result<LowerOption> {
    let dir = File::open(layers_dir)?;
    let base = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let paths: Vec<String> = layers.iter().rev().map(|layer| format!("{base}/{layer}")).collect();
    Ok(LowerOption { text: format!("lowerdir={}", paths.join(":")).into(), _dir: dir })
}

fn mount_overlay(target: &Path, options: &OsString, flags: MsFlags) -> nix::Result<()> {
    mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_bytes()))
}

/// Opens a file below `root` for reading; links, absolute ones too, are resolved within `root`.
pub(crate) fn open_in(root: &Path, relative: &str) -> io::Result<File> {
    let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(&File::open(root)?, relative, how)?))
}

/// Opens a directory below `root` as a handle; links are resolved within `root`.
pub(crate) fn open_dir_in(root: &impl std::os::fd::AsFd, relative: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    Ok(openat2(root, relative, how)?)
}

/// Makes a directory and those above it below `root`, as a container's working directory is made.
pub(crate) fn create_dir_in(root: &Path, path: &Path) -> io::Result<()> {
    let root = File::open(root)?;
    let mut so_far = PathBuf::new();
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let parent = open_dir_in(&root, &so_far)?;
        match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => so_far.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
