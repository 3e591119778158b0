//! The command line: one file for each verb.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

mod check;
mod doctor;

/// Joins containers on many hosts into one network, at the speed of the wire.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where an agent keeps what it must find again. Two agents on one machine have two of each.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Folder of the agent's socket, lock and state
    #[arg(long, global = true, default_value = "/run/mesh", env = "MESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Folder of the pinned programs and maps; a bpf file system is mounted if there is none
    #[arg(long, global = true, default_value = "/sys/fs/bpf/mesh", env = "MESH_PIN_DIR")]
    pub pin_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Read a config file as the agent would, and print the mesh it describes or all its faults
    Check(check::CheckArgs),
    /// Find out what this kernel and host can do, and what to mend
    Doctor(doctor::DoctorArgs),
}

/// Parses the arguments, runs the verb, prints what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("mesh: no event loop: {e}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match cli.verb {
            Verb::Check(args) => check::run(args),
            Verb::Doctor(args) => doctor::run(args, &cli.place).await,
        }
    });
    done.unwrap_or_else(|e| {
        eprintln!("mesh: {e:#}");
        ExitCode::FAILURE
    })
}
