//! `schema update|verify`: the built-in types' schema, taken from the data of the PyPI package kubernetes-validate.
//!
//! Two files come out: `definitions.json.gz`, the swagger definitions of the stable versions with descriptions (OpenAPI
//! documents are built from it), and `types.txt`, the facts the API server keeps in memory;
//! those that only Go's struct tags tell come from the Go modules (so this task needs Go, nothing else does).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use crate::gofacts::{self, GoField, GoTypes};
use crate::unserved;

const PACKAGE: &str = "kubernetes-validate==1.37.*";
const MEMBER: &str = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json";

/// Runs `update` or `verify`.
pub fn run(action: Option<&str>) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/schema");
    let (packed, types) = (dir.join("definitions.json.gz"), dir.join("types.txt"));
    let definitions = clean(&download()?)?;
    let go = gofacts::load()?;
    let text = serde_json::to_string(&definitions)?;
    match action {
        Some("update") => {
            std::fs::create_dir_all(&dir)?;
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(text.as_bytes())?;
            std::fs::write(&packed, encoder.finish()?)?;
            std::fs::write(&types, facts(&definitions, &go)?)?;
            println!("wrote {} and {}", packed.display(), types.display());
            Ok(())
        }
        Some("verify") => {
            let mut stored = String::new();
            GzDecoder::new(std::fs::File::open(&packed)?).read_to_string(&mut stored)?;
            ensure!(stored == text, "{} differs: run `cargo xtask schema update`", packed.display());
            let same = std::fs::read_to_string(&types)? == facts(&definitions, &go)?;
            ensure!(same, "{} differs: run `cargo xtask schema update`", types.display());
            Ok(())
        }
        _ => bail!("usage: cargo xtask schema update|verify"),
    }
}

