//! `mesh down`

use std::process::ExitCode;

use clap::Args;

use super::{
    Place, log,
    session::{self, Session},
};
use crate::agent::protocol::Request;

#[derive(Debug, Args)]
pub struct DownArgs {}

pub async fn run(_: DownArgs, place: &Place) -> anyhow::Result<ExitCode> {
    match session::open(place, &Request::Down, None, true).await? {
        Session::Agent(_) => Ok(ExitCode::SUCCESS),
        Session::Direct(host) => {
            let errors = host.down().await;
            for e in &errors {
                log::error(&e.to_string());
            }
            Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
