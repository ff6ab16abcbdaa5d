//! The registry configuration: mirrors, authorities and credentials by registry host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use coxswain_runtime::image::{RegistryAuth, RegistryConfig};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    registries: BTreeMap<String, Registry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Registry {
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    plain_http: bool,
    ca_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

/// Reads the file that `--registry-config` names.
pub fn read(path: &Path) -> anyhow::Result<Vec<RegistryConfig>> {
    let shown = || format!("the registry configuration {}", path.display());
    let file: File =
        serde_yaml::from_str(&std::fs::read_to_string(path).with_context(shown)?).with_context(shown)?;
    let convert = |(host, registry): (String, Registry)| {
        let ca_pem = registry
            .ca_file
            .map(|file| std::fs::read(&file).with_context(|| file.display().to_string()))
            .transpose()?;
        let auth = match (registry.username, registry.password) {
            (Some(username), Some(password)) => Some(RegistryAuth { username, password }),
            (None, None) => None,
            _ => anyhow::bail!("registry {host}: username and password belong together"),
        };
        Ok(RegistryConfig { host, mirrors: registry.mirrors, plain_http: registry.plain_http, ca_pem, auth })
    };
    file.registries.into_iter().map(convert).collect::<anyhow::Result<_>>().with_context(shown)
}
