//! What only the Go types tell: protobuf field numbers, and which fields leave their zero value out of JSON.
//!
//! Read from the struct tags of the modules `k8s.io/api` and `k8s.io/apimachinery`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

const VERSION: &str = "v0.37.2";

/// Facts of one JSON field.
#[derive(Debug, Clone)]
pub struct GoField {
    /// Field numbers from the message inwards: more than one for fields of an embedded message.
    pub numbers: Vec<u32>,
    /// A zero value does not appear in JSON.
    pub omits_zero: bool,
}

/// JSON fields by definition name (`io.k8s.api.core.v1.Pod`).
pub type GoTypes = BTreeMap<String, BTreeMap<String, GoField>>;

/// A field as its line declares it.
struct Line {
    /// Empty for embedded structs without a name of their own in JSON.
    json: String,
    go_type: String,
    number: Option<u32>,
    omits: bool,
}

/// Downloads the modules and reads their types.
pub fn load() -> Result<GoTypes> {
    let mut structs: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    let api = module("k8s.io/api")?;
    for group in directories(&api)? {
        for version in directories(&group)? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            read_package(&version, &format!("io.k8s.api.{}.{}", name(&group), name(&version)), &mut structs)?;
        }
    }
    let meta = module("k8s.io/apimachinery")?.join("pkg/apis/meta/v1");
    read_package(&meta, "io.k8s.apimachinery.pkg.apis.meta.v1", &mut structs)?;
    Ok(structs.keys().map(|name| (name.clone(), flatten(name, &structs))).collect())
}

fn module(path: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir();
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{path}@{VERSION}")])
        .current_dir(dir)
        .output()
        .context("cannot run go, which `schema` needs")?;
    ensure!(
        output.status.success(),
        "go mod download {path} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    Ok(PathBuf::from(answer["Dir"].as_str().context("no Dir in the answer")?))
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut found: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    Ok(found)
}

fn read_package(dir: &Path, package: &str, structs: &mut BTreeMap<String, Vec<Line>>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let generated = name.contains("generated") || name.ends_with("_test.go");
        if name.ends_with(".go") && !generated {
            read_file(&std::fs::read_to_string(&path)?, package, structs);
        }
    }
    Ok(())
}

fn read_file(text: &str, package: &str, structs: &mut BTreeMap<String, Vec<Line>>) {
    let mut current: Option<(String, Vec<Line>)> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("type ").and_then(|l| l.strip_suffix(" struct {")) {
            current = Some((format!("{package}.{name}"), Vec::new()));
        } else if line == "}" {
            structs.extend(current.take());
        } else if let Some((_, lines)) = &mut current {
            lines.extend(read_line(line.trim()));
        }
    }
}

/// `Name *Type \`json:"name,omitempty" protobuf:"bytes,1,opt,name=name"\``
fn read_line(line: &str) -> Option<Line> {
    let (declaration, tags) = line.split_once('`')?;
    let tag = |key: &str| {
        let start = tags.find(&format!("{key}:\""))? + key.len() + 2;
        tags[start..].split('"').next()
    };
    let json = tag("json")?;
    let (name, options) = json.split_once(',').unwrap_or((json, ""));
    let words: Vec<&str> = declaration.split_whitespace().collect();
    let go_type = (*words.last()?).to_owned();
    let number = tag("protobuf").and_then(|p| p.split(',').nth(1)).and_then(|n| n.parse().ok());
    let omits = options.split(',').any(|o| o == "omitempty" || o == "omitzero") && !go_type.starts_with('*');
    Some(Line { json: name.to_owned(), go_type, number, omits })
}

/// The JSON fields of a struct, those of embedded structs included.
fn flatten(name: &str, structs: &BTreeMap<String, Vec<Line>>) -> BTreeMap<String, GoField> {
    let package = name.rsplit_once('.').map_or("", |(package, _)| package);
    let mut out = BTreeMap::new();
    for line in structs.get(name).into_iter().flatten() {
        let Some(number) = line.number else { continue };
        if line.json.is_empty() {
            for (json, field) in flatten(&format!("{package}.{}", line.go_type), structs) {
                let numbers = std::iter::once(number).chain(field.numbers).collect();
                out.insert(json, GoField { numbers, ..field });
            }
        } else {
            out.insert(line.json.clone(), GoField { numbers: vec![number], omits_zero: line.omits });
        }
    }
    out
}
