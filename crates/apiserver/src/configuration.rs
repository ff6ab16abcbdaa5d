//! Files of the group `apiserver.config.k8s.io`: read strictly, and again when they change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use coxswain_api::schema;
use coxswain_meta::json::Value;
use tokio_util::sync::CancellationToken;

/// How often files are looked at: editors and mounted ConfigMaps replace them in ways that no watch of one name sees.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigurationError(String);

impl ConfigurationError {
    /// A fault of a field.
    pub fn at(field: &str, why: &str) -> Self {
        Self(format!("{field}: {why}"))
    }
}

/// Reads a document of a kind.
///
/// # Errors
/// It is no document, or of another kind or version.
pub fn read(text: &[u8], group: &str, versions: &[&str], kind: &str) -> Result<Value, ConfigurationError> {
    let (config, duplicates) =
        schema::parse_yaml_strict(text).map_err(|error| ConfigurationError(error.to_string()))?;
    if let Some(field) = duplicates.first() {
        return Err(ConfigurationError(format!("{field} is there twice")));
    }
    let version =
        config["apiVersion"].as_str().and_then(|version| version.strip_prefix(group)?.strip_prefix('/'));
    if config["kind"] != kind || !version.is_some_and(|version| versions.contains(&version)) {
        return Err(ConfigurationError(format!("it is no {kind} of {group}/{}", versions[0])));
    }
    Ok(config)
}

/// Refuses fields that an object does not have.
///
/// # Errors
/// The field.
pub fn only(object: &Value, known: &[&str], at: &str) -> Result<(), ConfigurationError> {
    let mut fields = object.as_object().into_iter().flatten().map(|(field, _)| field);
    match fields.find(|field| !known.contains(field)) {
        Some(field) if at.is_empty() => Err(ConfigurationError::at(field, "unknown field")),
        Some(field) => Err(ConfigurationError::at(&format!("{at}.{field}"), "unknown field")),
        None => Ok(()),
    }
}

/// Spans as documents write them.
pub struct Span;

impl Span {
    /// `30s`, `5m`; none for what is no span, or less than nothing.
    pub fn parse(value: &Value) -> Option<Duration> {
        value.as_str()?.parse::<jiff::SignedDuration>().ok()?.try_into().ok()
    }
}

/// What a file says, as of when it was last right.
pub struct Followed<T> {
    current: RwLock<Arc<T>>,
    source: Option<Source<T>>,
}

struct Source<T> {
    path: PathBuf,
    parse: Parser<T>,
    /// What the first value was read from.
    text: Vec<u8>,
}

type Parser<T> = Box<dyn Fn(&[u8]) -> Result<T, ConfigurationError> + Send + Sync>;

impl<T> Followed<T> {
    /// What never changes.
    pub fn fixed(value: T) -> Self {
        Self { current: RwLock::new(Arc::new(value)), source: None }
    }

    /// What a file says.
    ///
    /// # Errors
    /// The file cannot be read, or is not right.
    pub fn file(
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, ConfigurationError> + Send + Sync + 'static,
    ) -> Result<Self, ConfigurationError> {
        let text = std::fs::read(path)
            .map_err(|error| ConfigurationError::at(&path.display().to_string(), &error.to_string()))?;
        let value = parse(&text)
            .map_err(|error| ConfigurationError::at(&path.display().to_string(), &error.to_string()))?;
        let source = Source { path: path.to_owned(), parse: Box::new(parse), text };
        Ok(Self { current: RwLock::new(Arc::new(value)), source: Some(source) })
    }

    /// What holds now.
    pub fn get(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the file until the server stops; what is not right changes nothing.
    pub async fn follow(&self, stop: &CancellationToken) {
        let Some(Source { path, parse, text }) = &self.source else { return };
        let mut known = text.clone();
        let mut ticks = tokio::time::interval(INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let Ok(text) = tokio::fs::read(path).await else { continue };
            if known == text {
                continue;
            }
            match parse(&text) {
                Ok(value) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                    tracing::info!(file = %path.display(), "configuration read again");
                }
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "the changed configuration is not taken")
                }
            }
            known = text;
        }
    }
}
