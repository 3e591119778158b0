//! `mesh doctor`

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};

use super::Place;
use crate::{
    agent::{
        client,
        protocol::{Request, Response},
    },
    config::{self, Cluster},
    doctor::{AS_ROOT, Docker, Finding, Report, Status, examine},
    state::socket,
};

/// An agent that takes longer does not keep the doctor from the rest.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// The cluster's config file, for its UDP ports, and for where Docker is unless an agent runs
    #[arg(long, default_value = super::DEFAULT_CONFIG)]
    pub config: PathBuf,
}

/// Succeeds unless something failed.
pub async fn run(args: DoctorArgs, place: &Place) -> anyhow::Result<ExitCode> {
    // That a file is faulty is for `mesh check` to say.
    let cluster = config::read(&args.config).map(|(cluster, _)| cluster).ok();
    let tunnels = cluster.as_ref().map(Cluster::udp_tunnels).unwrap_or_default();
    let report = examine(&place.pin_dir, &docker(cluster, place), &tunnels).await;
    let text = if args.json {
        serde_json::to_string_pretty(&report)?
    } else {
        let colour = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        render(&report, columns(), colour)
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the agent says of it, or the file, or where it usually is.
fn docker(cluster: Option<Cluster>, place: &Place) -> Docker {
    let asked = client::call(&socket(&place.run_dir), &Request::Status, None, PATIENCE);
    if let Ok(Response::Status(status)) = asked
        && let Some(docker) = status.docker
    {
        return Docker::Followed(Box::new(docker));
    }
    cluster.map_or_else(Docker::default, |cluster| Docker::At(cluster.docker))
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
