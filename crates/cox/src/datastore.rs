//! Where the cluster is kept: in this machine's directory, or in an etcd that several servers share.
//!
//! Servers on one etcd share the cluster's keys too: the first one puts them there, sealed under the token, and the others
//! copy them into their own directories.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use coxswain_store::{Etcd, EtcdConfig, Keyring};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};

use crate::files;
use crate::pki::Pki;

/// What the keys are called in etcd.
const SHARED: &str = "keys";
/// The file, and the shared key, of the keys that seal Secrets.
pub const SEALING: &str = "sealing.key";
/// OWASP's advice for PBKDF2 with SHA-256.
const ITERATIONS: u32 = 600_000;
const SALT_LEN: usize = 16;
/// What may fill the place of the iterations in a sealed bundle.
const MOST_ITERATIONS: u32 = 100 * ITERATIONS;

/// The flags that say where the cluster is kept.
#[derive(Args, Clone, Debug, Default)]
pub struct DatastoreArgs {
    /// An etcd (3.5 or newer) that keeps the cluster: the URLs of its members, separated by commas. Without it, a file does.
    #[arg(long, env = "COX_DATASTORE_ENDPOINT", value_name = "URLS")]
    pub datastore_endpoint: Option<String>,

    /// The authority that etcd's certificates are checked against, PEM; the system's where it is not given.
    #[arg(long, env = "COX_DATASTORE_CAFILE", value_name = "FILE")]
    pub datastore_cafile: Option<PathBuf>,

    /// The certificate to show etcd, PEM.
    #[arg(long, env = "COX_DATASTORE_CERTFILE", value_name = "FILE", requires = "datastore_keyfile")]
    pub datastore_certfile: Option<PathBuf>,

    /// Its key, PEM.
    #[arg(long, env = "COX_DATASTORE_KEYFILE", value_name = "FILE", requires = "datastore_certfile")]
    pub datastore_keyfile: Option<PathBuf>,

    /// What the servers of a cluster on one etcd have in common: it seals the cluster's keys there.
    #[arg(long, env = "COX_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

impl DatastoreArgs {
    /// The etcd that the flags name, with the token.
    pub fn etcd(&self) -> anyhow::Result<Option<(Etcd, &str)>> {
        let Some(endpoints) = &self.datastore_endpoint else { return Ok(None) };
        let token = self.token.as_deref().unwrap_or_default();
        ensure!(!token.is_empty(), "--datastore-endpoint needs --token: it seals the cluster's keys");
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("reading {}", path.display()));
        let mut config = EtcdConfig::new(endpoints.split(',').map(|url| url.trim().to_owned()).collect());
        for url in &config.endpoints {
            let scheme = url.split_once("://").map(|(scheme, _)| scheme);
            ensure!(
                matches!(scheme, Some("http" | "https")),
                "--datastore-endpoint: {url:?} is no URL of an etcd"
            );
        }
        config.ca_pem = self.datastore_cafile.as_ref().map(read).transpose()?;
        if let (Some(certificate), Some(key)) = (&self.datastore_certfile, &self.datastore_keyfile) {
            config.identity_pem = Some((read(certificate)?, read(key)?));
        }
        Ok(Some((Etcd::new(&config)?.with_keys(SHARED, TokenKeyring::new(token)), token)))
    }
}

/// The sealing keys among what is sealed under a token.
struct TokenKeyring {
    token: String,
    /// What was derived of the token last: that takes long on purpose.
    derived: Mutex<Option<(Derivation, LessSafeKey)>>,
}

impl TokenKeyring {
    fn new(token: &str) -> Self {
        Self { token: token.to_owned(), derived: Mutex::default() }
    }

    /// Opens the keys, and seals what becomes of them by the same derivation.
    fn work<T>(
        &self,
        shared: &[u8],
        work: impl FnOnce(Keys, Derivation, &LessSafeKey) -> anyhow::Result<T>,
    ) -> Result<T, String> {
        let mut known = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = parts(shared).and_then(|(derivation, nonce, body)| {
            let known = match known.take() {
                Some((same, key)) if same == derivation => known.insert((same, key)),
                _ => known.insert((derivation, key_of(&self.token, derivation)?)),
            };
            work(open_with(&known.1, nonce, body)?, derivation, &known.1)
        });
        worked.map_err(|error| error.to_string())
    }
}

