//! Chores of the repository: `cargo xtask <task>`.

mod conformance;
mod gofacts;
mod kinds;
mod schema;
mod signatures;
mod tidy;
mod unserved;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("conformance") => conformance::run(root(), &args[1..]),
        Some("kinds") => kinds::run(root(), args.get(1).map(String::as_str)),
        Some("schema") => schema::run(args.get(1).map(String::as_str)),
        Some("signatures") => signatures::run(root(), args.get(1).map(String::as_str)),
        Some("tidy") => tidy::run(root()),
        _ => anyhow::bail!(
            "usage: cargo xtask tidy | schema update|verify | kinds update|verify | signatures update|verify | conformance\n{}",
            conformance::USAGE
        ),
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
