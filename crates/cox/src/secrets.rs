//! `cox secrets`: the key that Secrets are sealed with.
//!
//! The key's file holds keys of 32 bytes, the newest first: that one seals, all of them open. A server that finds more than
//! one, and a newest that it has not rewritten the Secrets with, does so while it serves.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Subcommand;
use coxswain_apiserver::ApiServer;
use ring::digest::{SHA256, digest};

use crate::{datastore, files, pki};

const FILE: &str = "sealing.key";
/// Beside the key: the digest of the key that all Secrets are sealed with.
const DONE: &str = "sealing.done";

/// What is done with the key.
#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Add a new sealing key; after its next start the server seals with it, and rewrites all Secrets.
    RotateKey {
        /// The server's data directory.
        #[arg(long, env = "COX_DATA_DIR", value_name = "DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
    },
}

/// Runs the command.
pub fn run(command: SecretsCommand) -> anyhow::Result<()> {
    let SecretsCommand::RotateKey { data_dir } = command;
    let file = datastore::keys_dir(&data_dir).join(FILE);
    let keys = std::fs::read(&file).with_context(|| file.display().to_string())?;
    ensure!(!keys.is_empty() && keys.len() % pki::SEALING_KEY_LEN == 0, "{} holds no keys", file.display());
    files::write_private(&file, &[pki::new_sealing_key()?, keys].concat())?;
    println!("A new key seals from the next start of the server on, which then rewrites all Secrets.");
    Ok(())
}

/// Rewrites the Secrets where the newest key is not the one that sealed them all.
pub async fn rewrite(api: &ApiServer, keys: &[u8], dir: &Path) -> anyhow::Result<()> {
    let newest = digest(&SHA256, keys.get(..pki::SEALING_KEY_LEN).unwrap_or_default());
    let done = dir.join(DONE);
    if keys.len() == pki::SEALING_KEY_LEN || std::fs::read(&done).is_ok_and(|known| known == newest.as_ref())
    {
        return Ok(());
    }
    let count = api.rewrite("secrets").await?;
    files::write_private(&done, newest.as_ref())?;
    tracing::info!(count, "all Secrets are sealed with the newest key");
    Ok(())
}
