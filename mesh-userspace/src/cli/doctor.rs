//! `mesh doctor`

use std::process::ExitCode;

use clap::Args;

use super::Place;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

pub async fn run(_args: DoctorArgs, _place: &Place) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not here yet")
}
