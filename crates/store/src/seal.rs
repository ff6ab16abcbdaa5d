//! Sealing of values before they reach the disk: AES-256-GCM, bound to the key they are stored under.

use std::collections::HashSet;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::Key;

/// A value cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key has the wrong length.
    #[error("the sealing key must have 32 bytes")]
    KeyLength,
    /// No randomness, or the cipher refused.
    #[error("a value could not be sealed")]
    Seal,
    /// The value was changed, or sealed under another key.
    #[error("{0}/{1} cannot be opened with this sealing key")]
    Open(String, String),
}

/// Seals the values of some collections.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
    collections: HashSet<String>,
}

impl Sealer {
    /// A sealer with a 32-byte key for the collections named.
    ///
    /// # Errors
    /// The key has another length.
    pub fn new(key: &[u8], collections: &[&str]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::KeyLength)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
            collections: collections.iter().map(|name| (*name).to_owned()).collect(),
        })
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
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(key)),
                &mut sealed,
            )
            .map_err(|_| SealError::Seal)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// The plain bytes of a sealed value.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, key: &Key, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let refused = || SealError::Open(key.collection.to_string(), key.name.to_string());
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| refused())?;
        let mut body = body.to_vec();
        let length = self
            .key
            .open_in_place(nonce, Aad::from(associated(key)), &mut body)
            .map_err(|_| refused())?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

/// Binds a value to its place, so that sealed values cannot be swapped in the file.
fn associated(key: &Key) -> Vec<u8> {
    format!("{}/{}", key.collection, key.name).into_bytes()
}
