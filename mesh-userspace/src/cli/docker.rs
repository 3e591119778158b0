//! `mesh docker`

use std::{fs, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    Place, file, print,
    session::{self, Session},
};
use crate::{
    agent::protocol::{Request, Response},
    names::forward,
};

#[derive(Debug, Subcommand)]
pub enum DockerVerb {
    /// Make containers ask the agent for names: `dns` in Docker's daemon.json
    Configure(ConfigureArgs),
}

#[derive(Debug, Args)]
pub struct ConfigureArgs {
    /// Docker's config file; everything else in it stays as it is
    #[arg(long, default_value = "/etc/docker/daemon.json")]
    pub file: PathBuf,
    /// Show the difference and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

pub async fn run(verb: DockerVerb, place: &Place) -> anyhow::Result<ExitCode> {
    let DockerVerb::Configure(args) = verb;
    let status = match session::open(place, &Request::Status, None, false).await? {
        Session::Agent(Response::Status(status)) => *status,
        Session::Agent(other) => bail!("the agent answered something else: {other:?}"),
        Session::Direct(mut host) => host.status().await?,
    };
    let mut dns = status.addresses;
    // For when the agent is away.
    dns.extend(forward::public_resolvers());
    dns.dedup();
    let shown = args.file.display();
    let before = file::read(&args.file).with_context(|| shown.to_string())?;
    let Some(after) = merged(&before, &dns).with_context(|| shown.to_string())? else {
        print(&format!("{shown} is right already; nothing to do"))?;
        return Ok(ExitCode::SUCCESS);
    };
    print(&file::difference(&before, &after))?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let written = (|| {
        if !before.is_empty() {
            // What was there stays beside it.
            fs::write(file::beside(&args.file, ".before-mesh"), &before)?;
        }
        file::replace(&args.file, &after)
    })();
    written.with_context(|| shown.to_string())?;
    print(&format!("{shown} is written; restart Docker for it (`systemctl restart docker`)"))?;
    Ok(ExitCode::SUCCESS)
}

/// The file with these resolvers; `None` if it has them.
fn merged(before: &str, dns: &[IpAddr]) -> anyhow::Result<Option<String>> {
    let mut settings: Map<String, Value> = match before.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).context("it is no JSON object")?,
    };
    let dns = json!(dns);
    if settings.get("dns") == Some(&dns) {
        return Ok(None);
    }
    settings.insert("dns".into(), dns);
    Ok(Some(serde_json::to_string_pretty(&settings)? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Vec<IpAddr> {
        vec!["10.42.0.1".parse().unwrap()]
    }

    #[test]
    fn what_else_is_in_the_file_stays() {
        let before = "{\n  \"log-driver\": \"local\",\n  \"dns\": [\"192.0.2.1\"]\n}\n";
        let after = merged(before, &dns()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(value, json!({"log-driver": "local", "dns": ["10.42.0.1"]}));
        assert_eq!(merged(&after, &dns()).unwrap(), None);
        assert!(file::difference(before, &after).contains("+     \"10.42.0.1\""));
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_one_that_makes_no_sense_is_not() {
        assert!(merged("", &dns()).unwrap().unwrap().contains("10.42.0.1"));
        assert!(merged("[]", &dns()).is_err());
        assert!(merged("{", &dns()).is_err());
    }
}
