//! `mesh doctor`

use std::{
    io::{self, IsTerminal, Write},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};

use super::Place;
use crate::{
    agent::{
        client::{self, CallError},
        protocol::{Request, Response},
    },
    config::{self, Cluster, ReadError, Vni, gateway},
    doctor::{AS_ROOT, Agent, Config, Docker, Finding, Mesh, Report, Status, examine},
    state::{last_config, socket},
};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// The cluster's config file, for its UDP ports, and for where Docker is unless an agent runs
    /// [default: the one that is in effect on this host, else /etc/mesh/cluster.toml if it is there]
    #[arg(long)]
    pub config: Option<PathBuf>,
}

/// Succeeds unless something failed.
pub async fn run(args: DoctorArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let report = examine(&place.pin_dir, &known(&args, place)?).await;
    let text = if args.json {
        serde_json::to_string_pretty(&report)?
    } else {
        let colour =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        render(&report, columns(), colour)
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the agent and the config file say.
fn known(args: &DoctorArgs, place: &Place) -> anyhow::Result<Mesh> {
    let file = config_file(args, place)?;
    let cluster = file.as_ref().and_then(|(_, cluster)| cluster.as_ref());
    let tunnels = cluster.map(Cluster::udp_tunnels).unwrap_or_default();
    let asked = client::call(&socket(&place.run_dir), &Request::Status, None, client::SIGN);
    let (agent, followed) = match asked {
        Ok(Response::Status(status)) => {
            let (pid, faults) = (status.agent.unwrap_or_default(), status.all_faults.len());
            (Agent::Running { pid, faults }, status.docker)
        }
        Ok(Response::Error(failure)) => (Agent::Silent(failure.text), None),
        Err(CallError::Silent(silent)) => (Agent::Silent(silent.to_string()), None),
        Err(CallError::Absent(_)) if last_config(&place.run_dir).exists() => (Agent::Absent, None),
        _ => (Agent::Unknown, None),
    };
    let docker = match followed {
        Some(docker) => Docker::Followed(Box::new(docker)),
        None => Docker::At {
            docker: cluster.map(|cluster| cluster.docker.clone()).unwrap_or_default(),
            addresses: cluster.map(addresses_of_nodes).unwrap_or_default(),
        },
    };
    let (config, cluster) = file.unzip();
    Ok(Mesh { agent, config, docker, cluster: cluster.flatten(), tunnels })
}

/// The file that is looked at, and what it says if it makes sense; else that is for `mesh check` to
/// tell. Fails only if the user names one that is not there.
fn config_file(
    args: &DoctorArgs,
    place: &Place,
) -> anyhow::Result<Option<(Config, Option<Cluster>)>> {
    let last = last_config(&place.run_dir);
    let default = PathBuf::from(super::DEFAULT_CONFIG);
    let (path, in_effect) = match &args.config {
        Some(path) => (path.clone(), false),
        None if last.exists() => (last, true),
        None if default.exists() => (default, false),
        None => return Ok(None),
    };
    let (cluster, fault) = match config::read(&path) {
        Ok((cluster, _)) => (Some(cluster), None),
        Err(ReadError::Io { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            bail!(
                "there is no config file {}: `mesh init HOST... --file {0}` writes one, and without \
                 --config the one that is in effect on this host is looked at",
                path.display()
            )
        }
        Err(e) => (None, Some(e.to_string())),
    };
    Ok(Some((Config { path, in_effect, fault }, cluster)))
}

/// By which agents answer for names. Which node this host is, needs no saying: only its own agent is
/// asked by these.
pub(super) fn addresses_of_nodes(cluster: &Cluster) -> Vec<IpAddr> {
    let own = cluster.nodes.iter().flat_map(|node| node.subnets_of(Vni::DEFAULT));
    own.map(gateway).collect()
}

/// The width that the shell says it has, within what can be read.
fn columns() -> u16 {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    columns.unwrap_or(100).clamp(60, 120)
}

fn render(report: &Report, columns: u16, colour: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(columns);
    for finding in &report.findings {
        table.add_row([finding.status.name(), finding.name, &told(finding)]);
    }
    let lines: Vec<String> = table.lines().map(|line| coloured(line.trim_end(), colour)).collect();
    let failed = report.findings.iter().filter(|f| f.status == Status::Fail).count();
    let unseen = report.findings.iter().any(|f| f.remedy.as_deref() == Some(AS_ROOT));
    let verdict = match failed {
        0 if unseen => format!("Nothing is wrong as far as can be seen. All of it: {AS_ROOT}"),
        0 => "This host can be part of a mesh.".to_owned(),
        n => format!("This host can not be part of a mesh yet: {n} to mend."),
    };
    format!("{}\n\n{verdict}", lines.join("\n"))
}

/// All that there is to say if it is not simply right.
fn told(finding: &Finding) -> String {
    let Finding { value, meaning, remedy, .. } = finding;
    match (finding.status, remedy) {
        (Status::Ok, _) => value.clone(),
        (_, None) => format!("{value}\n{meaning}"),
        (_, Some(remedy)) => format!("{value}\n{meaning}\n$ {remedy}"),
    }
}

/// The status is the first word of a finding's first line; all other lines begin with blanks.
fn coloured(line: &str, colour: bool) -> String {
    let paint = |status: &Status| match status {
        Status::Ok => "32",
        Status::Info => "36",
        Status::Warn => "33",
        Status::Fail => "1;31",
    };
    let body = line.trim_start();
    let indent = &line[..line.len() - body.len()];
    let status =
        [Status::Ok, Status::Info, Status::Warn, Status::Fail].into_iter().find(|status| {
            indent.len() <= 1
                && body.strip_prefix(status.name()).is_some_and(|r| r.starts_with(' '))
        });
    match status {
        Some(status) if colour => {
            let (word, rest) = body.split_at(status.name().len());
            format!("{indent}\x1b[{}m{word}\x1b[0m{rest}", paint(&status))
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: Status) -> Report {
        let finding = |name, status, value: &str, remedy: Option<&str>| Finding {
            name,
            status,
            value: value.to_owned(),
            meaning: format!("Meaning of {name}."),
            remedy: remedy.map(str::to_owned),
        };
        Report {
            ok: status != Status::Fail,
            findings: vec![
                finding("kernel", Status::Ok, "6.18", None),
                finding("bpf_jit", status, "0", Some("sysctl -w x=1")),
            ],
        }
    }

    #[test]
    fn what_is_wrong_is_explained_and_what_is_right_is_not() {
        let text = render(&report(Status::Fail), 80, false);
        assert!(text.contains("Meaning of bpf_jit.") && text.contains("$ sysctl -w x=1"), "{text}");
        assert!(!text.contains("Meaning of kernel."), "{text}");
        assert!(text.ends_with("1 to mend."), "{text}");
    }

    #[test]
    fn only_the_status_is_coloured_and_only_if_asked_for() {
        let plain = render(&report(Status::Warn), 80, false);
        let colour = render(&report(Status::Warn), 80, true);
        assert!(!plain.contains('\x1b'));
        assert!(colour.contains("\x1b[32mok\x1b[0m") && colour.contains("\x1b[33mwarn\x1b[0m"));
        let stripped = ["\x1b[32m", "\x1b[33m", "\x1b[0m"]
            .iter()
            .fold(colour, |text, code| text.replace(code, ""));
        assert_eq!(stripped, plain);
    }
}
