//! The manifests: YAML files of several documents.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

/// Reads every manifest of a directory, files in the order of their names.
pub fn load(dir: &Path) -> anyhow::Result<Vec<Value>> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir)?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    files.sort();
    let mut out = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml" || e == "json")) {
        let text = std::fs::read_to_string(file)?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).with_context(|| file.display().to_string())?;
            if value["kind"].is_string() {
                out.push(value);
            }
        }
    }
    Ok(out)
}
