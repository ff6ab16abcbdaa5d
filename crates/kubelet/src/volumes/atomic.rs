//! Files that change all at once: a directory of the new version, and one symbolic link (`..data`) that is swung over.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use jiff::Timestamp;

use super::set_mode;

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner, if not root.
    pub owner: Option<u32>,
}

/// Files by their path below the volume.
pub type Files = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings the directory to exactly these files; does nothing when it has them.
pub fn write(dir: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    let group = group.and_then(|group| u32::try_from(group).ok());
    super::set_mode(dir, 0o755)?;
    if let Some(group) = group {
        chown(dir, None, Some(group))?;
        set_mode(dir, 0o2775)?;
    }
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && same(&dir.join(old), files)
    {
        return link_all(dir, files);
    }
    let version = Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%N").to_string();
    let new = dir.join(&version);
    std::fs::create_dir(&new)?;
    set_mode(&new, 0o755)?;
    for (name, file) in files {
        write_file(&new, name, file, group)?;
    }
    let link = dir.join(DATA_NEW);
    let _ = std::fs::remove_file(&link);
    symlink(&version, &link)?;
    std::fs::rename(&link, dir.join(DATA))?;
    link_all(dir, files)?;
    match old {
        Some(old) => std::fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn write_file(dir: &Path, name: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let path = dir.join(name);
    let parents: Vec<&Path> =
        Path::new(name).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let parent = dir.join(parent);
        std::fs::create_dir_all(&parent)?;
        set_mode(&parent, 0o755)?;
    }
    std::fs::write(&path, &file.data)?;
    // Readable for the group that owns the volume.
    set_mode(&path, if group.is_some() { file.mode | 0o440 } else { file.mode })?;
    if group.is_some() || file.owner.is_some() {
        chown(&path, file.owner, group)?;
    }
    Ok(())
}

/// The links users see: the first component of every path, into `..data`; those of files that are gone go.
fn link_all(dir: &Path, files: &Files) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<&str> =
        files.keys().filter_map(|name| name.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a version holds exactly these files.
fn same(version: &Path, files: &Files) -> bool {
    let equal = |(name, file): (&String, &File)| {
        std::fs::read(version.join(name)).is_ok_and(|data| data == file.data)
    };
    files.iter().all(equal) && count(version).is_ok_and(|count| count == files.len())
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o644, owner: None };
        list.iter().map(|(name, data)| ((*name).to_owned(), file(data))).collect()
    }

    #[test]
    fn a_new_version_replaces_the_old_and_an_equal_one_does_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
        write(dir.path(), &files(&[("a", "1"), ("d/e", "2")]), None).expect("written");
        assert_eq!((read("a").as_deref(), read("d/e").as_deref()), (Some("1"), Some("2")));
        let version = std::fs::read_link(dir.path().join("..data")).expect("a link");
        write(dir.path(), &files(&[("a", "1"), ("d/e", "2")]), None).expect("written");
        assert_eq!(std::fs::read_link(dir.path().join("..data")).expect("a link"), version);
        write(dir.path(), &files(&[("a", "3")]), None).expect("written");
        assert_eq!((read("a").as_deref(), read("d/e")), (Some("3"), None));
        assert!(!dir.path().join(version).exists(), "the old version is gone");
        let names = std::fs::read_dir(dir.path()).expect("a listing").count();
        assert_eq!(names, 3, "a, ..data and one version");
    }
}
