//! One layer of an image: a tar without dates and owners, so that equal content is equal bytes.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{busybox, debian};
use crate::conformance::digest::Digest;
use crate::conformance::go::Programs;

/// Counts changes in how layers are made of the same pieces.
const MAKING: u8 = 2;

/// A piece of a layer. Paths are relative to the image's root.
#[derive(Debug)]
pub enum Part {
    /// Packages with all they depend on, unpacked and not configured.
    Debian(&'static [&'static str]),
    /// Upstream's busybox with a link for every applet, in `bin`.
    Busybox,
    /// One of the Go programs.
    Program {
        /// Its name.
        name: &'static str,
        /// Where it goes.
        path: &'static str,
        /// Its mode.
        mode: u32,
    },
    /// A file of the module `k8s.io/kubernetes`.
    Upstream {
        /// Its path there.
        source: &'static str,
        /// Where it goes.
        path: &'static str,
    },
    /// A file of ours.
    Text {
        /// Where it goes.
        path: &'static str,
        /// What it says.
        text: &'static str,
    },
    /// A symbolic link.
    Link {
        /// Where it goes.
        path: &'static str,
        /// Where it leads.
        target: &'static str,
    },
    /// A directory.
    Directory {
        /// Where it goes.
        path: &'static str,
        /// Its mode.
        mode: u32,
    },
}

/// What a layer is made of, as the name under which its blob is remembered.
pub fn key(parts: &[Part], programs: &Programs) -> anyhow::Result<String> {
    let mut digest = Digest::default();
    digest.add(&[MAKING]);
    for part in parts {
        digest.add(format!("{part:?}").as_bytes());
        match part {
            Part::Program { name, .. } => digest.add(&std::fs::read(programs.path(name))?),
            Part::Upstream { source, .. } => digest.add(&std::fs::read(programs.upstream().join(source))?),
            _ => {}
        }
    }
    Ok(digest.hex())
}

/// Makes the tar.
///
/// # Errors
/// A piece cannot be made.
pub fn tar(parts: &[Part], programs: &Programs, cache: &Path) -> anyhow::Result<Vec<u8>> {
    let mut layer = Layer(tar::Builder::new(Vec::new()));
    for part in parts {
        match part {
            Part::Debian(packages) => {
                let tree = tempfile::tempdir()?;
                debian::unpack(packages, cache, tree.path())?;
                layer.tree(tree.path(), tree.path())?;
            }
            Part::Busybox => {
                let busybox = busybox::build(cache)?;
                layer.file("bin/busybox", 0o755, &busybox.binary)?;
                for applet in busybox.applets.iter().filter(|applet| *applet != "busybox") {
                    layer.link(&format!("bin/{applet}"), Path::new("busybox"))?;
                }
            }
            Part::Program { name, path, mode } => {
                layer.file(path, *mode, &std::fs::read(programs.path(name))?)?
            }
            Part::Upstream { source, path } => {
                layer.file(path, 0o644, &std::fs::read(programs.upstream().join(source))?)?;
            }
            Part::Text { path, text } => layer.file(path, 0o644, text.as_bytes())?,
            Part::Link { path, target } => layer.link(path, Path::new(target))?,
            Part::Directory { path, mode } => layer.directory(path, *mode)?,
        }
    }
    Ok(layer.0.into_inner()?)
}

struct Layer<W: Write>(tar::Builder<W>);

impl<W: Write> Layer<W> {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        let mut header = header(tar::EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, target: &Path) -> anyhow::Result<()> {
        Ok(self.0.append_link(&mut header(tar::EntryType::Symlink, 0o777), path, target)?)
    }

    fn directory(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let path = format!("{path}/");
        Ok(self.0.append_data(&mut header(tar::EntryType::Directory, mode), path, std::io::empty())?)
    }

    /// Everything below `directory`, in the order of its names.
    fn tree(&mut self, root: &Path, directory: &Path) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            let metadata = path.symlink_metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                self.link(&name, &std::fs::read_link(&path)?)?;
            } else if metadata.is_dir() {
                self.directory(&name, mode)?;
                self.tree(root, &path)?;
            } else if metadata.is_file() {
                self.file(&name, mode, &std::fs::read(&path)?)?;
            }
        }
        Ok(())
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
