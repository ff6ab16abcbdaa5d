//! What only the Go types tell: protobuf field numbers, the order of fields, which fields are no pointers, and which leave their
//! zero value out of JSON.
//!
//! Read from the struct tags of the modules that define the built-in kinds.

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
    /// A struct without any content does not appear in JSON.
    pub omits_empty_struct: bool,
    /// No pointer: there is always a value.
    pub plain: bool,
    /// The type as it is written, and the package it is written in.
    pub go_type: String,
    /// That package.
    pub package: String,
    /// The embedded structs on the way to the field.
    pub embedded: Vec<String>,
    /// The field's name in Go.
    pub go_name: String,
}

/// What was read.
#[derive(Default)]
pub struct GoTypes {
    /// JSON fields in order of declaration, by definition name (`io.k8s.api.core.v1.Pod`).
    pub structs: BTreeMap<String, Vec<(String, GoField)>>,
    /// Named types that are no structs, such as `type UID string`.
    pub aliases: BTreeMap<String, String>,
}

impl GoField {
    /// The type as Go's decoder names it: without pointers, every name with the last part of its package.
    pub fn shown(&self) -> String {
        let local = self.package.rsplit('.').next().unwrap_or_default();
        let (mut out, mut word) = (String::new(), String::new());
        let finish = |out: &mut String, word: &mut String| {
            let text = std::mem::take(word);
            match text.split_once('.') {
                // An import's own name ends in the package's, such as `metav1`.
                Some((import, name)) if import.ends_with("v1") => out.push_str(&format!("v1.{name}")),
                None if text.starts_with(char::is_uppercase) => out.push_str(&format!("{local}.{text}")),
                _ if text == "byte" => out.push_str("uint8"),
                _ => out.push_str(&text),
            }
        };
        for c in self.go_type.trim_start_matches('*').chars() {
            if c.is_alphanumeric() || c == '.' {
                word.push(c);
            } else {
                finish(&mut out, &mut word);
                out.push(c);
            }
        }
        finish(&mut out, &mut word);
        out
    }
}

impl GoTypes {
    /// The facts of one field.
    pub fn field(&self, definition: &str, field: &str) -> Option<&GoField> {
        self.structs.get(definition)?.iter().find(|(name, _)| name == field).map(|(_, field)| field)
    }

    /// Where a field is declared among its siblings.
    pub fn position(&self, definition: &str, field: &str) -> usize {
        let fields = self.structs.get(definition).map_or(&[][..], Vec::as_slice);
        fields.iter().position(|(name, _)| name == field).unwrap_or(usize::MAX)
    }
}

/// A field as its line declares it.
struct Line {
    /// Empty for embedded structs without a name of their own in JSON.
    json: String,
    go_name: String,
    go_type: String,
    number: Option<u32>,
    omits: bool,
    omits_zero_struct: bool,
}

/// Downloads the modules and reads their types.
pub fn load() -> Result<GoTypes> {
    let mut read = Read::default();
    let api = module("k8s.io/api")?;
    for group in directories(&api)? {
        for version in directories(&group)? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            read.package(&version, &format!("io.k8s.api.{}.{}", name(&group), name(&version)))?;
        }
    }
    for (name, path, package) in [
        ("k8s.io/apimachinery", "pkg/apis/meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
        (
            "k8s.io/apiextensions-apiserver",
            "pkg/apis/apiextensions/v1",
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
        ),
        (
            "k8s.io/kube-aggregator",
            "pkg/apis/apiregistration/v1",
            "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
        ),
    ] {
        read.package(&module(name)?.join(path), package)?;
    }
    let structs = read.structs.keys().map(|name| (name.clone(), read.flatten(name))).collect();
    Ok(GoTypes { structs, aliases: read.aliases })
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

#[derive(Default)]
struct Read {
    structs: BTreeMap<String, Vec<Line>>,
    aliases: BTreeMap<String, String>,
}

impl Read {
    fn package(&mut self, dir: &Path, package: &str) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let generated = name.contains("generated") || name.ends_with("_test.go");
            if name.ends_with(".go") && !generated {
                self.file(&std::fs::read_to_string(&path)?, package);
            }
        }
        Ok(())
    }

    fn file(&mut self, text: &str, package: &str) {
        let mut current: Option<(String, Vec<Line>)> = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("type ").and_then(|l| l.strip_suffix(" struct {")) {
                current = Some((format!("{package}.{name}"), Vec::new()));
            } else if let Some((name, alias)) =
                line.strip_prefix("type ").and_then(|rest| rest.split_once(' '))
            {
                let alias = alias.split(" //").next().unwrap_or_default().trim();
                self.aliases.insert(format!("{package}.{name}"), alias.to_owned());
            } else if line == "}" {
                self.structs.extend(current.take());
            } else if let Some((_, lines)) = &mut current {
                lines.extend(read_line(line.trim()));
            }
        }
    }

    /// The JSON fields of a struct, those of embedded structs included.
    fn flatten(&self, name: &str) -> Vec<(String, GoField)> {
        let package = name.rsplit_once('.').map_or("", |(package, _)| package);
        let mut out = Vec::new();
        for line in self.structs.get(name).into_iter().flatten() {
            let Some(number) = line.number else { continue };
            if line.json.is_empty() {
                for (json, field) in self.flatten(&format!("{package}.{}", line.go_type)) {
                    let numbers = std::iter::once(number).chain(field.numbers).collect();
                    let embedded = std::iter::once(line.go_type.clone()).chain(field.embedded).collect();
                    out.push((json, GoField { numbers, embedded, ..field }));
                }
            } else {
                let field = GoField {
                    numbers: vec![number],
                    omits_zero: line.omits,
                    omits_empty_struct: line.omits_zero_struct,
                    plain: !line.go_type.starts_with(['*', '[']) && !line.go_type.starts_with("map["),
                    go_type: line.go_type.clone(),
                    package: package.to_owned(),
                    embedded: Vec::new(),
                    go_name: line.go_name.clone(),
                };
                out.push((line.json.clone(), field));
            }
        }
        out
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
    let go_name = words.first()?.rsplit('.').next()?.to_owned();
    let number = tag("protobuf").and_then(|p| p.split(',').nth(1)).and_then(|n| n.parse().ok());
    let omits = options.split(',').any(|o| o == "omitempty" || o == "omitzero") && !go_type.starts_with('*');
    let omits_zero_struct = options.split(',').any(|o| o == "omitzero");
    Some(Line { json: name.to_owned(), go_name, go_type, number, omits, omits_zero_struct })
}
