//! Sealing of values before they reach the disk: AES-256-GCM, bound to the key they are stored under.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::Key;

/// A value cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key has the wrong length.
    #[error("sealing keys must have 32 bytes each")]
    KeyLength,
    /// No randomness, or the cipher refused.
    #[error("a value could not be sealed")]
    Seal,
    /// The value was changed, or sealed under another key.
    #[error("{0}/{1} cannot be opened with this sealing key")]
    Open(String, String),
}

/// The length of a key.
pub(crate) const KEY_LEN: usize = 32;

/// A key with the bytes that it is known by.
struct KnownKey([u8; KEY_LEN], LessSafeKey);

/// Seals the values of some collections: the first of its keys seals, all of them open.
pub struct Sealer {
    keys: RwLock<Vec<KnownKey>>,
    random: SystemRandom,
    collections: HashSet<String>,
}

impl Sealer {
    /// A sealer for the collections named; its keys, of 32 bytes, follow one another, the newest first.
    ///
    /// # Errors
    /// There is no key, or one has another length.
    pub fn new(keys: &[u8], collections: &[&str]) -> Result<Self, SealError> {
        Ok(Self {
            keys: RwLock::new(known(keys)?),
            random: SystemRandom::new(),
            collections: collections.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    /// Takes other keys, the newest first; what the present ones have sealed can be opened still.
    ///
    /// # Errors
    /// There is no key, or one has another length.
    pub fn learn(&self, keys: &[u8]) -> Result<(), SealError> {
        let mut learned = known(keys)?;
        let mut present = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = |bytes: &[u8; KEY_LEN]| learned.iter().all(|KnownKey(other, _)| other != bytes);
        let older: Vec<_> =
            std::mem::take(&mut *present).into_iter().filter(|KnownKey(bytes, _)| is_new(bytes)).collect();
        learned.extend(older);
        *present = learned;
        Ok(())
    }

    /// Whether a key is the newest.
    pub fn seals_with(&self, key: &[u8]) -> bool {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.first().is_some_and(|KnownKey(newest, _)| newest == key)
    }

    /// The collections whose values are sealed.
    pub fn collections(&self) -> impl Iterator<Item = &str> {
        self.collections.iter().map(String::as_str)
    }

    /// Whether values of a key are sealed.
    pub fn covers(&self, key: &Key) -> bool {
        self.collections.contains(&*key.collection)
    }

    /// Nonce, then ciphertext and tag.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn seal(&self, key: &Key, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Seal)?;
        let mut sealed = plain.to_vec();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let KnownKey(_, newest) = keys.first().ok_or(SealError::Seal)?;
        newest
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(key)),
                &mut sealed,
            )
            .map_err(|_| SealError::Seal)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Whether there are keys besides the newest.
    pub fn has_older_keys(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len() > 1
    }

    /// The plain bytes of a sealed value.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, key: &Key, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.open_by(key, sealed).map(|(plain, _)| plain)
    }

    /// A value sealed anew by the newest key; none where that one has sealed it.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn renew(&self, key: &Key, sealed: &[u8]) -> Result<Option<Vec<u8>>, SealError> {
        match self.open_by(key, sealed)? {
            (_, 0) => Ok(None),
            (plain, _) => self.seal(key, &plain).map(Some),
        }
    }

    /// The plain bytes, and which of the keys has sealed them.
    fn open_by(&self, key: &Key, sealed: &[u8]) -> Result<(Vec<u8>, usize), SealError> {
        let refused = || SealError::Open(key.collection.to_string(), key.name.to_string());
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(refused)?;
        let associated = associated(key);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let opened = keys.iter().enumerate().find_map(|(number, KnownKey(_, key))| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut body = body.to_vec();
            let length = key.open_in_place(nonce, Aad::from(&associated), &mut body).ok()?.len();
            body.truncate(length);
            Some((body, number))
        });
        opened.ok_or_else(refused)
    }
}

/// Keys that follow one another.
fn known(keys: &[u8]) -> Result<Vec<KnownKey>, SealError> {
    if keys.is_empty() {
        return Err(SealError::KeyLength);
    }
    let key = |bytes: &[u8]| {
        let bytes: [u8; KEY_LEN] = bytes.try_into().map_err(|_| SealError::KeyLength)?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::KeyLength)?;
        Ok(KnownKey(bytes, LessSafeKey::new(key)))
    };
    keys.chunks(KEY_LEN).map(key).collect()
}

/// Binds a value to its place, so that sealed values cannot be swapped in the file.
fn associated(key: &Key) -> Vec<u8> {
    format!("{}/{}", key.collection, key.name).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_key_seals_and_all_open() {
        let sealer = |keys: &[[u8; KEY_LEN]]| Sealer::new(&keys.concat(), &["secrets"]).unwrap();
        let (old, new, both) = (sealer(&[[1; 32]]), sealer(&[[2; 32]]), sealer(&[[2; 32], [1; 32]]));
        let key = Key::new("secrets", "a/b");
        let before = old.seal(&key, b"text").unwrap();
        assert_eq!(both.open(&key, &before).unwrap(), b"text");
        let after = both.seal(&key, b"text").unwrap();
        assert_eq!(new.open(&key, &after).unwrap(), b"text");
        assert!(old.open(&key, &after).is_err() && new.open(&key, &before).is_err());
        assert!(both.open(&Key::new("secrets", "a/c"), &after).is_err());
        let renewed = both.renew(&key, &before).unwrap().unwrap();
        assert_eq!(new.open(&key, &renewed).unwrap(), b"text");
        assert_eq!(both.renew(&key, &renewed).unwrap(), None);
        old.learn(&[2; 32]).unwrap();
        assert!(old.open(&key, &before).is_ok() && old.renew(&key, &renewed).unwrap().is_none());
        assert!(Sealer::new(&[], &[]).is_err() && Sealer::new(&[0; 33], &[]).is_err());
    }
}
