//! Golden files under test: upstream's JSON and protobuf bytes of the same object, for every stable kind.
//!
//! They are read from `COX_GOLDEN_DIR`, or from `../shared/golden` beside the repository; without either the test says that it is
//! skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coxswain_meta::json::Value;

use super::{TypeRef, by_gvk, decode_protobuf, decode_protobuf_message, normalise, wire, write_json};

/// Files by name, without extension.
#[derive(Default)]
struct Pair {
    json: Option<PathBuf>,
    pb: Option<PathBuf>,
}

fn directory() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("COX_GOLDEN_DIR") {
        return Some(dir.into());
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden");
    beside.is_dir().then_some(beside)
}

fn collect(dir: &Path, out: &mut BTreeMap<String, Pair>) {
    for entry in std::fs::read_dir(dir).expect("a readable directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, out);
            continue;
        }
        let key = path.with_extension("").to_string_lossy().into_owned();
        match path.extension().and_then(|e| e.to_str()) {
            Some("json") => out.entry(key).or_default().json = Some(path),
            Some("pb") => out.entry(key).or_default().pb = Some(path),
            _ => {}
        }
    }
}

/// `apps.v1.Deployment`, `core.v1.Pod`, …
fn type_of(name: &str) -> Option<TypeRef> {
    let mut parts = name.rsplitn(3, '.');
    let (kind, version, group) = (parts.next()?, parts.next()?, parts.next()?);
    by_gvk(if group == "core" { "" } else { group }, version, kind)
}

fn is_unstable(name: &str) -> bool {
    name.split('.').any(|part| part.starts_with('v') && (part.contains("alpha") || part.contains("beta")))
}

fn decode(bytes: &[u8], type_ref: TypeRef) -> Result<Value, String> {
    // Kinds without type members, such as WatchEvent, name no kind in the envelope.
    match bytes.strip_prefix(b"k8s\0\x0a\x04\x0a\x00\x12\x00") {
        None => decode_protobuf(bytes),
        Some(_) => decode_protobuf_message(super::protobuf::raw(bytes)?, type_ref),
    }
}

fn encode(object: &Value, type_ref: TypeRef) -> Vec<u8> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    wire::envelope(text("apiVersion"), text("kind"), &wire::message_field(object, type_ref))
}

fn read(path: Option<&PathBuf>) -> Vec<u8> {
    path.map(|path| std::fs::read(path).expect("readable")).unwrap_or_default()
}

/// What differs for one pair.
fn compare(pair: &Pair, wanted: &Pair, type_ref: TypeRef) -> Result<(), String> {
    let (json, pb) = (read(wanted.json.as_ref()), read(wanted.pb.as_ref()));
    let mut from_json: Value =
        serde_json::from_slice(&read(pair.json.as_ref())).map_err(|e| e.to_string())?;
    normalise(&mut from_json, type_ref);
    let mut from_pb = decode(&read(pair.pb.as_ref()), type_ref)?;
    normalise(&mut from_pb, type_ref);
    let text = String::from_utf8_lossy(&json);
    for (what, object) in [("JSON", &from_json), ("protobuf", &from_pb)] {
        let written = write_json(object, type_ref);
        if written.trim_end() != text.trim_end() {
            let (ours, theirs) = written.lines().zip(text.lines()).find(|(a, b)| a != b).unwrap_or_default();
            return Err(format!("{what} to JSON: {ours:?}, not {theirs:?}"));
        }
        let encoded = encode(object, type_ref);
        if encoded != pb {
            let at = encoded.iter().zip(&pb).position(|(a, b)| a != b).unwrap_or(encoded.len().min(pb.len()));
            return Err(format!("{what} to protobuf differs from byte {at}"));
        }
    }
    Ok(())
}

#[test]
fn golden_files_round_trip() {
    let Some(dir) = directory() else {
        eprintln!("SKIPPED golden_files_round_trip: no COX_GOLDEN_DIR and no ../shared/golden");
        return;
    };
    let mut pairs = BTreeMap::new();
    collect(&dir, &mut pairs);
    let (mut tried, mut faults) = (0, Vec::new());
    for (key, pair) in pairs.iter().filter(|(key, _)| !key.ends_with(".after_roundtrip")) {
        let name = key.rsplit('/').next().unwrap_or(key);
        if is_unstable(name) {
            eprintln!("{name}: no stable version, not served");
            continue;
        }
        let wanted = pairs.get(&format!("{key}.after_roundtrip"));
        let wanted = Pair {
            json: wanted.and_then(|w| w.json.clone()).or_else(|| pair.json.clone()),
            pb: wanted.and_then(|w| w.pb.clone()).or_else(|| pair.pb.clone()),
        };
        let result = match type_of(name) {
            Some(type_ref) => compare(pair, &wanted, type_ref),
            None => Err("no such kind".to_owned()),
        };
        faults.extend(result.err().map(|fault| format!("{name}: {fault}")));
        tried += 1;
    }
    assert!(tried > 0, "no golden files in {}", dir.display());
    assert!(faults.is_empty(), "{} of {tried} differ:\n{}", faults.len(), faults.join("\n"));
}
