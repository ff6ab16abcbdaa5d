//! The image that tests use as a client in pods: busybox from this machine, as a docker archive.

use std::io;
use std::path::Path;

use anyhow::Context;

/// The name of the image.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";

const APPLETS: [&str; 16] = [
    "sh", "sleep", "cat", "echo", "nc", "printf", "nslookup", "hostname", "ls", "touch", "rm", "kill", "id",
    "tail", "tar", "test",
];

/// Writes an archive of the image, as `docker save` would.
///
/// # Errors
/// This machine has no static busybox, or the file cannot be written.
pub fn busybox_archive(path: &Path) -> anyhow::Result<()> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    let source = places.iter().find(|place| Path::new(place).exists());
    let binary = std::fs::read(source.context("no busybox here: install busybox-static")?)?;
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "tmp/", "root/"] {
        add(&mut layer, directory, tar::EntryType::Directory, 0o755, &[])?;
    }
    add(&mut layer, "bin/busybox", tar::EntryType::Regular, 0o755, &binary)?;
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    add(&mut layer, "etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0::/root:/bin/sh\n")?;
    let layer = layer.into_inner()?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": [BUSYBOX], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    let regular = tar::EntryType::Regular;
    add(&mut archive, "manifest.json", regular, 0o644, manifest.to_string().as_bytes())?;
    add(&mut archive, &config_name, regular, 0o644, config.as_bytes())?;
    add(&mut archive, "layer.tar", regular, 0o644, &layer)?;
    archive.finish()?;
    Ok(())
}

fn add<W: io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)
}

fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
