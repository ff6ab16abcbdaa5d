//! The conventions that are failing tests: crate edges, lengths, `unsafe`, first comments, what may not be in code.

mod edges;
mod source;

use std::path::{Path, PathBuf};

/// Checks the repository.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let complaints = complaints(root)?;
    anyhow::ensure!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    Ok(())
}

/// What is wrong in the repository, a line each.
fn complaints(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = edges::complaints(root)?;
    let mut files = Vec::new();
    for directory in ["crates", "xtask"] {
        collect(&root.join(directory), &mut files)?;
    }
    files.sort();
    anyhow::ensure!(!files.is_empty(), "no source in {}", root.display());
    for path in files {
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        found.extend(source::complaints(&name, &std::fs::read_to_string(&path)?));
    }
    Ok(found)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        if let Err(complaints) = super::run(crate::root()) {
            panic!("{complaints}");
        }
    }
}
