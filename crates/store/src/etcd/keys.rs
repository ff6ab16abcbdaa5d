//! The sealing keys of servers that share an etcd, and how they are renewed while all of them serve.
//!
//! A new key is put in front of the others in one transaction with the head. So every append that comes after it is of a server
//! that has learned the key: one that has not is behind, and its watch tells it the keys before the head. From then on values
//! sealed with older keys only become fewer. They are sealed anew in small transactions that compare each value and leave the
//! head alone, for nothing has changed that readers see. Once none is left, the history that still has them is compacted and
//! the older keys go. Each step may be done twice, by several servers, and by whoever comes after one that was killed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::history::newest;
use super::layout::{Head, Layout, put, written_at};
use super::members::{Failed, Members, PATIENCE, ScanError, described, is_compacted};
use super::proto::{KeyValue, TxnRequest};
use super::{MOST_BYTES, parts_by};
use crate::LogError;
use crate::seal::KEY_LEN;

/// Values that one transaction seals anew: each needs a comparison and a write.
const MOST_VALUES: usize = 60;
/// Before a rotation that failed is gone on with.
const RETRY: Duration = Duration::from_secs(5);

/// How the sealing keys are written down in what servers share.
pub trait Keyring: Send + Sync + 'static {
    /// The sealing keys, one after the other, the newest first; an error says why they cannot be read.
    ///
    /// # Errors
    /// In words for the operator.
    fn keys(&self, shared: &[u8]) -> Result<Vec<u8>, String>;

    /// The same with other sealing keys.
    ///
    /// # Errors
    /// In words for the operator.
    fn with_keys(&self, shared: &[u8], keys: &[u8]) -> Result<Vec<u8>, String>;
}

/// Where the keys are; nowhere for a log whose keys never change.
#[derive(Clone, Default)]
pub struct Keys(Option<Arc<Place>>);

struct Place {
    key: Bytes,
    keyring: Box<dyn Keyring>,
    /// Tells that there are other keys than before.
    changed: watch::Sender<()>,
}

/// The keys at one moment.
struct Shared {
    kv: KeyValue,
    keys: Vec<u8>,
}

impl Keys {
    pub fn shared_as(key: Bytes, keyring: impl Keyring) -> Self {
        Self(Some(Arc::new(Place { key, keyring: Box::new(keyring), changed: watch::Sender::new(()) })))
    }

