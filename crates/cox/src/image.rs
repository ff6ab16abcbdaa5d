//! `cox image`
use clap::Subcommand;
/// Images.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// List
    List,
}
pub async fn run(_: ImageCommand) -> anyhow::Result<()> {
    Ok(())
}
