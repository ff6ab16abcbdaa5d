//! Image references, normalised as every container tool does: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;

/// A reference that names nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid reference format: {0:?}")]
pub struct InvalidReference(String);

/// A normalised reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry, `docker.io` if none was named.
    pub registry: String,
    /// Repository within the registry.
    pub repository: String,
    /// Tag; `latest` when neither tag nor digest was given.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and normalises.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = || InvalidReference(text.to_owned());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(invalid()),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid());
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        if path.is_empty() || path.len() > 255 || !path.split('/').all(is_path_component) {
            return Err(invalid());
        }
        let repository = match (registry, path.contains('/')) {
            ("docker.io", false) => format!("library/{path}"),
            _ => path.to_owned(),
        };
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `name:tag`, if there is a tag and no digest: what is listed as a repo tag.
    pub fn repo_tag(&self) -> Option<String> {
        let tag = self.tag.as_ref().filter(|_| self.digest.is_none())?;
        Some(format!("{}:{tag}", self.name()))
    }

    /// `name@digest` for a manifest found under this name.
    pub fn repo_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether `text` is a sha256 digest.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes.iter().all(|&byte| alphanumeric(byte) || b"._-".contains(&byte))
        && !component.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(Reference::parse(text).map(|r| r.to_string()).as_deref(), Ok(expected));
    }

    #[test]
    fn short_names_are_spelled_out() {
        check("nginx", "docker.io/library/nginx:latest");
        check("me/app:1", "docker.io/me/app:1");
        check("localhost/app", "localhost/app:latest");
        check("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1");
        check("index.docker.io/library/busybox", "docker.io/library/busybox:latest");
        let digest = format!("sha256:{}", "0a".repeat(32));
        check(&format!("quay.io/x@{digest}"), &format!("quay.io/x@{digest}"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["", "Upper", "a:b:c", "a@sha256:12", "a//b", "-a", "a:-x", "x/../y"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}
