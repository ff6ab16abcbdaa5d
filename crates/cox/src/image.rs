//! `cox image`: the images of a node, with or without a server running on it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use coxswain_runtime::image::{Content, ImageRecord, ImageStore, ScratchConfig, ScratchFile};

/// What `cox image` can do.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Import images from docker or OCI archives.
    Import {
        /// The data directory of the server.
        #[arg(long, env = "COX_DATA_DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
        /// Archives; `-` is standard input.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// List the images.
    List {
        /// The data directory of the server.
        #[arg(long, env = "COX_DATA_DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
    },
    /// Remove images, by name or id.
    Rm {
        /// The data directory of the server.
        #[arg(long, env = "COX_DATA_DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
        /// Names or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Make the demo's images, `coxswain.local/notepad:1` and `:2`, of this binary.
    Notepad {
        /// The data directory of the server.
        #[arg(long, env = "COX_DATA_DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
    },
}

/// The demo's image, without its tag.
pub const NOTEPAD: &str = "coxswain.local/notepad";

/// Runs the command.
pub async fn run(command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import { data_dir, archives } => {
            let store = open(&data_dir)?;
            for archive in &archives {
                let shown = archive.display().to_string();
                for image in import(&store, archive).with_context(|| shown.clone())? {
                    println!("{}", name_of(&image));
                }
            }
        }
        ImageCommand::List { data_dir } => list(&open(&data_dir)?)?,
        ImageCommand::Rm { data_dir, images } => {
            let store = open(&data_dir)?;
            for image in images {
                anyhow::ensure!(store.remove(&image)?, "no image {image:?}");
                println!("{image}");
            }
        }
        ImageCommand::Notepad { data_dir } => make_notepads(&data_dir)?,
    }
    Ok(())
}

fn open(data_dir: &Path) -> anyhow::Result<ImageStore> {
    let root = data_dir.join("runtime");
    std::fs::create_dir_all(&root)?;
    ImageStore::open(&root).with_context(|| format!("the images in {}", root.display()))
}

fn import(store: &ImageStore, archive: &Path) -> anyhow::Result<Vec<ImageRecord>> {
    let source: Box<dyn Read> =
        if archive == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(archive)?) };
    Ok(store.import(source)?)
}

fn name_of(image: &ImageRecord) -> &str {
    image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(&image.id)
}

fn list(store: &ImageStore) -> anyhow::Result<()> {
    println!("{:<60} {:<14} SIZE", "IMAGE", "ID");
    for image in store.list()? {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let id = id.get(..12).unwrap_or(id);
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("<none>")) {
            println!("{name:<60} {id:<14} {:.1} MB", image.size as f64 / 1e6);
        }
    }
    Ok(())
}

/// Makes the two versions of the demo app, each this binary and nothing else.
pub fn make_notepads(data_dir: &Path) -> anyhow::Result<()> {
    let store = open(data_dir)?;
    let binary = std::env::current_exe().context("finding this binary")?;
    let files = [ScratchFile { path: "/cox".into(), content: Content::HostFile(binary), mode: 0o755 }];
    for version in ["1", "2"] {
        let entrypoint = ["/cox", "notepad", "--app-version", version].map(str::to_owned).to_vec();
        let config = ScratchConfig { entrypoint, ..ScratchConfig::default() };
        store.import_scratch(&format!("{NOTEPAD}:{version}"), &files, &config)?;
    }
    Ok(())
}
