//! Layers as tars in memory, unpacked into temporary directories. Device nodes and owners need root.

use std::os::unix::fs::FileTypeExt;

use super::*;

fn layer(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        header.set_size(if link { 0 } else { content.len() as u64 });
        // Names go in unchecked: hostile ones are the point.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        if link {
            header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, if link { &[][..] } else { content.as_bytes() }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn skip_without_root() -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        eprintln!("skipped: needs root");
    }
    skip
}

#[test]
fn files_keep_owner_mode_time_and_links() {
    if skip_without_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tar = layer(&[
        ("./d/", EntryType::Directory, ""),
        ("./d/f", EntryType::Regular, "text"),
        ("d/hard", EntryType::Link, "d/f"),
        ("d/soft", EntryType::Symlink, "/etc/passwd"),
        ("null", EntryType::Char, ""),
    ]);
    let size = unpack(tar.as_slice(), dir.path(), &[]).unwrap();
    assert_eq!(size, 4);
    let file = std::fs::metadata(dir.path().join("d/f")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.nlink()),
        (7, 8, 0o640, 1000, 2)
    );
    let parent = std::fs::metadata(dir.path().join("d")).unwrap();
    assert_eq!((parent.mode() & 0o7777, parent.mtime()), (0o750, 1000));
    assert_eq!(std::fs::read_link(dir.path().join("d/soft")).unwrap(), Path::new("/etc/passwd"));
    assert!(std::fs::metadata(dir.path().join("null")).unwrap().file_type().is_char_device());
}

#[test]
fn whiteouts_become_overlay_markers() {
    if skip_without_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tar = layer(&[
        ("d/", EntryType::Directory, ""),
        ("d/.wh..wh..opq", EntryType::Regular, ""),
        (".wh.gone", EntryType::Regular, ""),
    ]);
    unpack(tar.as_slice(), dir.path(), &[]).unwrap();
    let gone = std::fs::symlink_metadata(dir.path().join("gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(!dir.path().join(".wh.gone").exists() && !dir.path().join("d/.wh..wh..opq").exists());
}

#[test]
fn nothing_is_written_outside_the_layer() {
    if skip_without_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(layer(&[("../evil", EntryType::Regular, "x")]).as_slice(), dir.path(), &[]).is_err());
    let link = outside.path().to_str().unwrap();
    // Through a link to the outside the name resolves within the layer, where there is no such directory.
    let tar = layer(&[("out", EntryType::Symlink, link), ("out/evil", EntryType::Regular, "x")]);
    assert!(unpack(tar.as_slice(), dir.path(), &[]).is_err());
    assert!(!outside.path().join("evil").exists());
}

#[test]
fn a_directory_the_layer_only_implies_takes_after_the_one_below() {
    if skip_without_root() {
        return;
    }
    let below = tempfile::tempdir().unwrap();
    std::fs::create_dir(below.path().join("tmp")).unwrap();
    std::fs::set_permissions(below.path().join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tar = layer(&[("tmp/f", EntryType::Regular, "x")]);
    unpack(tar.as_slice(), dir.path(), &[below.path().to_owned()]).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("tmp")).unwrap().mode() & 0o7777, 0o1777);
}
