//! Upstream's busybox, from the source archive that Debian carries, without Debian's changes: specs depend on the words
//! and habits of its shell.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::debian;

/// The static binary and the names it answers to.
pub struct Busybox {
    /// Its bytes.
    pub binary: Vec<u8>,
    /// The applets.
    pub applets: Vec<String>,
}

/// Builds it: the default configuration, static, without `tc`, which newer kernel headers do not support.
pub fn build(cache: &Path) -> anyhow::Result<Busybox> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    debian::source("busybox", cache, directory)?;
    let archive = original(directory)?;
    run(
        Command::new("tar").arg("-xf").arg(archive).args(["--strip-components=1", "--one-top-level=source"]),
        directory,
    )?;
    let source = directory.join("source");
    run(Command::new("make").args(["-s", "defconfig"]), &source)?;
    let config = std::fs::read_to_string(source.join(".config"))?
        .replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
        .replace("CONFIG_TC=y", "# CONFIG_TC is not set");
    std::fs::write(source.join(".config"), config)?;
    let jobs = std::thread::available_parallelism()?.to_string();
    run(Command::new("make").args(["-s", "-j", &jobs, "busybox"]).env("KCONFIG_NOTIMESTAMP", "1"), &source)?;
    let listed = Command::new(source.join("busybox")).arg("--list").output().context("running busybox")?;
    let applets = String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect();
    Ok(Busybox { binary: std::fs::read(source.join("busybox"))?, applets })
}

fn original(directory: &Path) -> anyhow::Result<PathBuf> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.to_string_lossy().contains(".orig.tar") {
            return Ok(path);
        }
    }
    anyhow::bail!("apt brought no original source of busybox")
}

fn run(command: &mut Command, directory: &Path) -> anyhow::Result<()> {
    let output = command.current_dir(directory).output().with_context(|| format!("running {command:?}"))?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