fn download() -> Result<Value> {
    let dir = std::env::temp_dir().join(format!("cox-schema-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let fetched = fetch_into(&dir);
    std::fs::remove_dir_all(&dir)?;
    fetched
}

fn fetch_into(dir: &Path) -> Result<Value> {
    python(dir, &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", PACKAGE])?;
    let wheel: PathBuf = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .context("pip downloaded no wheel")?;
    python(dir, &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
    let text =
        std::fs::read_to_string(dir.join(MEMBER)).with_context(|| format!("no {MEMBER} in the wheel"))?;
    Ok(serde_json::from_str(&text)?)
}

fn python(dir: &Path, args: &[&str]) -> Result<()> {
    let status =
        Command::new("python3").args(args).current_dir(dir).status().context("cannot run python3")?;
    ensure!(status.success(), "python3 {} failed", args.join(" "));
    Ok(())
}

/// Alpha and beta versions are left out unless a stable type refers to them, and the JSON-schema dialect is turned back into swagger.
fn clean(document: &Value) -> Result<BTreeMap<String, Value>> {
    let all = document["$defs"].as_object().context("no $defs")?;
    let mut out = BTreeMap::new();
    let mut wanted: Vec<String> = all.keys().filter(|name| is_stable(name)).cloned().collect();
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let definition = swagger(&name, all.get(&name).with_context(|| format!("no definition {name}"))?);
        let text = definition.to_string();
        let references = text.split("\"#/definitions/").skip(1);
        wanted.extend(references.filter_map(|r| r.split('"').next()).map(str::to_owned));
        out.insert(name, definition);
    }
    Ok(out)
}

fn is_stable(name: &str) -> bool {
    let unstable = ["alpha", "beta"].iter().any(|s| name.split('.').any(|part| part.contains(s)));
    !unstable && !name.starts_with("io.k8s.api.apiserverinternal")
}

fn swagger(name: &str, definition: &Value) -> Value {
    if name.ends_with("api.resource.Quantity") {
        return json!({"type": "string"});
    }
    if name.ends_with("intstr.IntOrString") {
        return json!({"type": "string", "format": "int-or-string"});
    }
    let Value::Object(map) = definition else { return definition.clone() };
    let mut out = Map::new();
    for (key, value) in map {
        let value = match (key.as_str(), value) {
            // Only `apiVersion` and `kind` carry enumerations, which swagger does not have.
            ("enum", _) => continue,
            ("type", Value::Array(types)) => types[0].clone(),
            ("$ref", Value::String(target)) => target.replace("#/$defs/", "#/definitions/").into(),
            ("properties", Value::Object(fields)) => {
                fields.iter().map(|(k, v)| (k.clone(), swagger("", v))).collect::<Map<_, _>>().into()
            }
            ("items" | "additionalProperties", inner) => swagger("", inner),
            (_, other) => other.clone(),
        };
        out.insert(key.clone(), value);
    }
    Value::Object(out)
}

/// The fact table: a line `= <name> [group/version/kind ...]` a type, then one a field in Go's order:
/// `<name> <type>[ <flag>...]`; see `coxswain_api::schema` for the letters.
fn facts(definitions: &BTreeMap<String, Value>, go: &GoTypes) -> Result<String> {
    let unserved = unserved::types(definitions, go)?;
    let names: BTreeSet<&str> =
        definitions.keys().map(String::as_str).chain(unserved.iter().map(|t| t.name.as_str())).collect();
    let index: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (*n, i)).collect();
    let mut out = String::new();
    for name in &names {
        match definitions.get(*name) {
            Some(definition) => served(&mut out, name, definition, &index, go)?,
            None => {
                unserved.iter().filter(|t| t.name == *name).try_for_each(|t| t.write(&mut out, &index))?
            }
        }
    }
    Ok(out)
}

fn served(
    out: &mut String,
    name: &str,
    definition: &Value,
    index: &BTreeMap<&str, usize>,
    go: &GoTypes,
) -> Result<()> {
    write!(out, "= {name}")?;
    for gvk in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
        let part = |key: &str| gvk[key].as_str().unwrap_or_default();
        write!(out, " {}/{}/{}", part("group"), part("version"), part("kind"))?;
    }
    out.push('\n');
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut fields: Vec<(&String, &Value)> =
        definition["properties"].as_object().into_iter().flatten().collect();
    // The type members come from an embedded struct without numbers, first of all.
    fields.sort_by_key(|(field, _)| match (go.field(name, field), field.as_str()) {
        (None, "kind") => (0, 0),
        (None, "apiVersion") => (0, 1),
        (_, other) => (1, go.position(name, other)),
    });
    for (field, schema) in fields {
        write!(out, "{field} {}", letter(schema, index)?)?;
        flags(out, schema, required.contains(&field.as_str()))?;
        if let Some(facts) = go.field(name, field) {
            numbers(out, field, facts)?;
        }
        out.push('\n');
    }
    Ok(())
}

/// What Go adds to a field.
pub fn numbers(out: &mut String, field: &str, facts: &GoField) -> Result<()> {
    let numbers: Vec<String> = facts.numbers.iter().map(u32::to_string).collect();
    write!(out, " #={}", numbers.join("."))?;
    if facts.omits_zero {
        out.push_str(" -");
    }
    if facts.omits_empty_struct {
        out.push_str(" ~");
    }
    if facts.plain {
        out.push_str(" +");
    }
    if facts.shown().contains('.') {
        write!(out, " go={}", facts.shown())?;
    }
    if !facts.embedded.is_empty() {
        write!(out, " in={}", facts.embedded.join("."))?;
    }
    if !facts.go_name.eq_ignore_ascii_case(field) || facts.go_name[1..] != field[1..] {
        write!(out, " name={}", facts.go_name)?;
    }
    Ok(())
}

fn letter(schema: &Value, index: &BTreeMap<&str, usize>) -> Result<String> {
    if let Some(target) = schema["$ref"].as_str() {
        let name = target.trim_start_matches("#/definitions/");
        return Ok(match name.rsplit('.').next().unwrap_or_default() {
            "Quantity" => "q".into(),
            "IntOrString" => "o".into(),
            "Time" => "t".into(),
            "MicroTime" => "u".into(),
            "RawExtension" | "FieldsV1" | "JSON" => "*".into(),
            union if union.starts_with("JSONSchemaPropsOr") => {
                let schema = name.replace(union, "JSONSchemaProps");
                let letter = union.trim_start_matches("JSONSchemaPropsOr").to_lowercase();
                let index = index.get(schema.as_str()).context("no JSONSchemaProps")?;
                format!("{}{index}", &letter[..1].to_uppercase())
            }
            _ => format!("@{}", index.get(name).with_context(|| format!("no definition {name}"))?),
        });
    }
    let format = schema["format"].as_str().unwrap_or_default();
    Ok(match (schema["type"].as_str().unwrap_or_default(), format) {
        ("string", "byte") => "y".into(),
        ("string", "date-time") => "t".into(),
        ("string", _) => "s".into(),
        ("integer", "int32") => "i".into(),
        ("integer", _) => "l".into(),
        ("number", _) => "d".into(),
        ("boolean", _) => "b".into(),
        ("array", _) => format!("[{}", letter(&schema["items"], index)?),
        ("object", _) if schema["additionalProperties"].is_object() => {
            format!("{{{}", letter(&schema["additionalProperties"], index)?)
        }
        _ => "*".into(),
    })
}

fn flags(out: &mut String, schema: &Value, required: bool) -> Result<()> {
    let text = |key: &str| schema[key].as_str().unwrap_or_default();
    if required {
        out.push_str(" !");
    }
    if let Some(kind) = text("x-kubernetes-list-type").chars().next() {
        write!(out, " list={kind}")?;
    }
    if let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() {
        let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
        write!(out, " keys={}", keys.join(","))?;
    }
    if !text("x-kubernetes-patch-strategy").is_empty() {
        write!(out, " patch={}", text("x-kubernetes-patch-strategy"))?;
    }
    if !text("x-kubernetes-patch-merge-key").is_empty() {
        write!(out, " by={}", text("x-kubernetes-patch-merge-key"))?;
    }
    Ok(())
}
