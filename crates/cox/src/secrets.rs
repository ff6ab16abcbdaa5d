//! `cox secrets`: the key that Secrets are sealed with.
//!
//! The key's file holds keys of 32 bytes, the newest first: that one seals, all of them open. A store that is opened with
//! more than one seals everything by the newest first; then the older ones go.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Subcommand;

use crate::{datastore, files, pki};

const FILE: &str = "sealing.key";

/// What is done with the key.
#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Add a new sealing key; the server's next start seals all Secrets with it and forgets the older one.
    RotateKey {
        /// The server's data directory.
        #[arg(long, env = "COX_DATA_DIR", value_name = "DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,
    },
}

/// Runs the command.
pub fn run(command: SecretsCommand) -> anyhow::Result<()> {
    let SecretsCommand::RotateKey { data_dir } = command;
    let (file, keys) = read(&datastore::keys_dir(&data_dir))?;
    ensure!(
        datastore::store_dir(&data_dir).is_dir(),
        "the cluster of {} is kept in an etcd: its servers share their key there, and it cannot be renewed",
        data_dir.display()
    );
    files::write_private(&file, &[pki::new_sealing_key()?, keys].concat())?;
    println!("The server's next start seals all Secrets with a new key and forgets the older one.");
    Ok(())
}

/// Forgets the keys older than the newest of `used`, which has sealed everything. What was added meanwhile stays.
pub fn forget_older(dir: &Path, used: &[u8]) -> anyhow::Result<()> {
    let (file, keys) = read(dir)?;
    let mut known = keys.chunks(pki::SEALING_KEY_LEN);
    let newest = used.get(..pki::SEALING_KEY_LEN).context("no key")?;
    let place = known.position(|key| key == newest).context("the newest key is not in its file any more")?;
    let kept = (place + 1) * pki::SEALING_KEY_LEN;
    if kept < keys.len() {
        files::write_private(&file, &keys[..kept])?;
        tracing::info!("all Secrets are sealed with the newest key; older ones are forgotten");
    }
    Ok(())
}

fn read(dir: &Path) -> anyhow::Result<(PathBuf, Vec<u8>)> {
    let file = dir.join(FILE);
    let keys = std::fs::read(&file).with_context(|| file.display().to_string())?;
    ensure!(!keys.is_empty() && keys.len() % pki::SEALING_KEY_LEN == 0, "{} holds no keys", file.display());
    Ok((file, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_keys_go_and_newer_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let key = |byte: u8| vec![byte; pki::SEALING_KEY_LEN];
        let file = dir.path().join(FILE);
        std::fs::write(&file, [key(3), key(2), key(1)].concat()).unwrap();
        forget_older(dir.path(), &[key(2), key(1)].concat()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), [key(3), key(2)].concat());
        assert!(forget_older(dir.path(), &key(1)).is_err());
    }
}
