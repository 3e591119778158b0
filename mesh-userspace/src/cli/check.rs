//! `mesh check`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The cluster's config file
    #[arg(long, required_unless_present = "schema")]
    pub config: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// Print the JSON schema of the config file instead
    #[arg(long)]
    pub schema: bool,
}

pub fn run(_args: CheckArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not here yet")
}
