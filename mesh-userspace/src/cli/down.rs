//! `mesh down`

use std::process::ExitCode;

use clap::Args;

use super::{
    Place, log,
    session::{self, Session},
};
use crate::{agent::protocol::Request, state, state_dir};

#[derive(Debug, Args)]
pub struct DownArgs {
    /// Remove the state folder too: the next `mesh up` knows nothing of this host's networks but what
    /// Docker and the other nodes tell
    #[arg(long)]
    pub forget: bool,
}

pub async fn run(args: DownArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let spoiled = state::spoiled(&place.run_dir);
    if let Session::Direct(host) = session::open(place, &Request::Down, None, true).await? {
        let errors = host.down().await;
        for e in &errors {
            log::error(&e.to_string());
        }
        if !errors.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    for path in spoiled.iter().filter(|path| !path.exists()) {
        let path = path.display();
        log::warning(&format!("{path}, kept as it made no sense when it was read, is removed too"));
    }
    if args.forget {
        state_dir::forget(&place.state_dir)?;
    }
    Ok(ExitCode::SUCCESS)
}
