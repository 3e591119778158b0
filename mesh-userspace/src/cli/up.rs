//! `mesh up`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::Place;
use crate::{
    agent::{self, Settings},
    bpf::{attach::Mode, probe::KernelFeatures},
    host::Host,
    state,
};

#[derive(Debug, Args)]
pub struct UpArgs {
    /// The cluster's config file, the same on each host
    #[arg(long)]
    pub config: PathBuf,
    /// Which node this host is [default: the one whose underlay address is on this machine, else
    /// the one with the machine's name]
    #[arg(long)]
    pub node: Option<String>,
    /// Apply the file and exit; the data plane runs on without an agent
    #[arg(long)]
    pub once: bool,
    /// How programs are attached: tcx (since Linux 6.6) or clsact [default: tcx where the kernel
    /// has it]
    #[arg(long, value_name = "MODE")]
    pub attach_mode: Option<Mode>,
}

pub async fn run(args: UpArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let has_tcx = KernelFeatures::probe().tcx.is_present();
    let settings = Settings {
        config: args.config,
        node: args.node,
        mode: args.attach_mode.unwrap_or(if has_tcx { Mode::Tcx } else { Mode::Clsact }),
        socket: state::socket(&place.run_dir),
    };
    if settings.mode == Mode::Tcx && !has_tcx {
        anyhow::bail!("this kernel has no tcx (since Linux 6.6): leave --attach-mode out");
    }
    let mut host = Host::open(place)?;
    let config_error = agent::start(&mut host, &settings).await?;
    if args.once {
        return Ok(if config_error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    agent::run(host, settings, config_error).await?;
    Ok(ExitCode::SUCCESS)
}
