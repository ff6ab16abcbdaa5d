//! What upstream says of CEL: the signatures of its functions, and its answers to expressions that a test asks. Needs Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

const TYPING: &str = "crates/apiserver/src/cel/typing";

/// Asks upstream's environment, and writes what it says or checks that it is what is written.
pub fn run(root: &Path, task: Option<&str>) -> anyhow::Result<()> {
    let file = |name: &str| root.canonicalize().map(|root| root.join(TYPING).join(name));
    let (signatures, answers) = (file("signatures.txt")?, file("answers.txt")?);
    let found = [(signatures, asked(root, None)?), (answers.clone(), asked(root, Some(&answers))?)];
    for (file, text) in found {
        match task {
            Some("update") => std::fs::write(&file, text).with_context(|| file.display().to_string())?,
            Some("verify") => {
                let known = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                anyhow::ensure!(
                    known == text,
                    "{} is stale: run `cargo xtask signatures update`",
                    file.display()
                );
            }
            _ => anyhow::bail!("usage: cargo xtask signatures update|verify"),
        }
    }
    Ok(())
}

fn asked(root: &Path, expressions: Option<&PathBuf>) -> anyhow::Result<String> {
    let mut go = Command::new("go");
    go.current_dir(root.join("oracle")).args(["run", "./expressions"]).args(expressions);
    let output = go.output().context("running go")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
