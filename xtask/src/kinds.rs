//! `docs/kinds.md`: every kind that is served, with its verbs and what is tested of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use coxswain_api::catalogue::{ALL_VERBS, KINDS, Kind};

const FILE: &str = "docs/kinds.md";
const MANIFESTS: &str = "crates/e2e/examples/differential/manifests";

/// Writes the table, or checks that it says what is so.
pub fn run(root: &Path, task: Option<&str>) -> anyhow::Result<()> {
    let file = root.join(FILE);
    let table = table(&manifests(&root.join(MANIFESTS))?);
    match task {
        Some("update") => std::fs::write(&file, table).with_context(|| file.display().to_string()),
        Some("verify") => {
            let found = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            anyhow::ensure!(found == table, "{FILE} is stale: run `cargo xtask kinds update`");
            Ok(())
        }
        _ => anyhow::bail!("usage: cargo xtask kinds update|verify"),
    }
}

/// How many manifests there are of each `apiVersion kind`.
fn manifests(dir: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let text = std::fs::read_to_string(entry?.path())?;
        let mut version = "";
        for line in text.lines() {
            if let Some(found) = line.strip_prefix("apiVersion: ") {
                version = found.trim();
            } else if let Some(kind) = line.strip_prefix("kind: ") {
                *out.entry(format!("{version} {}", kind.trim())).or_default() += 1;
            }
        }
    }
    Ok(out)
}

fn table(manifests: &BTreeMap<String, usize>) -> String {
    let mut out = String::from(
        "# Kinds\n\n\
         Made by `cargo xtask kinds update`; `cargo xtask kinds verify` checks it.\n\n\
         - **all**: create, delete, deletecollection, get, list, patch, update, watch.\n\
         - **row**: `catalogue::tests` decodes, defaults, validates, updates, prints, stores and converts the least object of it.\n\
         - **bytes**: `schema::golden` turns upstream's JSON and protobuf of it into each other, byte for byte.\n\
         - **walk**: `crates/e2e/tests/catalogue.rs` creates, reads (JSON, YAML, protobuf, list, table, watch), patches, updates and \
         deletes one through the API, as a dry run too, and is refused without a role.\n\
         - **compared**: manifests that the differential test asks of upstream's kube-apiserver too, with mutations of them.\n\n\
         | kind | version | scope | verbs | subresources | tested | compared |\n\
         | --- | --- | --- | --- | --- | --- | ---: |\n",
    );
    let mut kinds: Vec<&Kind> = KINDS.iter().collect();
    kinds.sort_by_key(|kind| (kind.group, kind.kind, kind.version));
    for kind in kinds {
        let whole = kind.verbs == ALL_VERBS;
        let verbs = if whole { "all".to_owned() } else { kind.verbs.join(", ") };
        let subresources: Vec<&str> = kind.subresources.iter().map(|subresource| subresource.name).collect();
        let tested = if kind.verbs.contains(&"watch") { "row, bytes, walk" } else { "row, bytes" };
        let compared = manifests.get(&format!("{} {}", kind.api_version(), kind.kind)).unwrap_or(&0);
        let scope = if kind.namespaced { "namespace" } else { "cluster" };
        let _ = writeln!(
            out,
            "| {} | {} | {scope} | {verbs} | {} | {tested} | {compared} |",
            kind.kind,
            kind.api_version(),
            subresources.join(", ")
        );
    }
    out
}
