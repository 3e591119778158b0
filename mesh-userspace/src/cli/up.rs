//! `mesh up`

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use super::Place;
use crate::{
    agent::{
        self, Settings, client,
        privileges::{self, Sockets},
    },
    bpf::{attach::Mode, probe::KernelFeatures},
    holder::Holder,
    host::{Host, HostError},
    serving::Serving,
    state::{self, StateError},
    supervise,
};

/// How long to wait for the lock. Commands hold it for a moment, one after the other perhaps, and all
/// of them may be slow; an agent holds it for its life, unless it is about to end.
const FOR_COMMANDS: Duration = Duration::from_secs(20);
const FOR_AN_AGENT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub struct UpArgs {
    /// The cluster's config file, the same on each host
    #[arg(long, default_value = super::DEFAULT_CONFIG, value_parser = super::path::named())]
    pub config: PathBuf,
    /// Which node this host is [default: the one whose underlay address is on this machine, else
    /// the one with the machine's name]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node: Option<String>,
    /// Apply the file and exit; the data plane runs on without an agent
    #[arg(long)]
    pub once: bool,
    /// How programs are attached: tcx (since Linux 6.6) or clsact [default: tcx where the kernel
    /// has it]
    #[arg(long, value_name = "MODE")]
    pub attach_mode: Option<Mode>,
    /// Seconds between two queries for multicast groups
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub query_interval: Option<u64>,
    /// Seconds between two looks at everything
    #[arg(long, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub look_interval: Option<u64>,
}

pub async fn run(args: UpArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let has_tcx = KernelFeatures::probe().tcx.is_present();
    let settings = Settings {
        config: args.config,
        node: args.node,
        mode: args.attach_mode.unwrap_or(if has_tcx { Mode::Tcx } else { Mode::Clsact }),
        socket: state::socket(&place.run_dir),
        state_dir: place.state_dir.clone(),
        query_interval: args.query_interval.map_or(agent::QUERY_INTERVAL, Duration::from_secs),
        look_interval: args.look_interval.map_or(agent::LOOK_INTERVAL, Duration::from_secs),
    };
    if settings.mode == Mode::Tcx && !has_tcx {
        anyhow::bail!("this kernel has no tcx (since Linux 6.6): leave --attach-mode out");
    }
    let mut host = open_when_free(place).await?;
    host.check_pin_dir(place)?;
    let sockets = (!args.once).then(|| Sockets::open(settings.query_interval));
    // Before there is a second thread: it would keep what this one has now.
    privileges::drop_the_rest()?;
    let Some(sockets) = sockets else {
        let config_error = agent::start(&mut host, &settings).await?;
        return Ok(if config_error.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    };
    supervise::note_panics(host.faults().clone());
    let serving = Serving::start()?;
    host.serve_on(serving.runtime());
    // Before anything is looked at, so that no change after it goes unnoticed.
    let changes = host.net().watch()?;
    let config_error = agent::start(&mut host, &settings).await?;
    agent::run(host, settings, config_error, changes, sockets, serving).await?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the lock, though a command such as `mesh status` may have it just now.
async fn open_when_free(place: &Place) -> Result<Host, HostError> {
    let began = Instant::now();
    let listens = |run_dir: &Path| client::is_listening(&state::socket(run_dir), POLL);
    let patience = |held: &StateError| match held {
        StateError::Elsewhere { holder: Some(Holder { run_dir: Some(dir), .. }) }
            if listens(dir) =>
        {
            FOR_AN_AGENT
        }
        _ if listens(&place.run_dir) => FOR_AN_AGENT,
        _ => FOR_COMMANDS,
    };
    loop {
        match Host::open(place) {
            Err(HostError::State(e)) if e.is_held() && began.elapsed() < patience(&e) => {
                tokio::time::sleep(POLL).await;
            }
            done => return done,
        }
    }
}
