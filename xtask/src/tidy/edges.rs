//! Which crate may use which: the table of ARCHITECTURE.md.

use std::path::Path;

/// Each crate with those of ours it may use. What `client` may use, those above it may too.
const EDGES: &[(&str, &[&str])] = &[
    ("meta", &[]),
    // Its tests start an etcd.
    ("store", &["testkit"]),
    ("cri", &[]),
    ("api", &["meta"]),
    ("client", &["api", "meta"]),
    ("apiserver", &["api", "meta", "store"]),
    ("controllers", &["client", "api", "meta"]),
    ("scheduler", &["client", "api", "meta"]),
    ("kubelet", &["client", "api", "meta", "cri"]),
    ("network", &["client", "api", "meta", "cri"]),
    ("runtime", &["cri"]),
    (
        "cox",
        &[
            "api",
            "apiserver",
            "client",
            "controllers",
            "cri",
            "kubelet",
            "meta",
            "network",
            "runtime",
            "scheduler",
            "store",
        ],
    ),
    ("testkit", &[]),
    ("e2e", &["testkit"]),
];

/// Edges that the table does not have, and crates that it does not know.
pub fn complaints(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let directory = entry?.path();
        let Ok(manifest) = std::fs::read_to_string(directory.join("Cargo.toml")) else { continue };
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.extend(check(&name, &manifest));
    }
    Ok(found)
}

fn check(name: &str, manifest: &str) -> Vec<String> {
    let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
        return vec![format!("crates/{name}: not in the table of crate edges")];
    };
    uses(manifest)
        .filter(|used| !allowed.contains(used))
        .map(|used| format!("crates/{name}/Cargo.toml: may not depend on {used}"))
        .collect()
}

/// Our crates among the dependencies, tests' included.
fn uses(manifest: &str) -> impl Iterator<Item = &str> {
    let mut in_dependencies = false;
    manifest.lines().filter_map(move |line| {
        if let Some(section) = line.trim().strip_prefix('[') {
            in_dependencies = section.trim_end_matches(']').ends_with("dependencies");
        }
        let used = line.strip_prefix("coxswain-")?;
        let end = used.find(['.', ' ', '='])?;
        in_dependencies.then_some(&used[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_is_not_in_the_table_is_told() {
        let manifest =
            "[package]\nname = \"coxswain-store\"\n[dev-dependencies]\ncoxswain-api.workspace = true\n";
        assert_eq!(check("store", manifest), ["crates/store/Cargo.toml: may not depend on api"]);
        assert_eq!(check("apiserver", manifest), [""; 0]);
        assert_eq!(check("unheard-of", ""), ["crates/unheard-of: not in the table of crate edges"]);
    }
}
