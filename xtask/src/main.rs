//! Chores of the repository: `cargo xtask <task>`.

mod gofacts;
mod schema;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("schema") => schema::run(args.get(1).map(String::as_str)),
        _ => anyhow::bail!("usage: cargo xtask schema update|verify"),
    }
}
