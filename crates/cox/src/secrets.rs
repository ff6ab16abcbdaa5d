//! `cox secrets`: the key that Secrets are sealed with.
//!
//! There are keys of 32 bytes, the newest first: that one seals, all of them open. A store in a directory has them in a file;
//! opened with more than one, it seals everything by the newest first, and then the older ones go. Servers on one etcd share
//! them there and do the same while they serve.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use coxswain_store::Etcd;

use crate::datastore::{self, DatastoreArgs};
use crate::{backup, files, pki};

/// What is done with the key.
#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Seal all Secrets with a new key and forget the older one: at the server's next start, or, in an etcd, at once.
    RotateKey {
        /// The server's data directory.
        #[arg(long, env = "COX_DATA_DIR", value_name = "DIR", default_value = "/var/lib/coxswain")]
        data_dir: PathBuf,

        #[command(flatten)]
        datastore: DatastoreArgs,
    },
}

/// Runs the command.
pub async fn run(command: SecretsCommand) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let SecretsCommand::RotateKey { data_dir, datastore } = command;
    if let Some((etcd, token)) = datastore.etcd()? {
        return rotate_shared(&etcd, token).await;
    }
    let (file, keys) = read(&datastore::keys_dir(&data_dir))?;
    if !datastore::store_dir(&data_dir).is_dir() {
        bail!(
            "the cluster of {} is kept in an etcd: name it and the --token, as its servers are told them",
            data_dir.display()
        );
    }
    files::write_private(&file, &[pki::new_sealing_key()?, keys].concat())?;
    println!("The server's next start seals all Secrets with a new key and forgets the older one.");
    Ok(())
}

/// Renews the key that servers share, all of which may serve meanwhile.
async fn rotate_shared(etcd: &Etcd, token: &str) -> anyhow::Result<()> {
    let keys = datastore::shared_keys(etcd, token).await?;
    etcd.add_key(&pki::new_sealing_key()?).await.context("the new key could not be added")?;
    println!("All servers seal Secrets with a new key from now on.");
    let unfinished = "a server that runs goes on with it; until then the older key is kept";
    etcd.drop_older_keys(backup::sealer(&keys)?).await.context(unfinished)?;
    println!("All Secrets are sealed with it, and the older key is forgotten.");
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
    let file = dir.join(datastore::SEALING);
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
        let file = dir.path().join(datastore::SEALING);
        std::fs::write(&file, [key(3), key(2), key(1)].concat()).unwrap();
        forget_older(dir.path(), &[key(2), key(1)].concat()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), [key(3), key(2)].concat());
        assert!(forget_older(dir.path(), &key(1)).is_err());
    }
}
