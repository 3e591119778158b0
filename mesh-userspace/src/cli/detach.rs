//! `mesh detach`

use std::process::ExitCode;

use clap::{Args, builder::NonEmptyStringValueParser as NonEmpty};

use super::{
    Place,
    session::{self, Session},
};
use crate::agent::protocol::Request;

#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The endpoint's name, as in `mesh status`
    #[arg(value_parser = NonEmpty::new())]
    pub name: String,
}

pub async fn run(args: DetachArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let request = Request::Detach { name: args.name.clone() };
    if let Session::Direct(mut host) = session::open(place, &request, None, false).await? {
        host.detach(&args.name).await?;
    }
    Ok(ExitCode::SUCCESS)
}
