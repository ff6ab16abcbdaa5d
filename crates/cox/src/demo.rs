//! `cox demo`
use clap::Args;
/// Demo flags.
#[derive(Args)]
pub struct DemoArgs {}
pub async fn run(_: DemoArgs) -> anyhow::Result<()> {
    Ok(())
}
