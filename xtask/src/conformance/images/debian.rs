//! Debian packages, resolved and downloaded by apt into a directory of its own: the machine's packages play no part.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What only people read.
const LEFT_OUT: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/bash-completion",
];

/// Unpacks `packages` and what they depend on into `tree`.
pub fn unpack(packages: &[&str], cache: &Path, tree: &Path) -> anyhow::Result<()> {
    let apt = Apt::prepare(cache)?;
    // Packages that are there already would not be printed.
    let nothing = tempfile::tempdir()?;
    std::fs::create_dir(nothing.path().join("partial"))?;
    let empty = format!("Dir::Cache::archives={}", nothing.path().display());
    let printed = apt.run(&["-o", &empty, "-y", "--print-uris", "install"], packages, cache)?;
    // Lines are: 'address' file size checksum.
    let mut files: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    anyhow::ensure!(!files.is_empty(), "apt names no packages for {packages:?}");
    apt.run(&["-y", "--download-only", "install"], packages, cache)?;
    // Its links /bin, /lib, … have to be there before others unpack through them.
    files.sort_by_key(|file| !file.starts_with("base-files_"));
    for file in files {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(apt.archives.join(file)).arg(tree);
        anyhow::ensure!(unpack.status().context("running dpkg-deb")?.success(), "{file} does not unpack");
    }
    for path in LEFT_OUT {
        let path = tree.join(path);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Downloads the source of a package into `directory`.
pub fn source(package: &str, cache: &Path, directory: &Path) -> anyhow::Result<()> {
    let apt = Apt::prepare(cache)?;
    apt.run(&["--download-only", "source"], &[package], directory)?;
    Ok(())
}

struct Apt {
    options: Vec<String>,
    archives: PathBuf,
}

impl Apt {
    /// Fetches the lists, once.
    fn prepare(cache: &Path) -> anyhow::Result<Self> {
        let root = cache.join("apt").join(SUITE);
        let archives = root.join("cache/archives");
        std::fs::create_dir_all(archives.join("partial"))?;
        std::fs::create_dir_all(root.join("lists/partial"))?;
        let sources = root.join("debian.sources");
        let options = [
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Dir::State::status=/dev/null".to_owned(),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::Etc::SourceList={}", sources.display()),
            format!("Dir::State::Lists={}", root.join("lists").display()),
            format!("Dir::Cache={}", root.join("cache").display()),
        ];
        let apt = Self { options: options.into(), archives };
        let updated = root.join("updated");
        if !updated.exists() {
            std::fs::write(
                &sources,
                format!(
                    "Types: deb deb-src\nURIs: http://deb.debian.org/debian\nSuites: {SUITE}\nComponents: main\n\
                     Signed-By: {KEYRING}\n"
                ),
            )?;
            apt.run(&["update"], &[], cache)?;
            std::fs::write(updated, "")?;
        }
        Ok(apt)
    }

    fn run(&self, arguments: &[&str], packages: &[&str], directory: &Path) -> anyhow::Result<String> {
        let mut command = Command::new("timeout");
        command.args(["600", "apt-get", "-qq"]).current_dir(directory);
        for option in &self.options {
            command.args(["-o", option]);
        }
        let output = command.args(arguments).args(packages).output().context("running apt-get")?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "apt-get {}: {complaint}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}
