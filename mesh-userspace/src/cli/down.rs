//! `mesh down`

use std::process::ExitCode;

use clap::Args;

use super::{
    Place, log,
    session::{self, Session},
};
use crate::{agent::protocol::Request, state_dir};

#[derive(Debug, Args)]
pub struct DownArgs {
    /// Remove the state folder too: the next `mesh up` knows nothing of this host's networks but what
    /// Docker and the other nodes tell
    #[arg(long)]
    pub forget: bool,
}

pub async fn run(args: DownArgs, place: &Place) -> anyhow::Result<ExitCode> {
    if let Session::Direct(host) = session::open(place, &Request::Down, None, true).await? {
        let errors = host.down().await;
        for e in &errors {
            log::error(&e.to_string());
        }
        if !errors.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    if args.forget {
        state_dir::forget(&place.state_dir)?;
    }
    Ok(ExitCode::SUCCESS)
}
