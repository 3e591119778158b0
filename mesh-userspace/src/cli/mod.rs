//! The command line: one file for each verb.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory, FromArgMatches as _, Parser, Subcommand};

mod attach;
mod check;
mod cni;
mod detach;
mod docker;
mod doctor;
mod down;
mod examples;
mod failure;
mod file;
mod generate;
mod init;
mod log;
mod path;
mod peer_commands;
mod session;
mod status;
mod up;

/// Joins containers on many hosts into one network, at the speed of the wire.
#[derive(Debug, Parser)]
#[command(name = "mesh", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub log: log::LogArgs,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Above the options that every command has.
const GLOBAL: &str = "Options of every command";

/// Where an agent keeps what it must find again. Two agents on one machine have two of each.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// Folder of the agent's socket, lock and state
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    #[arg(default_value = Place::DEFAULT_RUN_DIR, env = Place::RUN_DIR)]
    #[arg(value_parser = path::named())]
    pub run_dir: PathBuf,
    /// Folder of the pinned programs and maps; a bpf file system is mounted if there is none
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    #[arg(default_value = Place::DEFAULT_PIN_DIR, env = "MESH_PIN_DIR")]
    #[arg(value_parser = path::named())]
    pub pin_dir: PathBuf,
    /// Folder of what this host must still know after a reboot; `mesh down` leaves it, `mesh down
    /// --forget` removes it
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    #[arg(default_value = Place::DEFAULT_STATE_DIR, env = "MESH_STATE_DIR")]
    #[arg(value_parser = path::named())]
    pub state_dir: PathBuf,
}

impl Place {
    pub const DEFAULT_RUN_DIR: &str = "/run/mesh";
    pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/mesh";
    pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh";
    const RUN_DIR: &str = "MESH_RUN_DIR";
}

/// What `mesh init` writes and the others read.
const DEFAULT_CONFIG: &str = "/etc/mesh/cluster.toml";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write the config file of a mesh of these hosts
    Init(init::InitArgs),
    /// Bring this host into the mesh: run the agent, in the foreground, until Ctrl-C or `mesh down`
    Up(up::UpArgs),
    /// Take this host out of the mesh: its interfaces, programs, routes and firewall rules, also after
    /// a crash. The state folder stays, so that the next `mesh up` finds what it knew
    Down(down::DownArgs),
    /// Connect a network namespace, such as a container's, to the mesh
    Attach(attach::AttachArgs),
    /// Disconnect what `attach` connected
    Detach(detach::DetachArgs),
    /// Show this host's part of the mesh: faults, peers, endpoints, traffic and dropped packets
    Status(status::StatusArgs),
    /// Read a config file as the agent would, and print the mesh it describes or all its faults
    Check(check::CheckArgs),
    /// Look at this kernel and host, and say what mesh can use, what is wrong and what mends it.
    /// Exits with 1 if the host can not be part of a mesh
    Doctor(doctor::DoctorArgs),
    /// Prepare this host's Docker for the names of the mesh
    #[command(subcommand)]
    Docker(docker::DockerVerb),
    /// The CNI plugin: called by container runtimes, installed for them by `install`
    Cni(cni::CniArgs),
    /// Print the script by which a shell completes mesh's commands and options
    Completions(generate::CompletionsArgs),
    /// Write the man pages into a folder
    Man(generate::ManArgs),
}

/// Parses the arguments, runs the verb, prints what went wrong.
pub fn main() -> ExitCode {
    // A container waits: no more is done than is needed.
    if crate::cni::is_called() {
        let run_dir = std::env::var_os(Place::RUN_DIR).filter(|dir| !dir.is_empty());
        return crate::cni::main(&run_dir.map_or(Place::DEFAULT_RUN_DIR.into(), PathBuf::from));
    }
    let mut cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|e| e.exit());
    if let Verb::Cni(cni::CniArgs { verb: None }) = cli.verb {
        return crate::cni::main(&cli.place.run_dir);
    }
    log::start(&cli.log);
    let json = cli.verb.is_json();
    // Before there is a second thread: only then may a process change its mount namespace.
    if cli.verb.touches_pins() {
        cli.place.pin_dir = crate::mountns::enter_lasting(cli.place.pin_dir);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("no event loop").and_then(|runtime| runtime.block_on(run(cli)));
    done.unwrap_or_else(|e| failure::report(&e, json))
}

/// The arguments, with examples.
fn command() -> clap::Command {
    examples::add(Cli::command())
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let place = cli.place;
    match cli.verb {
        Verb::Init(args) => init::run(args).await,
        Verb::Up(args) => up::run(args, &place).await,
        Verb::Down(args) => down::run(args, &place).await,
        Verb::Attach(args) => attach::run(args, &place).await,
        Verb::Detach(args) => detach::run(args, &place).await,
        Verb::Status(args) => status::run(args, &place).await,
        Verb::Check(args) => check::run(args).await,
        Verb::Doctor(args) => doctor::run(args, &place).await,
        Verb::Docker(verb) => docker::run(verb, &place).await,
        Verb::Cni(args) => cni::run(args, &place),
        Verb::Completions(args) => generate::completions(args, command()),
        Verb::Man(args) => generate::man(args, command()),
    }
}

impl Verb {
    fn touches_pins(&self) -> bool {
        matches!(
            self,
            Self::Up(_)
                | Self::Down(_)
                | Self::Attach(_)
                | Self::Detach(_)
                | Self::Status(_)
                | Self::Doctor(_)
                | Self::Docker(_)
        )
    }

    /// What it prints is for programs.
    fn is_json(&self) -> bool {
        match self {
            Self::Attach(args) => args.json,
            Self::Status(args) => args.json,
            Self::Check(args) => args.json,
            Self::Doctor(args) => args.json,
            Self::Docker(docker::DockerVerb::Configure(args)) => args.json,
            Self::Cni(args) => args.is_json(),
            Self::Init(_)
            | Self::Up(_)
            | Self::Down(_)
            | Self::Detach(_)
            | Self::Completions(_)
            | Self::Man(_) => false,
        }
    }
}

/// Prints to stdout. Unlike `println!`, a closed pipe is an error and not a panic.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(&serde_json::to_string_pretty(value)?)?)
}
