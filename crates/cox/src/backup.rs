//! `cox backup` and `cox restore`: everything a cluster's control plane keeps, in one file; from and into either engine.
//!
//! The file holds the objects, secrets among them in the clear, and the cluster's keys: whoever has it has the cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use coxswain_store::{Backup, Sealer};

use crate::datastore::{self, DatastoreArgs, Keys};
use crate::files;

/// Flags of `cox backup` and `cox restore`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// The backup. It is as secret as the cluster's keys, which are in it.
    file: PathBuf,

    /// The directory of the server.
    #[arg(long, env = "COX_DATA_DIR", value_name = "DIR", default_value = "/var/lib/coxswain")]
    data_dir: PathBuf,

    #[command(flatten)]
    datastore: DatastoreArgs,
}

/// The sealer of a store by the keys of its cluster.
pub fn sealer(keys: &Keys) -> anyhow::Result<Sealer> {
    let key = keys.get(datastore::SEALING).context("the sealing key is missing")?;
    Ok(Sealer::new(key, &["secrets"])?)
}

/// Writes a backup; the servers may run.
pub async fn backup(args: BackupArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let backup = match args.datastore.etcd()? {
        Some((etcd, token)) => {
            let keys = datastore::shared_keys(&etcd, token).await?;
            Backup::of_etcd(&etcd, Some(sealer(&keys)?), datastore::encode(&keys)?).await?
        }
        None => {
            let keys = datastore::read_keys(&datastore::keys_dir(&args.data_dir))?;
            let dir = datastore::store_dir(&args.data_dir);
            Backup::of_embedded(&dir, Some(sealer(&keys)?), datastore::encode(&keys)?)
                .with_context(|| format!("the store in {}", dir.display()))?
        }
    };
    backup.write(&args.file).with_context(|| format!("writing {}", args.file.display()))?;
    println!(
        "{} objects at revision {} are in {}. Keep it as safe as the cluster's keys, which are in it.",
        backup.records.len(),
        backup.newest,
        args.file.display()
    );
    Ok(())
}

/// Puts a backup where no cluster is; its servers are started afterwards.
pub async fn restore(args: BackupArgs) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = args.file.display().to_string();
    ensure!(args.file.exists(), "there is no {file}");
    let backup = Backup::read(&args.file).with_context(|| format!("{file} is no backup"))?;
    let keys = datastore::decode(&backup.attachment).with_context(|| format!("the keys in {file}"))?;
    match args.datastore.etcd()? {
        Some((etcd, token)) => {
            datastore::share_these(&etcd, token, &keys).await?;
            backup.restore_etcd(&etcd, Some(sealer(&keys)?)).await?;
        }
        None => restore_embedded(&args.data_dir, &backup, &keys)?,
    }
    println!(
        "{} objects are restored. Clients list anew: what was written after the backup is gone.",
        backup.records.len()
    );
    Ok(())
}

fn restore_embedded(data_dir: &Path, backup: &Backup, keys: &Keys) -> anyhow::Result<()> {
    files::private_dir(data_dir)?;
    datastore::write_keys(&datastore::keys_dir(data_dir), keys)?;
    let dir = datastore::store_dir(data_dir);
    files::private_dir(&dir)?;
    Ok(backup.restore_embedded(&dir, Some(sealer(keys)?))?)
}