impl Keyring for TokenKeyring {
    fn keys(&self, shared: &[u8]) -> Result<Vec<u8>, String> {
        self.work(shared, |mut keys, _, _| keys.remove(SEALING).context("the sealing key is missing"))
    }

    fn with_keys(&self, shared: &[u8], sealing: &[u8]) -> Result<Vec<u8>, String> {
        self.work(shared, |mut keys, derivation, key| {
            keys.insert(SEALING.to_owned(), sealing.to_vec());
            seal_with(derivation, key, &keys)
        })
    }
}

/// The directory of a cluster's keys.
pub fn keys_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server/pki")
}

/// The directory of the embedded store.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server/db")
}

/// Names and contents of the files that hold the keys of a cluster.
pub type Keys = BTreeMap<String, Vec<u8>>;

/// The keys in a directory; what is missing is made.
pub fn make_keys(dir: &Path) -> anyhow::Result<Keys> {
    Pki::open(dir)?;
    read_keys(dir)
}

/// The keys in a directory.
pub fn read_keys(dir: &Path) -> anyhow::Result<Keys> {
    let mut keys = Keys::new();
    for entry in fs::read_dir(dir).with_context(|| format!("the keys in {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".key") || name.ends_with(".crt") {
            keys.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(keys)
}

/// Writes the keys of a cluster into a directory that has none, or the same.
pub fn write_keys(dir: &Path, keys: &Keys) -> anyhow::Result<()> {
    files::private_dir(dir)?;
    for (name, content) in keys {
        let path = dir.join(name);
        ensure!(!name.contains('/') && !name.starts_with('.'), "{name:?} is no name of a key");
        match fs::read(&path) {
            Ok(there) if there == *content => {}
            Ok(_) => bail!("{} is of another cluster", path.display()),
            Err(_) => files::write_private(&path, content)?,
        }
    }
    Ok(())
}

/// Sees to it that the keys in a directory are those of the cluster in etcd, which this server's become where it is the first.
/// Gives the sealing keys; the directory's are left where they seal a store of its own.
pub async fn share_keys(etcd: &Etcd, token: &str, dir: &Path) -> anyhow::Result<Vec<u8>> {
    let sealed = match etcd.shared(SHARED).await? {
        Some(sealed) => sealed,
        None => etcd.share(SHARED, seal(token, &candidates(dir)?)?.into()).await?,
    };
    let mut keys = open(token, &sealed)?;
    let sealing = keys.remove(SEALING).context("the sealing key is missing")?;
    write_keys(dir, &keys)?;
    if !dir.with_file_name("db").exists() {
        files::write_private(&dir.join(SEALING), &sealing)?;
    }
    Ok(sealing)
}

/// The keys in a directory, or new ones that are nowhere yet: of servers that start at once, one has its keys taken.
fn candidates(dir: &Path) -> anyhow::Result<Keys> {
    if dir.exists() {
        return make_keys(dir);
    }
    let new = dir.with_extension("new");
    let keys = make_keys(&new)?;
    fs::remove_dir_all(&new)?;
    Ok(keys)
}

/// The keys of the cluster in etcd.
pub async fn shared_keys(etcd: &Etcd, token: &str) -> anyhow::Result<Keys> {
    let sealed = etcd.shared(SHARED).await?.context("there is no cluster in this etcd")?;
    open(token, &sealed)
}

/// Puts keys into an etcd that has none.
pub async fn share_these(etcd: &Etcd, token: &str, keys: &Keys) -> anyhow::Result<()> {
    let shared = etcd.share(SHARED, seal(token, keys)?.into()).await?;
    ensure!(open(token, &shared)? == *keys, "this etcd holds another cluster");
    Ok(())
}

/// How a key is derived of a token: the iterations and the salt.
type Derivation = (u32, [u8; SALT_LEN]);

fn key_of(token: &str, (iterations, salt): Derivation) -> anyhow::Result<LessSafeKey> {
    let iterations = NonZeroU32::new(iterations).context("no iterations")?;
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, token.as_bytes(), &mut key);
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).map_err(|_| anyhow!("the sealing key"))?))
}