    /// Whether a key of etcd is that of the keys.
    pub fn are(&self, key: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|place| place.key == key)
    }

    /// Takes the keys that a value says.
    pub async fn learn(&self, layout: &Layout, value: &Bytes) -> Result<(), LogError> {
        let (Some(place), Some(sealer)) = (&self.0, layout.sealer()) else { return Ok(()) };
        let keys = place.work({
            let value = value.clone();
            move |keyring| keyring.keys(&value)
        });
        sealer.learn(&keys.await?)?;
        place.changed.send_replace(());
        Ok(())
    }

    /// Takes the keys that are there now.
    pub async fn reread(&self, members: &Members, layout: &Layout) -> Result<(), LogError> {
        let Some(place) = &self.0 else { return Ok(()) };
        let (found, _) = members.get(place.key.clone(), 0).await.map_err(|status| described(&status))?;
        match found {
            Some(kv) => self.learn(layout, &kv.value).await,
            None => Ok(()),
        }
    }

    /// Puts a key in front of the others.
    pub async fn add(&self, members: &Members, layout: &Layout, key: &[u8]) -> Result<(), LogError> {
        let Some(place) = &self.0 else { return Err(no_keys()) };
        loop {
            let shared = place.read(members).await?.ok_or_else(no_keys)?;
            if shared.keys.chunks(KEY_LEN).any(|known| known == key) {
                return Ok(());
            }
            let value = place.written(&shared, [key, &shared.keys].concat()).await?;
            // As long as servers write, and only they. To write the keys down has taken a while.
            let end = Instant::now() + PATIENCE;
            let mut there = shared.kv.mod_revision;
            while there == shared.kv.mod_revision {
                let at = newest(members, layout).await?;
                let head = Head { revision: at.revision, writer: 0, append: 0 };
                let request = TxnRequest {
                    compare: vec![written_at(place.key.clone(), there), written_at(layout.head(), at.head)],
                    success: vec![put(place.key.clone(), value.clone()), put(layout.head(), head.encode())],
                };
                match members.txn(request).await {
                    Ok(answer) if answer.succeeded => return Ok(()),
                    Ok(_) | Err(Failed::Unknown(_)) if Instant::now() < end => {}
                    Ok(_) => return Err(LogError::Etcd("servers write too much: try again".to_owned())),
                    Err(failed) => return Err(failed.into()),
                }
                let (now, _) =
                    members.get(place.key.clone(), 0).await.map_err(|status| described(&status))?;
                there = now.map_or(0, |kv| kv.mod_revision);
            }
        }
    }

    /// Seals anew what older keys have sealed, and drops those.
    pub async fn drop_older(&self, members: &Members, layout: &Layout) -> Result<(), LogError> {
        let (Some(place), Some(sealer)) = (&self.0, layout.sealer()) else { return Ok(()) };
        loop {
            let Some(shared) = place.read(members).await?.filter(|shared| shared.keys.len() > KEY_LEN) else {
                return Ok(());
            };
            // The watch alone tells a server its keys, in their order; then this begins anew.
            if !sealer.seals_with(&shared.keys[..KEY_LEN]) {
                return Ok(());
            }
            let (count, clean) = reseal(members, layout).await?;
            let Some(clean) = clean else {
                tracing::debug!(count, "sealed by the newest key");
                continue;
            };
            match members.compact(clean).await {
                Err(status) if !is_compacted(&status) => return Err(described(&status)),
                _ => {}
            }
            let value = place.written(&shared, shared.keys[..KEY_LEN].to_vec()).await?;
            // Where another server was first, or there is a newer key yet, the next look tells.
            let request = TxnRequest {
                compare: vec![written_at(place.key.clone(), shared.kv.mod_revision)],
                success: vec![put(place.key.clone(), value)],
            };
            if members.idempotent_txn(request).await?.succeeded {
                tracing::info!("all Secrets are sealed with the newest key; older ones are dropped");
            }
        }
    }

    /// Finishes whatever rotation was begun, by whomever, for as long as the log is open.
    pub async fn finish_rotations(self, members: Arc<Members>, layout: Arc<Layout>) {
        let Some(place) = &self.0 else { return };
        let mut changed = place.changed.subscribe();
        loop {
            while let Err(error) = self.drop_older(&members, &layout).await {
                tracing::warn!(%error, "the sealing keys are not renewed yet");
                sleep(RETRY).await;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Place {
    async fn read(self: &Arc<Self>, members: &Members) -> Result<Option<Shared>, LogError> {
        let (found, _) = members.get(self.key.clone(), 0).await.map_err(|status| described(&status))?;
        let Some(kv) = found else { return Ok(None) };
        let value = kv.value.clone();
        let keys = self.work(move |keyring| keyring.keys(&value)).await?;
        Ok(Some(Shared { kv, keys }))
    }

    async fn written(self: &Arc<Self>, shared: &Shared, keys: Vec<u8>) -> Result<Bytes, LogError> {
        let value = shared.kv.value.clone();
        self.work(move |keyring| keyring.with_keys(&value, &keys)).await.map(Bytes::from)
    }

    /// To open what is sealed under a token takes long on purpose.
    async fn work<F>(self: &Arc<Self>, work: F) -> Result<Vec<u8>, LogError>
    where
        F: FnOnce(&dyn Keyring) -> Result<Vec<u8>, String> + Send + 'static,
    {
        let place = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&*place.keyring)).await;
        done.map_err(|error| error.to_string()).flatten().map_err(LogError::Etcd)
    }
}

fn no_keys() -> LogError {
    LogError::Etcd("there are no keys in it".to_owned())
}

/// Seals anew what the newest key has not sealed: how many values there were, and, where there was none, the revision of etcd
/// at which that was so. What is written meanwhile is sealed with the newest key by whoever writes it.
async fn reseal(members: &Members, layout: &Layout) -> Result<(usize, Option<i64>), LogError> {
    let Some(sealer) = layout.sealer() else { return Ok((0, None)) };
    let (_, at) = members.get(layout.head(), 0).await.map_err(|status| described(&status))?;
    let mut stale = Vec::new();
    for collection in sealer.collections() {
        let take = |kv: KeyValue| {
            if let Some(value) = layout.renewed(&kv)? {
                stale.push((kv.key, kv.mod_revision, value));
            }
            Ok(())
        };
        match members.scan(layout.collection(collection), at, take).await {
            // Another server has come to the end meanwhile.
            Err(ScanError::Etcd(status)) if is_compacted(&status) => return Ok((stale.len(), None)),
            scanned => scanned?,
        }
    }
    for part in parts_by(&stale, MOST_VALUES, MOST_BYTES, |(.., value)| value.len()) {
        let request = TxnRequest {
            compare: part.iter().map(|(key, written, _)| written_at(key.clone(), *written)).collect(),
            success: part.iter().map(|(key, _, value)| put(key.clone(), value.clone())).collect(),
        };
        // Where one of them was written meanwhile, the others' turn comes with the next look.
        members.idempotent_txn(request).await?;
    }
    Ok((stale.len(), stale.is_empty().then_some(at)))
}
