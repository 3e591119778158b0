//! One command each to set up, build, run and test. `cargo xtask --help`.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

mod artifacts;
mod bench;
mod ci;
mod exec;
mod readme;
mod report;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;

/// Sets up, builds, runs and tests mesh
///
/// Each command first installs what it needs and this machine lacks, and says so before it does.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, running and testing need: nothing, if it is there
    Setup,
    /// Show the mesh at work: three hosts in namespaces, every pair checked. With `-- ARGS`,
    /// run `mesh ARGS` as root
    Run {
        #[command(flatten)]
        demo: run::RunArgs,
        /// What to give to mesh instead
        #[arg(last = true, value_name = "ARGS")]
        mesh: Vec<OsString>,
    },
    /// Measure mesh against what else joins containers, side by side
    Bench(bench::BenchArgs),
    /// Make traffic for `bench`
    #[command(hide = true)]
    Traffic { job: String },
    /// Measure on the kernel of an emulated machine, for `bench --vm`
    #[command(hide = true)]
    VmBench {
        rounds: usize,
        #[arg(value_delimiter = ',')]
        candidates: Vec<String>,
    },
    /// Run all tests that this machine can run, and say what was skipped and why
    Test(test::TestArgs),
    /// Run a command on another kernel, in an emulated machine with this one's files
    Vm(vm::VmArgs),
    /// Run what CI runs besides the tests: format, lints, licences, the README's commands
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::everything().map(|()| ExitCode::SUCCESS),
        Task::Run { mesh, .. } if !mesh.is_empty() => run_mesh(&mesh),
        Task::Run { demo, .. } => run_demo(demo),
        Task::Bench(args) => bench::run(&args),
        Task::Traffic { job } => bench::traffic(&job).map(|()| ExitCode::SUCCESS),
        Task::VmBench { rounds, candidates } => {
            bench::in_guest(rounds, &candidates).map(|()| ExitCode::SUCCESS)
        }
        Task::Test(args) => test::run(args).map(|()| ExitCode::SUCCESS),
        Task::Vm(args) => vm::run(args),
        Task::Ci => ci::run_all().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|e| {
        eprintln!("xtask: {e:#}");
        ExitCode::FAILURE
    })
}

fn run_demo(args: run::RunArgs) -> Result<ExitCode> {
    setup::compilers()?;
    setup::packages(setup::DEMO)?;
    run::run(args)
}

/// Becomes `mesh ARGS`, so that signals and the exit status are its own.
fn run_mesh(args: &[OsString]) -> Result<ExitCode> {
    setup::compilers()?;
    let no_vars: [(&str, &str); 0] = [];
    let mut mesh: Command = exec::as_root(artifacts::mesh()?, no_vars);
    Err(mesh.args(args).exec()).with_context(|| exec::line(&mesh))
}