fn seal(token: &str, keys: &Keys) -> anyhow::Result<Vec<u8>> {
    let mut salt = [0; SALT_LEN];
    SystemRandom::new().fill(&mut salt).map_err(|_| anyhow!("no randomness"))?;
    let derivation = (ITERATIONS, salt);
    seal_with(derivation, &key_of(token, derivation)?, keys)
}

/// Iterations, salt and nonce, then the sealed keys.
fn seal_with((iterations, salt): Derivation, key: &LessSafeKey, keys: &Keys) -> anyhow::Result<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| anyhow!("no randomness"))?;
    let mut sealed = encode(keys)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .map_err(|_| anyhow!("the keys could not be sealed"))?;
    Ok([&iterations.to_be_bytes()[..], &salt, &nonce, &sealed].concat())
}

fn open(token: &str, sealed: &[u8]) -> anyhow::Result<Keys> {
    let (derivation, nonce, body) = parts(sealed)?;
    open_with(&key_of(token, derivation)?, nonce, body)
}

/// The derivation of the key, the nonce and the sealed keys.
fn parts(sealed: &[u8]) -> anyhow::Result<(Derivation, [u8; NONCE_LEN], &[u8])> {
    let damaged = || anyhow!("what this etcd holds as the cluster's keys is damaged");
    let (iterations, rest) = sealed.split_first_chunk().ok_or_else(damaged)?;
    let (salt, rest) = rest.split_first_chunk::<SALT_LEN>().ok_or_else(damaged)?;
    let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
    let iterations = u32::from_be_bytes(*iterations);
    ensure!((1..=MOST_ITERATIONS).contains(&iterations), damaged());
    Ok(((iterations, *salt), *nonce, body))
}

fn open_with(key: &LessSafeKey, nonce: [u8; NONCE_LEN], body: &[u8]) -> anyhow::Result<Keys> {
    let mut body = body.to_vec();
    let plain = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut body);
    decode(plain.map_err(|_| anyhow!("the token is not the one of the cluster in this etcd"))?)
}

/// Keys as text.
pub fn encode(keys: &Keys) -> anyhow::Result<Vec<u8>> {
    let text: BTreeMap<&str, String> =
        keys.iter().map(|(name, content)| (name.as_str(), BASE64_STANDARD.encode(content))).collect();
    Ok(serde_json::to_vec(&text)?)
}

/// Keys of their text.
pub fn decode(text: &[u8]) -> anyhow::Result<Keys> {
    let text: BTreeMap<String, String> = serde_json::from_slice(text)?;
    text.into_iter().map(|(name, content)| Ok((name, BASE64_STANDARD.decode(content)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_opened_by_their_token_alone() {
        let dir = tempfile::tempdir().unwrap();
        let keys = make_keys(&dir.path().join("one")).unwrap();
        let sealed = seal("right", &keys).unwrap();
        assert!(!sealed.windows(11).any(|window| window == b"PRIVATE KEY"));
        assert_eq!(open("right", &sealed).unwrap(), keys);
        let keyring = TokenKeyring::new("right");
        let renewed = keyring.with_keys(&sealed, b"new").unwrap();
        assert_eq!(open("right", &renewed).unwrap()[SEALING], b"new");
        assert_eq!(keyring.keys(&renewed).unwrap(), b"new");
        assert!(TokenKeyring::new("wrong").keys(&renewed).unwrap_err().contains("token is not the one"));
        assert!(open("wrong", &sealed).unwrap_err().to_string().contains("token is not the one"));
        let two = dir.path().join("two");
        write_keys(&two, &keys).unwrap();
        assert_eq!(make_keys(&two).unwrap(), keys, "nothing is missing");
        let others = make_keys(&dir.path().join("three")).unwrap();
        assert!(write_keys(&two, &others).unwrap_err().to_string().contains("another cluster"));
    }
}
