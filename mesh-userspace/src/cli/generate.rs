//! `mesh completions` and `mesh man`

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go; the folder is made if it is not there
    #[arg(value_parser = super::path::named())]
    pub folder: PathBuf,
}

pub fn completions(args: CompletionsArgs, mut command: Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mesh", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: ManArgs, command: Command) -> anyhow::Result<ExitCode> {
    let what = || format!("writing man pages to {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(what)?;
    clap_mangen::generate_to(command, &args.folder).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}
