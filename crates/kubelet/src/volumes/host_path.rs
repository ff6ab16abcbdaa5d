//! `hostPath` volumes: checks the type, creates what the type allows.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::{SourceError, io_at, set_mode};

/// Checks that a host path is what its type says.
pub fn prepare(path: &Path, type_: &str) -> Result<(), SourceError> {
    let shown = path.display();
    let failed =
        |what: &str| Err(SourceError::Refused(format!("hostPath type check failed: {shown} is not {what}")));
    let found = std::fs::metadata(path).ok();
    match (type_, found) {
        ("", _) => {
            // Without a type nothing is checked; a missing path becomes a directory, as runtimes have it.
            if !path.exists() {
                std::fs::create_dir_all(path).map_err(io_at(path))?;
            }
            Ok(())
        }
        ("DirectoryOrCreate", None) => {
            std::fs::create_dir_all(path).and_then(|()| set_mode(path, 0o755)).map_err(io_at(path))
        }
        ("FileOrCreate", None) => std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|_| set_mode(path, 0o644))
            .map_err(io_at(path)),
        ("Directory" | "DirectoryOrCreate", Some(meta)) if meta.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(meta)) if meta.is_file() => Ok(()),
        ("Socket", Some(meta)) if meta.file_type().is_socket() => Ok(()),
        ("CharDevice", Some(meta)) if meta.file_type().is_char_device() => Ok(()),
        ("BlockDevice", Some(meta)) if meta.file_type().is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => failed("a directory"),
        ("File" | "FileOrCreate", _) => failed("a file"),
        ("Socket", _) => failed("a socket file"),
        ("CharDevice", _) => failed("a character device"),
        ("BlockDevice", _) => failed("a block device"),
        (other, _) => Err(SourceError::Refused(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_missing_paths_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |name: &str, type_: &str, fine: bool| {
            let result = prepare(&dir.path().join(name), type_);
            assert_eq!(result.is_ok(), fine, "{name} as {type_}: {result:?}");
        };
        check("a", "Directory", false);
        check("a", "DirectoryOrCreate", true);
        check("a", "Directory", true);
        check("a", "File", false);
        check("b", "FileOrCreate", true);
        check("b", "Socket", false);
        check("c", "Nonsense", false);
    }
}
