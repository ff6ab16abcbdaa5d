//! The demo app.
use clap::Args;
/// Flags.
#[derive(Args)]
pub struct NotepadArgs {}
pub fn run(_: &NotepadArgs) -> anyhow::Result<()> {
    Ok(())
}
